"""Read files piece by piece, and decompress them on the way."""

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from utils.errors import UserError

PIECE_BYTES = 1 << 20  # read at once
OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
DAMAGED = (
    EOFError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
    zstandard.ZstdError,
    RuntimeError,  # zipfile: the archive is encrypted, or uses a compression method that zipfile does not support
)


def unpack(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file in pieces. Files named .gz, .xz, .bz2, .zst and .zip are decompressed.

    The members of a zip follow one another, sorted by name.

    Raises:
        UserError: if the file cannot be read, is damaged or is cut short.
    """
    try:
        if path.suffix == ".zip":
            yield from _unpack_zip(path)
        elif path.suffix == ".zst":
            yield from _unpack_zstandard(path)
        else:
            opener = OPENERS.get(path.suffix, open)
            with opener(path, "rb") as file:
                yield from read_pieces(file)
    except DAMAGED as error:
        raise UserError(f"data.path: {path} is damaged or cut short ({error})") from error
    except OSError as error:
        raise UserError(f"data.path: {path} cannot be read ({error.strerror or error})") from error


def read_pieces(file) -> Iterator[bytes]:
    """Yield the rest of an open binary file in pieces of at most PIECE_BYTES."""
    while piece := file.read(PIECE_BYTES):
        yield piece


def _unpack_zip(path: Path) -> Iterator[bytes]:
    with zipfile.ZipFile(path) as archive:
        for member in sorted(archive.namelist()):
            with archive.open(member) as file:
                yield from read_pieces(file)


def _unpack_zstandard(path: Path) -> Iterator[bytes]:
    """Decompress frame by frame, because the library's own reader takes a truncated frame for the end of the file."""
    frame = None
    with path.open("rb") as file:
        for piece in read_pieces(file):
            while piece:
                if frame is None:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(piece)
                piece = frame.unused_data  # the bytes after the end of the frame
                if frame.eof:
                    frame = None
    if frame is not None:
        raise EOFError("the last frame has no end")
