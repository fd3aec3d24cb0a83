"""Bytes: corpora by name, mapped into memory, the batches and windows cut from them, and bytes as text."""

from data.batches import batch, offsets, scoring_windows, spread_windows
from data.config import DataConfig
from data.corpora import open_corpus
from data.store import Corpus
from data.text import show, to_ids, to_text

__all__ = [
    "Corpus",
    "DataConfig",
    "batch",
    "offsets",
    "open_corpus",
    "scoring_windows",
    "show",
    "spread_windows",
    "to_ids",
    "to_text",
]
