"""Open corpora of drawn files, folders and datasets.

    python -m tests.stress.fuzz_readers --minutes 5 --seed 0
    python -m tests.stress.fuzz_readers --seed 0 --case 1234     # one case again; its files are kept

A case is one of two:
- a tree of files for data.name=files: packed and nested, rightly and wrongly named, hidden, linked, forbidden, special,
  damaged, growing a thousandfold when unpacked, with names that no shell likes;
- a file for data.name=hub: nulls, numbers, lists, blank cells, of several formats, packed, damaged.
It is opened in a process of its own; then again from the cache, which is damaged in some cases.

What must hold: a corpus or a UserError, within a minute and 1 GiB of memory; a UserError only where a file is damaged
or packed in a way that is not promised; a corpus holds every readable file's content exactly once, nothing else, and
its report accounts for every file, link and row; the second opening gives the same bytes.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import shutil
import socket
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from tests.stress.report import Fault, Report, case_numbers, fuzzing_parser
from tests.stress.worker import MAX_MEMORY, Worker
from utils.files import sha256

SECONDS = 60
NAMES = ["data[1]", "[a-z]", "*", "?", "**", " ", "a b", "line\nbreak", "\x1b[31mred", "-rf", "#1", "~", "&a"]
NAMES += ["ü€𝄞", "x" * 200, "\udcff\udcfe", "\u202egnp", "{a,b}", "$HOME", "%s", "'", '"', "null", "Thumbs.db"]
NAMES += ["a.b.c"]

# A content as pieces: bytes, or a number of zeros, which may be too many to keep in memory.
Content = tuple[bytes | int, ...]


@dataclass
class File:
    """A regular file that was made."""

    path: Path
    alternatives: list[list[Content]]
    """what it may add to the corpus: all contents of one of these, in any order"""
    is_hidden: bool = False
    is_forbidden: bool = False


@dataclass
class Case:
    """What to open, and what has to come out."""

    config: dict[str, Any]
    files: list[File] = field(default_factory=list)
    links: int = 0
    """all symbolic links"""
    special: int = 0
    """pipes and sockets"""
    rows: int | None = None
    """rows of a dataset"""
    may_fail: str = ""
    """why a UserError is allowed"""
    is_uncertain: bool = False
    """whether nobody can say what a damaged file gives; then only memory, time and exceptions count"""
    is_whole_tree: bool = True
    """whether the path is that of the whole tree, so that the report accounts for all of it"""


# -- contents


class Contents:
    """Draws contents that begin and end with a line of their own, so that each is found in a corpus."""

    def __init__(self, chance: random.Random):
        self.chance, self.number = chance, 0

    def text(self) -> bytes:
        self.number += 1
        kind = self.chance.choice(["words", "words", "bytes", "zeros", "long"])
        middle = {
            "words": lambda: b"all that is read is read once\n" * self.chance.randint(0, 20),
            "bytes": lambda: self.chance.randbytes(self.chance.randint(0, 500)),
            "zeros": lambda: bytes(self.chance.choice([1, 511, 512, 513, 10240])),
            "long": lambda: b"0123456789abcde\n" * self.chance.choice([65_535, 65_536, 65_537]),  # about PIECE_BYTES
        }[kind]()
        return b"<file %d begins>" % self.number + middle + b"<file %d ends>\n" % self.number

    def packed(self, depth: int) -> tuple[bytes, str, list[Content]]:
        """A packed file, the end of its name, and what is in it. Its members may be packed as well."""
        kind = self.chance.choice(["gz", "bz2", "xz", "lzma", "zst", "zip", "tar"])
        if kind not in ("zip", "tar"):
            inner, suffix, contents = self.inner(depth)
            return PACK[kind](inner), f"{suffix}.{kind}", contents

        members = []
        contents = []
        for i in range(self.chance.randint(0, 4)):
            inner, suffix, parts = self.inner(depth)
            folder = self.chance.choice(["", "", "sub/", "__MACOSX/", ".hidden/", "__MACOSX/sub/._"])
            members.append((f"{folder}{i}{suffix or '.txt'}", inner))
            if not folder or folder == "sub/":
                contents += parts
        archive = zip_of(members, self.chance) if kind == "zip" else tar_of(members, self.chance)
        return archive, f".{kind}", contents

    def inner(self, depth: int) -> tuple[bytes, str, list[Content]]:
        """What is inside a packed file: plain, or packed again."""
        if depth > 0 and self.chance.random() < 0.3:
            return self.packed(depth - 1)
        text = self.text()
        return text, "", [(text,)]


def pack_zst(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
    "zst": pack_zst,
}


def zip_of(members: list[tuple[str, bytes]], chance: random.Random) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(
        file, "w", chance.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2])
    ) as archive:
        archive.writestr("folder/", b"")
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def tar_of(members: list[tuple[str, bytes]], chance: random.Random) -> bytes:
    file = io.BytesIO()
    style = chance.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    with tarfile.open(fileobj=file, mode="w", format=style) as archive:
        # no file without a member: of an empty tar, only zeros are left
        for name, kind in (("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE), ("pipe", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else ""
            archive.addfile(info)
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


@cache
def bomb(kind: str, megabytes: int) -> bytes:
    """A small file that unpacks to many zeros: of one frame (zst, zip), or of many after one another."""
    million = bytes(1_000_000)
    if kind == "zst":
        compressor = zstandard.ZstdCompressor(write_checksum=True).compressobj()
        return b"".join(compressor.compress(million) for _ in range(megabytes)) + compressor.flush()
    if kind == "zip":
        file = io.BytesIO()
        with (
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("0", "w") as member,
        ):
            for _ in range(megabytes):
                member.write(million)
        return file.getvalue()
    return PACK[kind](million) * megabytes


def with_large_dictionary(kind: str, content: bytes) -> bytes:
    """A packed file whose header asks for 2 or 4 GiB of memory."""
    packed = bytearray(PACK[kind](content))
    if kind == "lzma":
        packed[1:5] = (1 << 31).to_bytes(4, "little")
    if kind == "xz":  # the header of a block: size, flags, filter 0x21, size of its properties, dictionary; then a crc
        size = (packed[12] + 1) * 4
        assert packed[14:16] == b"\x21\x01"
        packed[16] = 40
        packed[12 + size - 4 : 12 + size] = zlib.crc32(packed[12 : 12 + size - 4]).to_bytes(4, "little")
    return bytes(packed)


def zst_with_large_window() -> bytes:
    """A zstd frame of one empty block whose header asks for a window of 2 GiB."""
    return b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([21 << 3]) + b"\x01\x00\x00"


# -- trees of files


def draw_tree(folder: Path, chance: random.Random) -> Case:
    """Make files, links and folders, and say what has to be read of them."""
    contents = Contents(chance)
    root = folder / (chance.choice(NAMES) if chance.random() < 0.3 else "tree")
    root.mkdir()
    case = Case({"name": "files", "path": str(root)})
    folders = [root]
    for _ in range(chance.randint(0, 3)):
        folders.append(new_path(chance.choice(folders), chance, chance.choice(["", "."])))
        folders[-1].mkdir()

    kinds = ["plain", "plain", "packed", "packed", "packed", "empty"]
    if chance.random() < 0.4:
        kinds += ["damaged", "misnamed", "greedy"]
    for _ in range(chance.randint(1, 8)):
        add_file(case, chance.choice(kinds), chance.choice(folders), root, contents, chance)
    if chance.random() < 0.06:
        add_bomb(case, root, chance)
    for _ in range(chance.choice([0, 0, 1, 3])):
        add_link(case, chance.choice(folders), folder, chance)
    for _ in range(chance.choice([0, 0, 0, 2])):
        path = new_path(chance.choice(folders), chance)
        os.mkfifo(path) if chance.random() < 0.5 else make_socket(path)
        case.special += 1
    if len(folders) > 1 and chance.random() < 0.1:
        forbid(case, chance.choice(folders[1:]))
    choose_path(case, root, chance)
    if not any(is_read(file) and any(file.alternatives) for file in case.files):
        case.may_fail = "nothing to read"
    return case


def new_path(folder: Path, chance: random.Random, prefix: str = "", suffix: str = "") -> Path:
    """A path in a folder that does not exist yet."""
    while True:
        name = chance.choice(NAMES) if chance.random() < 0.3 else f"{chance.randrange(1000)}"
        path = folder / f"{prefix}{name}{suffix}"
        if not os.path.lexists(path) and name.strip("."):
            return path


def add_file(case: Case, kind: str, folder: Path, root: Path, contents: Contents, chance: random.Random) -> None:
    """Add a regular file, perhaps with a wrong name, hidden, forbidden, or linked a second time.

    Kinds: plain; packed; empty; damaged: packed, then damaged; misnamed: plain, with the name of a packed file; greedy:
    packed, and asks for much memory.
    """
    suffix = chance.choice([".txt", "", ".md", ".TXT"])
    alternatives: list[list[Content]] = []
    if kind in ("plain", "misnamed"):
        content = contents.text()
        alternatives = [[(content,)]]
        if kind == "misnamed":
            suffix = chance.choice([".gz", ".zip", ".XZ", ".tgz", ".tar"])
            case.may_fail = "plain text with the name of a packed file"
    elif kind == "empty":
        content = b""
    elif kind == "greedy":
        which = chance.choice(["xz", "lzma", "zst"])
        text = contents.text()
        content = zst_with_large_window() if which == "zst" else with_large_dictionary(which, text)
        alternatives = [[]] if which == "zst" else [[(text,)]]
        case.may_fail = "a header that asks for much memory"
    else:
        content, right, parts = contents.packed(depth=2)
        suffix = chance.choice([right, right, right.upper(), suffix])
        alternatives = [parts]
        if kind == "damaged":
            content = damaged(content, chance)
            alternatives = [parts, [(content,)]]  # if its first bytes are damaged, it may be taken for plain text
            case.may_fail = "a damaged file"
            case.is_uncertain |= "tar" in right or "zip" in right  # a flip may change names there, or be in padding
    path = new_path(folder, chance, chance.choice(["", "", "", "", "."]), suffix)
    path.write_bytes(content)
    parts_of_name = path.relative_to(root).parts
    file = File(path, alternatives if content else [[]], is_hidden=any(part.startswith(".") for part in parts_of_name))
    if chance.random() < 0.05:
        path.chmod(0)
        file.is_forbidden = True
    case.files.append(file)
    if chance.random() < 0.1 and not file.is_forbidden:
        second = new_path(root, chance, "", suffix)
        os.link(path, second)
        case.files.append(File(second, file.alternatives))


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A file with a bit flipped, cut short, or with something after its end. An empty one stays as it is."""
    if not content:
        return content
    how = chance.choice(["flipped", "cut", "longer"])
    position = chance.randrange(len(content))
    if how == "cut":
        return content[:position]
    if how == "longer":
        return content + chance.randbytes(chance.randint(1, 600))
    flipped = bytearray(content)
    flipped[position] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def add_bomb(case: Case, folder: Path, chance: random.Random) -> None:
    kind = chance.choice(["gz", "xz", "bz2", "zst", "zip"])
    megabytes = {"zst": 2000, "zip": 300}.get(kind, chance.choice([300, 700]))
    path = folder / f"bomb.{kind}"
    path.write_bytes(bomb(kind, megabytes))
    case.files.append(File(path, [[(megabytes * 1_000_000,)]]))


