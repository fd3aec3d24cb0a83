"""Corpora by name, mapped into memory; training batches and scoring windows; conversion between bytes and text."""

from data.batches import batch, scoring_windows, sequence_starts, spread_windows
from data.config import DataConfig
from data.corpora import open_corpus
from data.store import Corpus
from data.text import bytes_of_file, to_ids, to_text

__all__ = [
    "Corpus",
    "DataConfig",
    "batch",
    "bytes_of_file",
    "open_corpus",
    "scoring_windows",
    "sequence_starts",
    "spread_windows",
    "to_ids",
    "to_text",
]
