"""A corpus on disk: one file with the bytes of all splits, written once, and memory-mapped by split."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.unpack import PIECE_BYTES
from utils.errors import UserError

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
    """The corpus that was written to a folder; None if it is missing, incomplete or damaged."""
    try:
        record = json.loads((folder / "corpus.json").read_text())
        corpus = Corpus(folder=folder, **record)
        size = (folder / "bytes.bin").stat().st_size
        complete = size == sum(corpus.sizes.values())
    except (OSError, ValueError, TypeError):
        return None
    return corpus if complete else None


def write_corpus(folder: Path, name: str, source: str, streams: Streams) -> Corpus:
    """Write a corpus to a folder, where it appears only once it is complete.

    Args:
        folder: created if need be.
        name, source: as in `Corpus`.
        streams: one stream that is cut 90/5/5, or a dict with a stream for each split, in the order of SPLITS.

    Raises:
        UserError: if there are no bytes, a stream cannot be read, or the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as temporary:
            record = _write_files(Path(temporary), name, source, streams)
            # Another process may do the same at this moment. Both write the same bytes, so the last rename wins.
            folder.mkdir(exist_ok=True)
            for file in ("bytes.bin", "corpus.json"):
                os.replace(Path(temporary) / file, folder / file)
    except OSError as error:
        raise UserError(f"data.cache_dir: cannot write a corpus to {folder.parent} ({error})") from error
    return Corpus(folder=folder, **record)


def _write_files(folder: Path, name: str, source: str, streams: Streams) -> dict:
    """Write bytes.bin and corpus.json, wait until both are on the disk, and return the content of corpus.json."""
    path = folder / "bytes.bin"
    with path.open("wb") as file:
        if isinstance(streams, dict):
            sizes = {split: _write_stream(file, stream) for split, stream in streams.items()}
        else:
            sizes = split_sizes(_write_stream(file, streams))
        file.flush()
        os.fsync(file.fileno())
    if sum(sizes.values()) == 0:
        raise UserError(f"data.path: {source} holds no bytes")

    record = {"name": name, "source": source, "sizes": sizes, "sha256": _checksums(path, sizes)}
    with (folder / "corpus.json").open("w") as file:
        json.dump(record, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    return record


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
                digest.update(piece)
                remaining -= len(piece)
            checksums[split] = digest.hexdigest()
    return checksums
