"""The settings of a corpus."""

from dataclasses import dataclass
from typing import Literal

from utils.checks import is_number, require


@dataclass(frozen=True)
class DataConfig:
    """Which corpus to read, and where to find it.

    Raises:
        UserError: if a setting does not go with the corpus, or the corpus needs one that is missing.
    """

    name: Literal["enwik8", "text8", "files", "hub", "python"] = "python"
    """enwik8, text8, files of your own, a dataset of the Hugging Face hub, or the standard library of this Python"""
    path: str | None = None
    """enwik8, text8: a file (downloaded when null); files: a file, folder or glob; hub: a dataset's name or file"""
    head: bool = False
    """accept a file with only the beginning of enwik8; its scores are not comparable with those of enwik8"""
    subset: str | None = None
    """configuration (subset) of the dataset, for hub"""
    column: str = "text"
    """column of the dataset that holds the text, for hub"""
    max_bytes: int | None = None
    """for files, hub and python: read only this many bytes from the beginning; a dataset is then read as a stream, and
    need not fit on the disk"""
    cache_dir: str | None = None
    """folder for unpacked corpora; byte-corpora in $XDG_CACHE_HOME or ~/.cache when null"""

    def __post_init__(self):
        needs_path = {"files": "a file, folder or glob", "hub": "the name or folder of a dataset"}
        has_path = bool(self.path) or self.name not in needs_path
        head_fits = not self.head or self.name == "enwik8"
        limit_fits = self.max_bytes is None or is_number(self.max_bytes, 1, int)
        has_limit = self.name not in ("enwik8", "text8") or self.max_bytes is None
        limits = "null, or 1 or above" if has_limit else f"null, because {self.name} is read whole"
        require(
            vars(self),
            path=(has_path, f"{needs_path.get(self.name)} (name is {self.name})"),
            head=(head_fits, f"only with name=enwik8 (name is {self.name})"),
            max_bytes=(limit_fits and has_limit, limits),
        )