def add_link(case: Case, folder: Path, outside: Path, chance: random.Random) -> None:
    """Add a symbolic link: to a file that is read anyway, to a folder, to a folder above, to itself or to nothing."""
    path = new_path(folder, chance)
    files = [file for file in case.files if is_read(file)]
    targets = [folder, folder.parent, outside, path, outside / "nothing"] + [file.path for file in files]
    path.symlink_to(chance.choice(targets))
    case.links += 1


def make_socket(path: Path) -> None:
    """Bind a socket from within its folder, since the path of a socket may not be long."""
    before = Path.cwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fsencode(path.name)[:100])
    os.chdir(before)


def forbid(case: Case, folder: Path) -> None:
    """Take away the permission for a folder. Nobody can say what is in it."""
    folder.chmod(0)
    case.files = [file for file in case.files if folder not in file.path.parents]
    case.is_whole_tree = False
    case.is_uncertain = True  # a link may lead into it, or a hard link out of it


def choose_path(case: Case, root: Path, chance: random.Random) -> None:
    """The path to open: the tree, a pattern that stands for all of it, or one file."""
    kind = chance.choice(["tree", "tree", "slash", "stars", "file"])
    candidates = [file for file in case.files if is_read(file) and file.alternatives]
    if kind == "slash":
        case.config["path"] += "/"
    elif kind == "stars" and root.name == "tree" and not os.path.lexists(root / "**"):
        case.config["path"] += "/**"
    elif kind == "file" and candidates:
        file = chance.choice(candidates)
        case.config["path"] = str(file.path)
        case.files, case.links, case.special = [file], 0, 0


