"""Files as streams of bytes, whatever they are packed in."""

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from data.store import chunks

OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": zstandard.open}
DAMAGED = (EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, zstandard.ZstdError, gzip.BadGzipFile)


def unpacked(path: Path) -> Iterator[bytes]:
    """The bytes of a file in pieces; .gz, .xz, .bz2, .zst and .zip unpacked, a zip's members one after another.

    Raises:
        ValueError: when the file is damaged or cut short.
    """
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for member in sorted(archive.namelist()):
                    with archive.open(member) as file:
                        yield from chunks(file)
        else:
            with OPENERS.get(path.suffix, open)(path, "rb") as file:
                yield from chunks(file)
    except DAMAGED as error:
        raise ValueError(f"path: {path} is damaged or cut short ({error})") from error
