"""A path, folder or pattern stands for each of its files once, and all that is left out is reported."""

import functools
import gzip
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataConfig, open_corpus
from data.store import Corpus
from tests.data.test_corpora import all_bytes
from utils import UserError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    return folder


@pytest.fixture
def read(tmp_path):
    """Open the files of a path, with a cache of its own."""
    return functools.partial(read_files, cache=tmp_path / "cache")


def read_files(path, cache: Path, **settings) -> Corpus:
    return open_corpus(DataConfig(name="files", path=str(path), cache_dir=str(cache), **settings))


def left_out(corpus: Corpus) -> dict[str, int]:
    """How many were left out, by unit and reason."""
    return {f"{each.unit}: {each.reason}": each.count for each in corpus.report.left_out}


# -- any tree of files


NAMES = st.sampled_from(["a", "b", "c.txt", ".hidden", "[1]", "é"])
KINDS = st.sampled_from(
    ["file", "file", "folder", "packed", "empty", "hard link", "link", "link up", "nowhere", "pipe"]
)
ENTRIES = st.lists(st.tuples(KINDS, st.integers(0, 99), NAMES), max_size=14)


def make_tree(root: Path, entries: list[tuple[str, int, str]]) -> dict[tuple[int, int], bytes]:
    """Make a tree in which each file holds a word of its own; returns the words by device and inode."""
    folders = [root]
    files = []
    words = {}
    for number, (kind, where, name) in enumerate(entries):
        path = folders[where % len(folders)] / name
        if os.path.lexists(path):
            continue
        word = b"<%d>" % number
        if kind == "folder":
            path.mkdir()
            folders.append(path)
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "nowhere":
            path.symlink_to("no such file")
        elif kind == "link up":
            path.symlink_to(folders[where % len(folders)], target_is_directory=True)
        elif kind == "hard link" and files:
            path.hardlink_to(files[where % len(files)])
        elif kind == "link" and files:
            path.symlink_to(files[where % len(files)])
        elif kind in ("file", "packed", "empty"):
            content = b"" if kind == "empty" else word
            path.write_bytes(gzip.compress(word) if kind == "packed" else content)
            files.append(path)
            words[identity(path)] = content
    return words


def identity(path: Path) -> tuple[int, int]:
    return path.stat().st_dev, path.stat().st_ino


@settings(max_examples=50)
@given(entries=ENTRIES, ending=st.sampled_from(["", "/", "/**"]))
def test_every_byte_of_a_tree_is_read_once_or_reported(entries, ending):
    root = Path(tempfile.mkdtemp())
    try:
        (root / "tree").mkdir()
        words = make_tree(root / "tree", entries)
        check_tree(root / "tree", f"{root / 'tree'}{ending}", root / "cache", words)
    finally:
        shutil.rmtree(root)


def check_tree(tree: Path, typed: str, cache: Path, words: dict[tuple[int, int], bytes]) -> None:
    paths = [Path(folder) / name for folder, _, names in os.walk(tree) for name in names]
    paths += [Path(folder) / name for folder, names, _ in os.walk(tree) for name in names]
    regular = [path for path in paths if path.is_file() and not path.is_symlink()]
    visible = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(tree).parts)]
    to_read = {identity(path) for path in visible if path.is_file()}
    only_linked = to_read - {identity(path) for path in visible if path in regular}
    expected = sorted(words[each] for each in to_read if words[each])
    if not expected:
        with pytest.raises(UserError, match=r"^data\.path: .*(exists|holds no )"):
            read_files(typed, cache)
        return

    corpus = read_files(typed, cache)
    found = sorted(b"<" + word for word in all_bytes(corpus).split(b"<")[1:])
    assert found == expected  # each once

    sizes = {identity(path): path.stat().st_size for path in regular}
    left = [each for each in corpus.report.left_out if each.unit == "file"]
    linked = [sizes[each] for each in only_linked]  # read by the name of a link, while the file itself is hidden
    assert corpus.report.files + sum(each.count for each in left) == len(regular) + len(linked)
    total = sum(path.stat().st_size for path in regular)
    assert corpus.report.bytes + sum(each.bytes for each in left) == total + sum(linked)

    others = sum(each.count for each in corpus.report.left_out if each.unit in ("link", "special file"))
    not_regular = [path for path in paths if path.is_symlink() or not (path.is_file() or path.is_dir())]
    assert others + len(linked) == len(not_regular)
    assert read_files(typed, cache) == corpus  # the cache keeps the report