def is_read(file: File) -> bool:
    return not file.is_hidden and not file.is_forbidden


# -- datasets


def draw_dataset(folder: Path, chance: random.Random) -> Case:
    """Make a file or a folder for the hub's reader, and say what has to be read of it."""
    name = chance.choice(["data", *NAMES[:12]]) if chance.random() < 0.3 else "data"
    kind = chance.choice(["jsonl", "json", "csv", "parquet", "txt"])
    values = draw_values(chance, kind)
    content = DATASETS[kind](values, chance)
    case = Case({"name": "hub", "column": "text"})
    suffix = chance.choice([f".{kind}", f".{kind}", f".{kind.upper()}"])
    if kind in ("jsonl", "csv", "txt") and chance.random() < 0.3:
        content, suffix = gzip.compress(content), f"{suffix}.gz"
        if set(name) & set("*?["):
            case.may_fail = "a packed file whose name is a pattern"
    if chance.random() < 0.15:
        content = damaged(content, chance)
        case.may_fail, case.is_uncertain = "a damaged file", True
    path = folder / f"{name}{suffix}"
    path.write_bytes(content)
    case.config["path"] = str(path)
    if kind != "txt" and chance.random() < 0.1:
        case.config["column"] = chance.choice(["", "txt", "\x1b[31m", "text\n"])
        case.may_fail, case.is_uncertain = "no such column", True

    texts = [value for value in values if value]
    if not all(value is None or isinstance(value, str) for value in values):
        case.may_fail = "a column that is no text"
    if not texts:
        case.may_fail, case.is_uncertain = "no text", True
    case.rows = len(values)
    case.files = [File(path, [[("".join(f"{text}\n" for text in map(str, texts)).encode(),)]])]
    return case


