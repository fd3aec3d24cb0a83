"""Corpora by name, mapped into memory; training batches and scoring windows; conversion between bytes and text."""

from data.batches import batch, scoring_windows, sequence_starts, spread_windows
from data.config import DataConfig
from data.corpora import open_corpus
from data.store import Corpus
from data.text import to_ids, to_text

__all__ = [
    "Corpus",
    "DataConfig",
    "batch",
    "open_corpus",
    "scoring_windows",
    "sequence_starts",
    "spread_windows",
    "to_ids",
    "to_text",
]
