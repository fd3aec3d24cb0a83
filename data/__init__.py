"""Bytes: corpora by name, mapped into memory, and the batches and windows cut from them."""

from data.batches import batch, offsets, scoring_windows, spread_windows
from data.config import DataConfig
from data.corpora import open_corpus
from data.store import Corpus

__all__ = ["Corpus", "DataConfig", "batch", "offsets", "open_corpus", "scoring_windows", "spread_windows"]