def draw_values(chance: random.Random, kind: str) -> list:
    """The values of a column: text with nulls, or now and then something else."""
    words = ["", "ü€𝄞", "NA", "null", "a, b", 'quote" inside']
    texts = [f"row {i} {chance.choice(words)}." for i in range(chance.randint(0, 30))]
    if kind == "txt":
        return texts
    values: list[Any] = [None if chance.random() < 0.2 else text for text in texts]
    if kind != "csv" and chance.random() < 0.2:
        odd = chance.choice([[1, 2], {"a": 1}, 7, 1.5, True, [["a"]]])
        values = [odd for _ in values] if chance.random() < 0.5 else [*values, odd]
    return values


def to_jsonl(values: list, chance: random.Random) -> bytes:
    return "".join(json.dumps({"n": i, "text": value}) + "\n" for i, value in enumerate(values)).encode()


def to_json(values: list, chance: random.Random) -> bytes:
    return json.dumps([{"n": i, "text": value} for i, value in enumerate(values)]).encode()


def to_csv(values: list, chance: random.Random) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["n", "text"])
    writer.writerows([i, "" if value is None else value] for i, value in enumerate(values))
    return file.getvalue().encode()


def to_parquet(values: list, chance: random.Random) -> bytes:
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    try:
        table = pyarrow.table({"n": range(len(values)), "text": values})
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):  # values of several types
        table = pyarrow.table({"n": range(len(values)), "text": [str(value).encode() for value in values]})
        values[:] = [str(value) for value in values]
    parquet.write_table(table, file)
    return file.getvalue()


def to_txt(values: list, chance: random.Random) -> bytes:
    return "".join(f"{value}\n" for value in values).encode()


