"""Which bytes to read."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """A corpus of bytes.

    Raises:
        ValueError: when a field is missing that the corpus needs.
    """

    name: Literal["enwik8", "text8", "files", "hub", "python"] = "python"
    """enwik8, text8, files of your own, a dataset of the Hugging Face hub, or the standard library of this Python"""
    path: str | None = None
    """enwik8, text8: a file (fetched when null); files: a file, folder or glob; hub: a dataset's name or file"""
    head: bool = False
    """let path hold only the beginning of enwik8; its figures are not those of enwik8"""
    subset: str | None = None
    """the dataset's configuration, for hub"""
    column: str = "text"
    """the dataset's column that holds the text, for hub"""
    cache_dir: str | None = None
    """where unpacked corpora are kept; $XDG_CACHE_HOME or ~/.cache when null"""

    def __post_init__(self):
        if self.name in ("files", "hub") and not self.path:
            what = {"files": "a file, folder or glob", "hub": "the name or folder of a dataset"}[self.name]
            raise ValueError(f"path: got {self.path}, allowed for name={self.name}: {what}")
        if self.head and self.name != "enwik8":
            raise ValueError(f"head: got true for name={self.name}, allowed: with name=enwik8")
