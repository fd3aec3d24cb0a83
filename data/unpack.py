"""Read files piece by piece, and unpack them on the way. Their first bytes tell how they are packed."""

import bz2
import gzip
import io
import lzma
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from data.report import Tally
from utils.errors import UserError, reading_errors

PIECE_BYTES = 1 << 20  # read at once
TAR_BLOCK = 512
MAX_DEPTH = 4  # packed files inside one another: a .tar.gz in a .zip has 3
MAX_DICTIONARY = 256 << 20  # bytes of memory that a file may ask for to be unpacked
MAX_TAR_HEADER = 1 << 20  # bytes between two members: long names and other metadata, which tarfile keeps in memory

SIGNATURES = {
    "gzip": rb"\x1f\x8b\x08[\x00-\x1f]",
    "bzip2": rb"BZh[1-9](1AY&SY|\x17rE8P\x90)",
    "xz": rb"\xfd7zXZ\x00",
    "lzma": rb"\x5d\x00\x00..(.{7}\x00|\xff{8})",
    "zstd": rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
    "zip": rb"PK(\x03\x04|\x05\x06|\x07\x08)",
}
# Formats that are recognised, but not unpacked.
UNSUPPORTED = {
    "7z": rb"7z\xbc\xaf\x27\x1c",
    "rar": rb"Rar!\x1a\x07",
    "lz4": rb"\x04\x22\x4d\x18",
    "lzip": rb"LZIP\x01",
    "compress": rb"\x1f\x9d[\x80-\x9f]",
}
# Endings of names that promise a packed file.
SUFFIXES = {".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz", ".lzma", ".zst", ".tzst", ".zip", ".tar"}


class Damaged(Exception):
    """What is wrong with a packed file."""


# What the libraries raise for damaged files. Some raise an OSError without an errno instead, see `_unpack`.
DAMAGED = (
    Damaged,
    EOFError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    UnicodeDecodeError,
)


def unpack(path: Path, tally: Tally | None = None) -> Iterator[bytes]:
    """Yield the bytes of a file in pieces, unpacked if its first bytes are those of gzip, bzip2, xz, zstd, zip or tar.

    What is packed inside a packed file is unpacked as well, up to MAX_DEPTH. The members of a zip follow one another
    sorted by name, those of a tar as they are stored.

    Args:
        tally: counts members that are left out: hidden ones, and links.

    Raises:
        UserError: if the file cannot be read, is damaged, is cut short or cannot be unpacked.
    """
    tally = tally or Tally()
    with reading_errors("data.path", path), path.open("rb") as file:
        yield from _unpack(file, str(path), path.suffix, 0, tally)


def read_pieces(file) -> Iterator[bytes]:
    """Yield the rest of an open binary file in pieces of at most PIECE_BYTES."""
    while piece := file.read(PIECE_BYTES):
        yield piece


def _unpack(file: IO[bytes], name: str, suffix: str, depth: int, tally: Tally) -> Iterator[bytes]:
    """Yield the bytes of an open file at its beginning.

    Args:
        name: of the file, with those of the archives that it is in.
        suffix: the end of the name, which may promise a packed file.
        depth: the number of packed files that the file is inside.
    """
    try:
        head = file.read(TAR_BLOCK)
        kind = _packing(head, name, suffix)
        if kind is None:
            if head:
                yield head
            yield from read_pieces(file)
            return
        if depth == MAX_DEPTH:
            raise UserError(f"data.path: {name} is packed inside {MAX_DEPTH} packed files; unpack it first")

        if depth == 0:
            file.seek(0)
        else:
            file = io.BufferedReader(_Rewound(head, file), PIECE_BYTES)
        if kind in DECOMPRESSED:
            yield from _unpack(DECOMPRESSED[kind](file), name, "", depth + 1, tally)
        else:
            yield from ARCHIVES[kind](file, name, depth + 1, tally)
    except DAMAGED as error:
        raise _as_user_error(name, error) from error
    except OSError as error:
        if error.errno is None:  # the libraries' own, about the content
            raise _as_user_error(name, error) from error
        raise


def _as_user_error(name: str, error: Exception) -> UserError:
    """The UserError for what a library says of a damaged file."""
    # lzma and zstd have no exception of their own for a dictionary that is too large
    if isinstance(error, lzma.LZMAError | OSError) and "memory" in str(error).lower():
        return UserError(
            f"data.path: {name} asks for too much memory to unpack it ({error}); "
            f"pack it again with a dictionary of {MAX_DICTIONARY >> 20} MiB at most (zstd: 128)"
        )
    return UserError(f"data.path: {name} is damaged or cut short ({error})")


def _packing(head: bytes, name: str, suffix: str) -> str | None:
    """How a file is packed by its first bytes, as in DECOMPRESSED or ARCHIVES; None if it is not.

    Raises:
        UserError: if it is packed in a way that is not supported.
        Damaged: if only its name says that it is packed.
    """
    for kind, signature in SIGNATURES.items():
        if re.match(signature, head, re.DOTALL):
            return kind
    for kind, signature in UNSUPPORTED.items():
        if re.match(signature, head, re.DOTALL):
            allowed = ", ".join([*DECOMPRESSED, *ARCHIVES])
            raise UserError(f"data.path: {name} is packed with {kind}, allowed: {allowed}; unpack it first")
    if _is_tar_header(head):
        return "tar"
    if suffix.lower() in SUFFIXES and head:
        raise Damaged(f"its name ends in {suffix}, but its first bytes are not those of a packed file")
    return None


