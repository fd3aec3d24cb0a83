"""Packed files are recognised by their first bytes, unpacked in bounded memory, and refused when they are damaged."""

import bz2
import gzip
import io
import lzma
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data.report import Tally
from data.unpack import PIECE_BYTES, unpack
from tests.conftest import ROOT
from utils import UserError

TEXT = b"".join(b"line %d of a small corpus\n" % i for i in range(2000))


def zip_of(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def tar_of(members: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=kind) as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return packed.getvalue()


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


HALF = len(TEXT) // 2
HALVES = {"a.txt": TEXT[:HALF], "b.txt": TEXT[HALF:]}
SKIPPED = b"\x50\x2a\x4d\x18" + struct.pack("<I", 5) + b"notes"  # a frame of zstd that holds no text
PACKED = {
    "gz": gzip.compress(TEXT),
    "gz, two members": gzip.compress(TEXT[:HALF]) + gzip.compress(TEXT[HALF:]),
    "bz2": bz2.compress(TEXT),
    "bz2, two streams": bz2.compress(TEXT[:HALF]) + bz2.compress(TEXT[HALF:]),
    "xz": lzma.compress(TEXT),
    "xz, two streams": lzma.compress(TEXT[:HALF]) + bytes(8) + lzma.compress(TEXT[HALF:]),
    "lzma": lzma.compress(TEXT, format=lzma.FORMAT_ALONE),
    "zst": zstd(TEXT),
    "zst, two frames": SKIPPED + zstd(TEXT[:HALF]) + SKIPPED + zstd(TEXT[HALF:]),
    "zip": zip_of(HALVES),
    "zip, stored": zip_of(dict(reversed(HALVES.items())), zipfile.ZIP_STORED),
    "tar": tar_of(HALVES),
    "tar, long names": tar_of({"ä" * 90 + "/" + "b" * 90: TEXT}, tarfile.GNU_FORMAT),
    "tar.gz": gzip.compress(tar_of(HALVES)),
    "tar.bz2": bz2.compress(tar_of(HALVES)),
    "tar.xz": lzma.compress(tar_of(HALVES)),
    "tar.zst": zstd(tar_of(HALVES)),
    "zip in zip": zip_of({"a.zip": zip_of(HALVES)}),
    "gz in zip": zip_of({"a.gz": gzip.compress(TEXT[:HALF]), "b": gzip.compress(TEXT[HALF:])}),
    "tar.gz in zip": zip_of({"a.tgz": gzip.compress(tar_of(HALVES))}),
    "zip in tar.gz": gzip.compress(tar_of({"a": zip_of(HALVES)})),
}


def read(path) -> bytes:
    return b"".join(unpack(path))


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", ["notes.txt", "X.GZ", "x.tgz", "x"])
def test_packed_files_are_recognised_whatever_their_names(tmp_path, kind, name):
    (tmp_path / name).write_bytes(PACKED[kind])
    assert read(tmp_path / name) == TEXT


def test_a_tar_of_before_1988_is_recognised_by_its_checksum(tmp_path):
    header = bytearray(tar_of({"a": TEXT}, tarfile.USTAR_FORMAT))
    header[257:500] = bytes(243)  # the magic, and all that came with it
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    (tmp_path / "x").write_bytes(header)
    assert read(tmp_path / "x") == TEXT


BEGINNINGS = [
    b"BZh9",
    b"BZh91AY&S",
    b"PK",
    b"PK\n\n",
    b"\x1f\x8b",
    b"LZIP",
    b"7z",
    b"Rar!",
    b"ustar",
    b"\xfd7zX",
    b"P*M",
]


@given(beginning=st.sampled_from(BEGINNINGS) | st.text(max_size=9).map(str.encode), rest=st.binary(max_size=99))
def test_other_files_are_read_as_they_are(tmp_path_factory, beginning, rest):
    path = tmp_path_factory.getbasetemp() / "other"
    path.write_bytes(beginning + b"text" + rest)
    assert read(path) == beginning + b"text" + rest


@pytest.mark.parametrize("kind", PACKED)
def test_damage_is_found_and_named(tmp_path, kind):
    """Cut short, with bytes appended, or with one bit flipped: the same text, or an error that names the file."""
    draw = random.Random(kind)
    path = tmp_path / "x.gz"
    for trial in range(30):
        damaged = bytearray(PACKED[kind])
        if trial % 3 == 0:
            damaged = damaged[: draw.randrange(1, len(damaged))]
        elif trial % 3 == 1:
            damaged += b"more"
        else:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            text = read(path)
        except UserError as error:
            assert str(error).startswith(f"data.path: {path}")
        else:  # the contents of a plain tar and of .lzma have no checksums
            assert text == TEXT or (trial % 3 == 2 and kind in ("lzma", "tar", "tar, long names"))


@pytest.mark.parametrize(("content", "reason"), [
    (b"no gzip", "is damaged or cut short .its name ends in .gz, but its first bytes"),
    (bz2.compress(TEXT) + bz2.compress(TEXT).replace(b"BZh", b"BZx"), "is damaged or cut short"),
    (tar_of(HALVES)[:-20000], "is damaged or cut short"),
    (tar_of({"a": TEXT}) + tar_of({"b": TEXT}), "is damaged or cut short .something follows the end"),
    (tar_of({"a": bytes(512)})[:1024], "is damaged or cut short .the archive has no end"),
    (b"7z\xbc\xaf\x27\x1c\0\4", "is packed with 7z, allowed: gzip, bzip2, "),
    (b"Rar!\x1a\x07\1\0", "is packed with rar, "),
    (b"\x04\x22\x4d\x18" + bytes(99), "is packed with lz4, "),
    (b"\x1f\x9d\x90ab", "is packed with compress, "),
    (zip_of({"a": TEXT}, zipfile.ZIP_LZMA), "zip compressed with LZMA is not supported"),
    (zip_of({"b/c.rar": b"Rar!\x1a\x07\1\0"}), "/b/c.rar is packed with rar, "),
])  # fmt: skip
def test_what_cannot_be_unpacked_is_refused(tmp_path, content, reason):
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(UserError, match=rf"data.path: .*x.gz.*{reason}"):
        read(tmp_path / "x.gz")


def test_files_packed_many_times_over_are_refused(tmp_path):
    path = tmp_path / "x"
    content = TEXT
    for depth in range(1, 6):
        content = gzip.compress(content)
        path.write_bytes(content)
        if depth <= 4:
            assert read(path) == TEXT
        else:
            with pytest.raises(UserError, match="x is packed inside 4 packed files; unpack it first"):
                read(path)


def test_hidden_members_and_links_are_left_out_and_counted(tmp_path):
    members = {"__MACOSX/._a": b"junk", "._a": b"junk", "sub/.DS_Store": b"junk", "./a": TEXT, ".git/config": b"junk"}
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    packed = io.BytesIO(zip_of(members))
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(link, "a")
    (tmp_path / "x.zip").write_bytes(packed.getvalue())

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            header = tarfile.TarInfo(f"kind {kind!r}")
            header.type, header.linkname = kind, "a"
            archive.addfile(header)
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    (tmp_path / "x.tar").write_bytes(packed.getvalue())

    for name, links in {"x.zip": 1, "x.tar": 3}.items():
        tally = Tally()
        assert b"".join(unpack(tmp_path / name, tally)) == TEXT
        counts = {each.reason: (each.count, each.bytes) for each in tally.report().left_out}
        assert counts == {"hidden": (4, 16), "a link or a special file": (links, 0)}


def test_members_with_the_same_name_are_all_read(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a", TEXT[:HALF])
        archive.writestr("a", TEXT[HALF:])
    (tmp_path / "x.zip").write_bytes(packed.getvalue())
    assert read(tmp_path / "x.zip") == TEXT


# -- memory


def bomb(kind: str, size: int) -> bytes:
    """A small file of which unpacking makes `size` zeros, or a library asks for as much memory."""
    zeros = bytes(size)
    if kind == "xz":  # claims a dictionary of 1.5 GiB in the header of its block
        packed = bytearray(lzma.compress(zeros, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 4096}]))
        end = 12 + 4 * packed[12]
        packed[16] = 39
        packed[end : end + 4] = struct.pack("<I", zlib.crc32(packed[12:end]))
        return bytes(packed)
    if kind == "lzma":  # the same
        packed = bytearray(lzma.compress(zeros, format=lzma.FORMAT_ALONE, preset=0))
        packed[1:5] = struct.pack("<I", 3 << 29)
        return bytes(packed)
    if kind == "long window":
        settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=30, enable_ldm=True)
        compressor = zstandard.ZstdCompressor(compression_params=settings).compressobj()  # it does not know the size
        return compressor.compress(zeros) + compressor.flush()
    if kind == "tar header":  # tarfile keeps these texts in memory
        header = tarfile.TarInfo("header")
        header.type, header.size = tarfile.XHDTYPE, size
        return gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) + zeros, 1)
    packers = {
        "gz": lambda text: gzip.compress(text, 1),
        "bz2": lambda text: bz2.compress(text, 1),
        "zst": zstd,
        "zip": lambda text: zip_of({"a": text}),
        "tar.gz": lambda text: gzip.compress(tar_of({"a": text}), 1),
    }
    return packers[kind](zeros)