# -- one of a kind


def test_a_recursive_pattern_reads_each_file_once(folder, read):
    (folder / "sub" / "deep").mkdir(parents=True)
    for name, text in {"a.txt": "aaaa", "sub/b.txt": "bbbb", "sub/deep/c.txt": "cccc"}.items():
        (folder / name).write_text(text)
    for pattern in ("**", "**/*", "**/*.txt", "*", "**/**", "."):
        assert all_bytes(read(folder / pattern)) == b"aaaabbbbcccc", pattern
    assert all_bytes(read(f"{folder}/*/")) == b"bbbbcccc"  # only folders


def test_links_to_folders_are_named_and_not_followed(folder, read):
    (folder / "a.txt").write_text("aaaa")
    for name in "bcdef":  # were they followed, there would be 5 ** 40 paths
        (folder / name).symlink_to(folder, target_is_directory=True)
    for pattern in ("", "**", "**/*", "*"):
        corpus = read(folder / pattern)
        assert all_bytes(corpus) == b"aaaa"
        assert left_out(corpus) == {"link: to a folder, not followed": 5}
    assert f"left out 5 links, to a folder, not followed: {folder / 'b'}, " in corpus.report.lines()[-1]
    assert all_bytes(read(folder / "b" / "a.txt")) == all_bytes(read(folder / "b")) == b"aaaa"  # typed in full


def test_a_new_link_is_reported_although_the_corpus_is_in_the_cache(folder, read):
    (folder / "a.txt").write_text("aaaa")
    first = read(folder)
    (folder / "more").symlink_to(folder.parent, target_is_directory=True)
    assert read(folder).folder == first.folder
    assert left_out(read(folder)) == {"link: to a folder, not followed": 1}


def test_hidden_files_are_counted_also_in_hidden_folders(folder, read):
    (folder / ".git" / "objects").mkdir(parents=True)
    (folder / ".git" / "objects" / "x").write_bytes(bytes(100))
    (folder / ".a").write_bytes(bytes(23))
    (folder / "b").write_text("text")
    (line,) = read(folder).report.lines()[1:]
    assert line == f"left out 2 files (123 bytes), hidden: {folder}/.a, {folder}/.git/objects/x"


@pytest.mark.parametrize("name", ["data[1].txt", "what?.txt", "*.txt", "[!a]", "**"])
def test_a_path_that_exists_is_no_pattern(folder, read, name):
    (folder / "data1.txt").write_text("wrong")
    (folder / "whats.txt").write_text("wrong")
    (folder / "b").write_text("wrong")
    (folder / name).write_text("right")
    assert all_bytes(read(folder / name)) == b"right"
    (folder / name).unlink()
    (folder / name).mkdir()
    (folder / name / "x").write_text("right, too")
    assert all_bytes(read(folder / name)) == b"right, too"


def test_patterns_are_those_of_a_shell(folder, read):
    for name in ("a1.txt", "a2.txt", "b1.txt", ".h1.txt", "a1.md"):
        (folder / name).write_text(f"{name} ")
    assert all_bytes(read(folder / "a?.txt")) == b"a1.txt a2.txt "
    assert all_bytes(read(folder / "[!a]*.txt")) == b"b1.txt "
    assert all_bytes(read(folder / ".h*")) == b".h1.txt "
    assert all_bytes(read(f"{folder}/../texts/*.md")) == b"a1.md "


def test_special_files_are_never_opened(folder, read, monkeypatch):
    os.mkfifo(folder / "pipe")  # to open it would last for ever
    monkeypatch.chdir(folder)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        (folder / "a.txt").write_text("aaaa")
        (folder / "link").symlink_to("pipe")
        corpus = read(folder)
        assert all_bytes(corpus) == b"aaaa"
        assert left_out(corpus) == {"special file: a pipe, socket or device": 3}
        for name in ("pipe", "link", "socket", "/dev/null"):
            with pytest.raises(UserError, match=r"holds no file to read \(left out 1 special file, a pipe, socket or"):
                read(folder / name)


def test_empty_files_and_links_to_nothing_are_counted(folder, read):
    (folder / "a.txt").write_text("aaaa")
    (folder / "empty").touch()
    (folder / "empty.gz").write_bytes(gzip.compress(b""))
    (folder / "loop").symlink_to("loop")
    (folder / "gone").symlink_to("nowhere")
    assert left_out(read(folder)) == {"file: empty": 2, "link: leads nowhere": 2}
    with pytest.raises(UserError, match=r"loop holds no file to read \(left out 1 link, leads nowhere"):
        read(folder / "loop")
    with pytest.raises(UserError, match=r"empty holds no bytes \(left out 1 file, empty"):
        read(folder / "empty")