def _is_tar_header(block: bytes) -> bool:
    """Whether a block is the header of a tar's member: it holds a checksum of itself."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def _is_hidden(member: str) -> bool:
    """Whether the name of a member of an archive, or of a folder it is in, is that of a hidden or a macOS file."""
    parts = PurePosixPath(member).parts
    return any(part == "__MACOSX" or (part.startswith(".") and part != "..") for part in parts)


class _Rewound(io.RawIOBase):
    """An open file from its beginning, after `head` was read from it."""

    def __init__(self, head: bytes, file: IO[bytes]):
        self.head = head
        self.file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        piece = self.head[: len(buffer)] or self.file.read(len(buffer))
        self.head = self.head[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)


# -- a file in a file


class _Streams(io.RawIOBase):
    """Decompresses bzip2 or xz, stream after stream.

    The library's own files take a damaged second stream for the end, and have no limit of memory.
    """

    def __init__(self, file: IO[bytes], new_decompressor: Callable):
        self.file = file
        self.new_decompressor = new_decompressor
        self.decompressor = new_decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        piece = b""
        while not piece:
            if self.decompressor.eof:
                packed = self._start_of_next_stream()
                if not packed:
                    return 0
                self.decompressor = self.new_decompressor()
            else:
                packed = b""
                if self.decompressor.needs_input:
                    packed = self.file.read(PIECE_BYTES)
                    if not packed:
                        raise Damaged("the stream has no end")
            piece = self.decompressor.decompress(packed, len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def _start_of_next_stream(self) -> bytes:
        """The bytes after a stream, without the zeros that may stand between streams; empty at the end of the file."""
        packed = self.decompressor.unused_data.lstrip(b"\0")
        while not packed:
            piece = self.file.read(PIECE_BYTES)
            if not piece:
                return b""
            packed = piece.lstrip(b"\0")
        return packed


def _open_xz(file: IO[bytes]) -> io.BufferedReader:
    def new_decompressor():
        return lzma.LZMADecompressor(memlimit=MAX_DICTIONARY)

    return io.BufferedReader(_Streams(file, new_decompressor), PIECE_BYTES)


def _open_zstd(file: IO[bytes]):
    """Arrow's reader has bounded memory, and notices a missing end, which that of `zstandard` does not."""
    import pyarrow  # slow to import

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")


# Open a packed file by its kind, as in SIGNATURES.
DECOMPRESSED: dict[str, Callable[[IO[bytes]], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "bzip2": lambda file: io.BufferedReader(_Streams(file, bz2.BZ2Decompressor), PIECE_BYTES),
    "xz": _open_xz,
    "lzma": _open_xz,
    "zstd": _open_zstd,
}


# -- archives


def _read_zip(file, name: str, depth: int, tally: Tally) -> Iterator[bytes]:
    with tempfile.TemporaryFile() as copy:
        if depth > 1:  # the list of members is at the end of a zip, and a file in a file cannot go back
            shutil.copyfileobj(file, copy, PIECE_BYTES)
            file = copy
        with zipfile.ZipFile(file) as archive:
            for member in sorted(archive.infolist(), key=lambda member: member.filename):
                path = f"{name}/{member.filename}"
                if member.is_dir():
                    continue
                if _is_hidden(member.filename):
                    tally.leave_out("member", "hidden", path, member.file_size)
                elif stat.S_ISLNK(member.external_attr >> 16):
                    tally.leave_out("member", "a link or a special file", path)
                else:
                    with _open_zip_member(archive, member) as content:
                        yield from _unpack(content, path, PurePosixPath(path).suffix, depth, tally)


def _open_zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    if member.compress_type == zipfile.ZIP_LZMA:
        raise Damaged("a zip compressed with LZMA is not supported, because its use of memory has no limit")
    try:
        return archive.open(member)
    except RuntimeError as error:  # it is encrypted, or uses a compression method that zipfile does not support
        raise Damaged(str(error)) from error


def _read_tar(file, name: str, depth: int, tally: Tally) -> Iterator[bytes]:
    blocks = _TarBlocks(file)
    with tarfile.open(fileobj=blocks, mode="r|", bufsize=TAR_BLOCK) as archive:  # ty: ignore[no-matching-overload]
        while (member := blocks.next_member(archive)) is not None:
            path = f"{name}/{member.name}"
            if member.isdir():
                continue
            if not member.isfile():
                tally.leave_out("member", "a link or a special file", path)
                continue
            content = archive.extractfile(member)
            assert content is not None  # it is a file
            if _is_hidden(member.name):
                tally.leave_out("member", "hidden", path, member.size)
                for _ in read_pieces(content):
                    pass
            else:
                yield from _unpack(content, path, PurePosixPath(path).suffix, depth, tally)

    # tarfile takes a damaged header for the end
    if blocks.last != bytes(TAR_BLOCK):
        raise Damaged("the archive has no end")
    for piece in read_pieces(file):
        if piece.strip(b"\0"):
            raise Damaged("something follows the end of the archive")


class _TarBlocks:
    """Reads a tar block by block, remembers the last block, and limits the bytes between two members."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.last = b""
        self.header_bytes: int | None = 0  # None while a member is read

    def read(self, size: int) -> bytes:
        self.last = self.file.read(size)
        if self.header_bytes is not None:
            self.header_bytes += size
            if self.header_bytes > MAX_TAR_HEADER:
                raise Damaged(f"a header has more than {MAX_TAR_HEADER:,} bytes")
        return self.last

    def next_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo | None:
        """The next member; None at the end. The one before it must have been read to its end."""
        self.header_bytes = 0
        member = archive.next()
        self.header_bytes = None
        archive.members = []  # ty: ignore[missing-attribute] # tarfile keeps them all
        return member


# Read a packed file with many members, by its kind.
ARCHIVES: dict[str, Callable[[IO[bytes], str, int, Tally], Iterator[bytes]]] = {"zip": _read_zip, "tar": _read_tar}