@pytest.mark.parametrize("kind", ["gz", "bz2", "zst", "zip", "tar.gz"])
def test_pieces_are_small(tmp_path, kind):
    (tmp_path / "x").write_bytes(bomb(kind, 40 * PIECE_BYTES))
    sizes = [len(piece) for piece in unpack(tmp_path / "x")]
    assert max(sizes) <= PIECE_BYTES and sum(sizes) == 40 * PIECE_BYTES


@pytest.mark.parametrize("kind", ["xz", "lzma", "long window", "tar header"])
def test_a_file_that_asks_for_too_much_memory_is_refused(tmp_path, kind):
    (tmp_path / "x").write_bytes(bomb(kind, 40 * PIECE_BYTES))
    reason = "a header has more than 1,048,576 bytes" if kind == "tar header" else "dictionary of 256 MiB at most"
    with pytest.raises(UserError, match=rf"data.path: .*x .*{reason}"):
        read(tmp_path / "x")


UNPACK_ALL = """
import resource, sys
from pathlib import Path
from data.unpack import unpack
import pyarrow
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in map(Path, sys.argv[1:]):
    try:
        size = sum(len(piece) for piece in unpack(path))
    except ValueError as error:
        size = str(error)
    print(path.name, size)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_bounded(tmp_path):
    """Each file unpacks to 96 MiB, or asks for as much."""
    kinds = ["zst", "tar.gz", "tar header"]
    for kind in kinds:
        (tmp_path / kind).write_bytes(bomb(kind, 96 << 20))
    paths = [str(tmp_path / kind) for kind in kinds]
    done = subprocess.run([sys.executable, "-c", UNPACK_ALL, *paths], cwd=ROOT, capture_output=True, text=True)
    *lines, grown = done.stdout.splitlines()
    assert lines[:2] == [f"zst {96 << 20}", f"tar.gz {96 << 20}"], done.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(grown) * unit < 48 << 20