def test_a_name_with_a_newline_is_one_line(folder, read):
    (folder / "a.txt").write_text("aaaa")
    (folder / ".b\nerror: \x1b[31m").touch()
    (folder / os.fsdecode(b".\xff")).touch()
    lines = read(folder).report.lines()
    assert all(line.isprintable() for line in lines)
    assert r"\nerror: \x1b[31m" in lines[-1] and r"\udcff" in lines[-1]


def test_a_deep_folder_is_read(folder, read):
    depth = min(1100, os.pathconf(folder, "PC_PATH_MAX") // 2 - len(str(folder)))  # more than Python's calls
    paths = [f"{folder}{'/d' * i}" for i in range(1, depth)]
    for path in paths:
        os.mkdir(path)
    try:
        Path(paths[-1], "a.txt").write_text("aaaa")
        assert all_bytes(read(folder)) == b"aaaa"
    finally:  # pytest's own cleaning up calls itself for each folder
        os.remove(f"{paths[-1]}/a.txt")
        for path in reversed(paths):
            os.rmdir(path)


def test_what_may_not_be_read_is_named(unprivileged):
    tree = unprivileged / "tree"
    cache = unprivileged / "cache"
    (tree / "locked").mkdir(parents=True)
    (tree / "listed").mkdir()
    for name in ("a.txt", "b.txt", "locked/c.txt", "listed/d.txt"):
        (tree / name).write_text("aaaa")
    (tree / "b.txt").chmod(0)
    (tree / "locked").chmod(0)
    (tree / "listed").chmod(0o400)  # names can be read, files cannot

    for typed in (tree, tree / "**"):
        corpus = read_files(typed, cache)
        assert all_bytes(corpus) == b"aaaa"
        assert left_out(corpus) == {"file: no permission": 2, "folder: no permission": 1}
    for typed, unit in {"b.txt": "file", "locked": "folder", "listed/d.txt": "file"}.items():
        with pytest.raises(UserError, match=rf"holds no file to read \(left out 1 {unit}.*, no permission"):
            read_files(tree / typed, cache)

    (tree / "b.txt").chmod(0o600)
    assert all_bytes(read_files(tree, cache)) == b"aaaaaaaa"


def test_reading_stops_after_max_bytes(folder, read):
    for name in ("a", "b", "c"):
        (folder / name).write_text(name * 40)
    for size in (1, 39, 40, 41, 80, 119, 120, 121):
        corpus = read(folder, max_bytes=size)
        assert all_bytes(corpus) == (b"a" * 40 + b"b" * 40 + b"c" * 40)[:size]
        files = -(-min(size, 120) // 40)
        after = [each for each in corpus.report.left_out if each.unit == "file"]
        assert (corpus.report.files, sum(each.count for each in after)) == (files, 3 - files)
        assert corpus.report.bytes + sum(each.bytes for each in after) == 120
        cut = left_out(corpus).get("end of a file: after data.max_bytes", 0)
        assert cut == (size % 40 > 0 and size < 120)
    assert all_bytes(read(folder)) == b"a" * 40 + b"b" * 40 + b"c" * 40


@pytest.mark.parametrize(("settings", "message"), [
    ({"name": "files", "path": "x", "max_bytes": 0}, "max_bytes: got 0, allowed: null, or 1 or above"),
    ({"name": "files", "path": "x", "max_bytes": True}, "max_bytes: got true, allowed: null, or 1 or above"),
    ({"name": "enwik8", "max_bytes": 9}, "max_bytes: got 9, allowed: null, because enwik8 is read whole"),
])  # fmt: skip
def test_max_bytes_is_checked(settings, message):
    with pytest.raises(UserError) as error:
        DataConfig(**settings)
    assert str(error.value) == message


def test_the_report_is_kept_with_the_corpus(folder, read):
    (folder / "a.txt").write_text("a" * 100)
    corpus = read(folder)
    assert corpus.report.lines() == ["read 1 file (100 bytes)"]
    assert json.loads((corpus.folder / "corpus.json").read_text())["report"] == corpus.report.to_dict() | {
        "left_out": []
    }
