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

OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
DAMAGED = (EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, zstandard.ZstdError, gzip.BadGzipFile)
DAMAGED += (RuntimeError,)  # a zip that is encrypted, or packed in a way that zipfile does not know


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
        elif path.suffix == ".zst":
            with path.open("rb") as file:
                yield from _zstandard_frames(chunks(file))
        else:
            with OPENERS.get(path.suffix, open)(path, "rb") as file:
                yield from chunks(file)
    except DAMAGED as error:
        raise ValueError(f"data.path: {path} is damaged or cut short ({error})") from error


def _zstandard_frames(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress frame after frame; the library's own reader takes a frame that is cut short for its end."""
    frame = None
    for piece in pieces:
        while piece:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(piece)
            piece = frame.unused_data
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last frame has no end")
