"""One file of bytes a corpus, written once and mapped into memory, a map for each split."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SPLITS = ("train", "valid", "test")
CHUNK = 1 << 20  # bytes handled at once


@dataclass(frozen=True)
class Corpus:
    """Bytes in three splits; `corpus["train"]` is a read-only memory map (n) of uint8."""

    name: str
    source: str
    folder: Path
    sizes: dict[str, int]
    sha256: dict[str, str]

    def __getitem__(self, split: str) -> np.ndarray:
        if split not in self.sizes:
            raise KeyError(f"split: got {split}, allowed: {', '.join(self.sizes)}")
        offset = sum(self.sizes[before] for before in SPLITS[: SPLITS.index(split)])
        return np.memmap(self.folder / "bytes.bin", np.uint8, "r", offset=offset, shape=(self.sizes[split],))


def split_sizes(total: int) -> dict[str, int]:
    """90/5/5 by bytes."""
    part = total * 5 // 100
    return {"train": total - 2 * part, "valid": part, "test": part}


def stored(folder: Path) -> Corpus | None:
    """The corpus that lies in a folder, if it is whole."""
    try:
        record = json.loads((folder / "corpus.json").read_text())
        corpus = Corpus(folder=folder, **record)
        whole = (folder / "bytes.bin").stat().st_size == sum(corpus.sizes.values())
    except (OSError, ValueError, TypeError):
        return None
    return corpus if whole else None


def store(folder: Path, name: str, source: str, parts: dict[str, Iterator[bytes]] | Iterator[bytes]) -> Corpus:
    """Write a stream of bytes, or one for each split, into a folder; nothing lies there before all of it does.

    Raises:
        ValueError: when the corpus is empty, or a stream cannot be read.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as temporary:
        path = Path(temporary) / "bytes.bin"
        sizes: dict[str, int] = {}
        with path.open("wb") as file:
            streams: dict[str, Iterator[bytes]] = parts if isinstance(parts, dict) else {"": parts}
            for split, stream in streams.items():
                sizes[split] = sum(file.write(piece) for piece in stream)
            file.flush()
            os.fsync(file.fileno())
        if not isinstance(parts, dict):
            sizes = split_sizes(sizes[""])
        if not sum(sizes.values()):
            raise ValueError(f"data.path: {source} holds no bytes")
        record = {"name": name, "source": source, "sizes": sizes, "sha256": _checksums(path, sizes)}
        with (Path(temporary) / "corpus.json").open("w") as file:
            json.dump(record, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        # Two processes may come here with the same bytes: file by file, whoever is last changes nothing.
        folder.mkdir(exist_ok=True)
        for part in ("bytes.bin", "corpus.json"):
            os.replace(Path(temporary) / part, folder / part)
    return Corpus(folder=folder, **record)


def chunks(file) -> Iterator[bytes]:
    """An open binary file in pieces."""
    return iter(lambda: file.read(CHUNK), b"")


def _checksums(path: Path, sizes: dict[str, int]) -> dict[str, str]:
    checksums = {}
    with path.open("rb") as file:
        for split, size in sizes.items():
            digest = hashlib.sha256()
            while size:
                piece = file.read(min(size, CHUNK))
                digest.update(piece)
                size -= len(piece)
            checksums[split] = digest.hexdigest()
    return checksums
