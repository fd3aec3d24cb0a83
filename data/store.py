"""A corpus on disk: one file with the bytes of all splits, written once, checked and memory-mapped by split."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.report import CorpusReport, Tally, report_from_dict
from data.unpack import PIECE_BYTES
from utils.checks import is_number
from utils.errors import UserError
from utils.files import fresh_folder, read_json, replace

SPLITS = ("train", "valid", "test")  # in the order of bytes.bin

# Bytes of a corpus in pieces: one stream to cut into splits, or one stream for each split.
Streams = Iterator[bytes] | dict[str, Iterator[bytes]]


@dataclass(frozen=True)
class Corpus:
    """Bytes in three splits. `corpus["train"]` is a read-only memory map (n) of uint8."""

    name: str
    """as in DataConfig.name"""
    source: str
    """where the bytes come from, for people to read"""
    folder: Path
    """holds bytes.bin and corpus.json"""
    sizes: dict[str, int]
    """bytes of each split"""
    sha256: dict[str, str]
    """checksum of each split, in hex"""
    report: CorpusReport = field(default_factory=CorpusReport)
    """what was read, and what was left out"""

    def to_dict(self) -> dict[str, Any]:
        """All but the folder as plain values for a JSON file."""
        return {
            "name": self.name,
            "source": self.source,
            "sizes": self.sizes,
            "sha256": self.sha256,
            "report": self.report.to_dict(),
        }

    def __getitem__(self, split: str) -> np.ndarray:
        """The bytes of a split (n), uint8.

        Raises:
            KeyError: if there is no such split.
        """
        if split not in self.sizes:
            raise KeyError(f"split: got {split}, allowed: {', '.join(self.sizes)}")
        before = SPLITS[: SPLITS.index(split)]
        offset = sum(self.sizes[name] for name in before)
        return np.memmap(self.folder / "bytes.bin", np.uint8, "r", offset=offset, shape=(self.sizes[split],))


def split_sizes(total: int) -> dict[str, int]:
    """Sizes in bytes of the splits of a stream: 90 % train, 5 % valid, 5 % test."""
    part = total * 5 // 100
    return {"train": total - 2 * part, "valid": part, "test": part}


def load_corpus(folder: Path) -> Corpus | None:
    """The corpus that was written to a folder; None if it is missing, incomplete or damaged by its checksums."""
    try:
        record = read_json(folder / "corpus.json")
        report = report_from_dict(record.pop("report"))
        corpus = Corpus(folder=folder, report=report, **record)
        if not isinstance(corpus.name, str) or not isinstance(corpus.source, str):
            return None
        if list(corpus.sizes) != list(SPLITS) or not all(is_number(size, 0, int) for size in corpus.sizes.values()):
            return None
        size = (folder / "bytes.bin").stat().st_size
        if size != sum(corpus.sizes.values()) or corpus.sha256 != _checksums(folder / "bytes.bin", corpus.sizes):
            return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # a damaged file may hold anything
        return None
    return corpus


def write_corpus(folder: Path, temporary: Path, name: str, source: str, streams: Streams, tally: Tally) -> Corpus:
    """Write a corpus to a folder, where it appears only once it is complete.

    Args:
        folder: created if need be.
        temporary: a folder on the same disk to write in. What is there before and afterwards is deleted.
        name, source: as in `Corpus`.
        streams: one stream that is cut 90/5/5, or a dict with a stream for each split, in the order of SPLITS.
        tally: what the streams count while they are read.

    Raises:
        UserError: if there are no bytes, or a stream cannot be read.
        OSError: if the folder cannot be written.
    """
    try:
        fresh_folder(temporary)
        corpus = _write_files(temporary, folder, name, source, streams, tally)
        folder.mkdir(exist_ok=True)
        for file in ("bytes.bin", "corpus.json"):
            replace(temporary / file, folder / file)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return corpus


def _write_files(temporary: Path, folder: Path, name: str, source: str, streams: Streams, tally: Tally) -> Corpus:
    """Write bytes.bin and corpus.json of a corpus that will be in `folder`."""
    path = temporary / "bytes.bin"
    with path.open("wb") as file:
        if isinstance(streams, dict):
            sizes = {split: _write_stream(file, stream) for split, stream in streams.items()}
        else:
            sizes = split_sizes(_write_stream(file, streams))
    report = tally.report()
    if sum(sizes.values()) == 0:
        reasons = "; ".join(report.lines())
        raise UserError(f"data.path: {source} holds no bytes" + (f" ({reasons})" if reasons else ""))

    corpus = Corpus(name, source, folder, sizes, _checksums(path, sizes), report)
    (temporary / "corpus.json").write_text(json.dumps(corpus.to_dict(), indent=2), encoding="utf-8")
    return corpus


def _write_stream(file, stream: Iterator[bytes]) -> int:
    """Append a stream to an open file, and return its number of bytes."""
    size = 0
    for piece in stream:
        size += file.write(piece)
    return size


def _checksums(path: Path, sizes: dict[str, int]) -> dict[str, str]:
    """The sha256 of each split of a file that holds one after another."""
    checksums = {}
    with path.open("rb") as file:
        for split, size in sizes.items():
            digest = hashlib.sha256()
            remaining = size
            while remaining > 0:
                piece = file.read(min(remaining, PIECE_BYTES))
                if not piece:
                    break
                digest.update(piece)
                remaining -= len(piece)
            checksums[split] = digest.hexdigest()
    return checksums