DATASETS = {"jsonl": to_jsonl, "json": to_json, "csv": to_csv, "parquet": to_parquet, "txt": to_txt}


# -- the process that opens


def prepare() -> None:
    """Import what is imported late, so that its memory is there from the start."""
    import datasets
    import pyarrow.parquet  # noqa: F401

    import data  # noqa: F401

    datasets.disable_progress_bars()


def open_in_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Open a corpus; a dict of what is known of it, or of the UserError."""
    from data import DataConfig, open_corpus
    from utils.errors import UserError

    try:
        corpus = open_corpus(DataConfig(**config))
    except UserError as error:
        return {"error": str(error)}
    report = getattr(corpus, "report", None)
    return {"folder": corpus.folder, "sizes": corpus.sizes, "sha256": corpus.sha256, "report": report}


# -- checks


def check_case(case: Case, cache_dir: Path, worker: Worker, chance: random.Random) -> str:
    """Open a corpus twice, and check what comes out. Returns the outcome in words."""
    config = case.config | {"cache_dir": str(cache_dir)}
    found = opened(config, worker)
    if "error" in found:
        if not case.may_fail:
            raise Fault(f"refused, but nothing is wrong with it: {found['error']}")
        error = found["error"].strip()
        for name in {name for file in case.files for name in file.path.parts}:
            error = error.replace(name, "")  # programs print a newline in a name as another character
        if "\n" in error and case.config["name"] == "files" and "\n" not in case.config["path"]:
            raise Fault(f"more than one line: {found['error']!r}")
        return "refused"

    path = found["folder"] / "bytes.bin"
    if not case.is_uncertain:
        used = contents_of(path, case)
        check_report(found["report"], used, case)
    before = sha256(path)
    if sum(found["sizes"].values()) != path.stat().st_size:
        raise Fault(f"sizes {found['sizes']} of {path.stat().st_size} bytes")

    harm = damage_cache(found["folder"], chance)
    again = opened(config, worker)
    if "error" in again or sha256(again["folder"] / "bytes.bin") != before or again["sha256"] != found["sha256"]:
        raise Fault(f"the second opening, after {harm}, gave other bytes: {again}")
    if again["report"] != found["report"] and harm == "nothing":
        raise Fault(f"the second opening reports {again['report']}, not {found['report']}")
    return "corpus"


def opened(config: dict[str, Any], worker: Worker) -> dict[str, Any]:
    """What a worker says of a corpus. Raises a Fault on an exception, and on too much time or memory."""
    answer = worker.call(config, SECONDS)
    if answer.traceback is not None:
        raise Fault(answer.traceback)
    if answer.peak_bytes > MAX_MEMORY:
        worker.stop()  # its peak would count for the next case as well
        raise Fault(f"{answer.peak_bytes >> 20} MiB of memory")
    return answer.result


def contents_of(path: Path, case: Case) -> list[File]:
    """The files whose contents a corpus holds. Raises a Fault unless it is all of them, once each, and nothing else."""
    corpus = np.memmap(path, np.uint8, "r")
    files = one_of_each([file for file in case.files if is_read(file)])
    possible = {content for file in files for parts in file.alternatives for content in parts}
    counts = dict.fromkeys(possible, 0)
    position = 0
    while position < len(corpus):
        fitting = [content for content in possible if begins_with(corpus, position, content)]
        if not fitting:
            raise Fault(
                f"at byte {position:,} of {len(corpus):,}: {corpus[position:][:80].tobytes()!r} is no file's content"
            )
        content = max(fitting, key=length_of)
        counts[content] += 1
        position += length_of(content)

    used = []
    for file in files:
        fitting = [parts for parts in file.alternatives if all(counts[content] == 1 for content in parts)]
        if not fitting:
            times = [[counts[content] for content in parts] for parts in file.alternatives]
            raise Fault(f"the contents of {file.path} are there {times} times, not once")
        if any(fitting):
            used.append(file)
    return used


def one_of_each(files: list[File]) -> list[File]:
    """The files without second names."""
    return list({file.path.stat().st_ino: file for file in reversed(files)}.values())


def length_of(content: Content) -> int:
    return sum(piece if isinstance(piece, int) else len(piece) for piece in content)


def begins_with(corpus: np.ndarray, position: int, content: Content) -> bool:
    for piece in content:
        size = piece if isinstance(piece, int) else len(piece)
        found = corpus[position : position + size]
        if len(found) != size or not size:
            return False
        if isinstance(piece, int):
            if any(part.any() for part in np.array_split(found, size // (1 << 24) + 1)):
                return False
        elif found.tobytes() != piece:
            return False
        position += size
    return True


def check_report(report: Any, used: list[File], case: Case) -> None:
    """Check that a report accounts for all: what was read and what was left out add up to what there is."""
    if report is None:
        raise Fault("the corpus has no report")
    left_out: dict[str, int] = {}
    for each in report.left_out:
        left_out[each.unit] = left_out.get(each.unit, 0) + each.count

    if case.rows is not None:
        counted = report.rows + left_out.get("row", 0)
        if counted != case.rows:
            raise Fault(f"the report counts {counted} rows of {case.rows}: {report}")
        return
    if report.files != len(used):
        raise Fault(f"the report says that {report.files} files were read, not {len(used)}: {report}")
    if report.bytes != sum(file.path.stat().st_size for file in used):
        raise Fault(f"the report says that {report.bytes} bytes were read: {report}")
    if not case.is_whole_tree:
        return
    counted = {
        "file": report.files + left_out.get("file", 0),
        "link": left_out.get("link", 0),
        "special file": left_out.get("special file", 0),
    }
    there = {"file": len(case.files), "link": case.links, "special file": case.special}
    if counted != there:
        raise Fault(f"the report accounts for {counted}, there is {there}: {report}")
    size = report.bytes + sum(each.bytes for each in report.left_out if each.unit == "file")
    if size != sum(file.path.stat().st_size for file in case.files):
        raise Fault(f"the report accounts for {size} bytes: {report}")


def damage_cache(folder: Path, chance: random.Random) -> str:
    """Damage a corpus in the cache, in about half of the cases. Returns in words what was done."""
    file = folder / chance.choice(["bytes.bin", "corpus.json"])
    how = chance.choice(["nothing", "nothing", "flipped", "cut", "deleted", "emptied", "filled with []"])
    content = bytearray(file.read_bytes()) if file.stat().st_size < 1 << 24 else bytearray(1)
    if how == "flipped":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
    elif how == "cut":
        file.write_bytes(content[: chance.randrange(len(content))])
    elif how == "deleted":
        file.unlink()
    elif how == "emptied":
        file.write_bytes(b"")
    elif how == "filled with []":
        file.write_bytes(b"[]")
    return f"{file.name} was {how}" if how != "nothing" else "nothing was changed"


# -- the program


def make_readable(folder: Path) -> None:
    """Give back the permissions that cases took away, so that their files can be deleted."""
    for path in [*folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)


def main(argv: list[str] | None = None) -> int:
    args = fuzzing_parser(__doc__).parse_args(argv)

    report = Report("fuzz_readers", args.seed)
    folder = Path(tempfile.mkdtemp(prefix="readers-"))
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "OMP_NUM_THREADS": "1"}
    worker = Worker(open_in_worker, prepare)
    for number in case_numbers(args, report):
        chance = random.Random(f"{args.seed}-{number}")
        here = folder / str(number)
        here.mkdir()
        draw = draw_tree if chance.random() < 0.85 else draw_dataset
        case = draw(here, chance)
        title = f"case {number}, {case.config['name']} {case.config['path']!r}"
        try:
            report.passed(title, check_case(case, folder / "cache", worker, chance), show=args.case is not None)
        except Fault as fault:
            files = "\n".join(sorted(ascii(str(path.relative_to(here))) for path in here.rglob("*")))
            report.failed(title, f"{fault}\nconfig: {case.config}\nmay fail: {case.may_fail or 'no'}\nfiles:\n{files}")
        if args.case is None:
            make_readable(here)
            shutil.rmtree(here)
            shutil.rmtree(folder / "cache", ignore_errors=True)
    worker.stop()
    if args.case is None:
        shutil.rmtree(folder)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
