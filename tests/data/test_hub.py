"""Datasets: only text becomes bytes, what is not read is counted, and streams end at data.max_bytes."""

import bz2
import datetime
import functools
import gzip
import http.server
import json
import lzma
import os
import subprocess
import sys
import threading
import zipfile

import datasets
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataConfig, open_corpus
from tests.conftest import ROOT
from tests.data.test_corpora import all_bytes, stored_in
from tests.data.test_files import left_out
from utils import UserError

ROWS = [f"row {number}: ä" for number in range(50)]
TEXT = "".join(f"{row}\n" for row in ROWS).encode()
JSONL = "".join(json.dumps({"text": row}) + "\n" for row in ROWS).encode()
LIMITS = pytest.mark.parametrize("limit", [None, 10**6], ids=["downloaded", "streamed"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", tmp_path / "hf" / "extracted")


@pytest.fixture
def read(tmp_path):
    return functools.partial(read_dataset, cache=tmp_path / "cache")


def read_dataset(path, cache, **settings):
    return open_corpus(DataConfig(name="hub", path=str(path), cache_dir=str(cache), **settings))


@LIMITS
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "tsv", "json"])
def test_null_and_empty_rows_are_skipped_and_counted(tmp_path, read, kind, limit):
    path = tmp_path / f"rows.{kind}"
    texts = ["a", None, "", "None", None, "NA", "b\nc", "007", "null", " "] * 12
    rows = datasets.Dataset.from_dict({"text": texts, "n": range(len(texts))})
    if kind == "json":
        path.write_text(json.dumps([{"text": text} for text in texts]))
    elif kind in ("csv", "tsv"):
        rows.to_csv(str(path), sep="," if kind == "csv" else "\t")
    else:
        {"parquet": rows.to_parquet, "jsonl": rows.to_json}[kind](str(path))

    corpus = read(path, max_bytes=limit)
    assert all_bytes(corpus) == b"a\nNone\nNA\nb\nc\n007\nnull\n \n" * 12
    nulls = {"row: null": 36} if kind in ("csv", "tsv") else {"row: null": 24, "row: empty": 12}
    assert left_out(corpus) == nulls
    assert corpus.report.lines()[:2] == [f"read 1 file ({path.stat().st_size:,} bytes)", "read 84 rows"]
    assert read(path, max_bytes=limit) == corpus  # from the cache


NO_TEXT = {
    "numbers": [1, 2],
    "fractions": [0.5, None],
    "truths": [True, False],
    "lists": [["a"], ["b"]],
    "dicts": [{"a": "b"}, {"a": "c"}],
    "times": [datetime.datetime(2024, 1, 1), None],
    "nulls": [None, None],
}


@LIMITS
@pytest.mark.parametrize("column", NO_TEXT)
def test_a_column_that_is_no_text_is_refused(tmp_path, read, column, limit):
    datasets.Dataset.from_dict({column: NO_TEXT[column] * 50, "text": ["a"] * 100}).to_parquet(
        str(tmp_path / "x.parquet")
    )
    message = rf"data.column: got {column}, which holds .*, allowed: a column of text or bytes"
    with pytest.raises(UserError, match=message):
        read(tmp_path / "x.parquet", column=column, max_bytes=limit)
    assert stored_in(tmp_path / "cache") == []


@LIMITS
def test_classes_and_mixed_columns_are_refused_and_bytes_are_text(tmp_path, read, limit):
    classes = datasets.Features({"text": datasets.ClassLabel(names=["good", "bad"])})
    datasets.Dataset.from_dict({"text": [0, 1]}, features=classes).to_parquet(str(tmp_path / "classes.parquet"))
    (tmp_path / "mixed.jsonl").write_text('{"text": "a"}\n{"text": 1}\n')
    (tmp_path / "numbers.csv").write_text("text\n1\n\n3\n")
    for name in ("classes.parquet", "mixed.jsonl", "numbers.csv"):
        with pytest.raises(UserError, match=r"data\.column: got text, which holds"):
            read(tmp_path / name, max_bytes=limit)
    datasets.Dataset.from_dict({"text": [b"\xff", None] * 50}).to_parquet(str(tmp_path / "bytes.parquet"))
    assert all_bytes(read(tmp_path / "bytes.parquet", max_bytes=limit)) == b"\xff\n" * 50


def zip_of(content: bytes) -> bytes:
    path = "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.jsonl", content)
    with open(path, "rb") as file:
        return file.read()


FILES = {
    "a.JSONL": lambda text: text,
    "a.jsonl.gz": gzip.compress,
    "a.json.zst": zstandard.compress,
    "a.Jsonl.XZ": lzma.compress,
    "a.jsonl.bz2": bz2.compress,
    "a.jsonl.zip": zip_of,
    "a[1].jsonl": lambda text: text,
    "a*.jsonl": lambda text: text,
    "a?.jsonl": lambda text: text,
    "b[c]/a.jsonl": lambda text: text,
    "config.json": lambda text: text,
}


@LIMITS
@pytest.mark.parametrize("name", FILES)
def test_files_are_found_and_unpacked_whatever_their_names(tmp_path, monkeypatch, read, name, limit):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b[c]").mkdir()
    (tmp_path / "a1.jsonl").write_bytes(JSONL.replace(b"row", b"wrong"))
    (tmp_path / name).write_bytes(FILES[name](JSONL))
    assert all_bytes(read(tmp_path / name, max_bytes=limit)) == TEXT


@LIMITS
def test_a_text_file_is_read_by_lines(tmp_path, read, limit):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a\n\nb\n" * 50))
    corpus = read(tmp_path / "a.txt.gz", max_bytes=limit)
    assert all_bytes(corpus) == b"a\nb\n" * 50
    assert left_out(corpus) == {"row: empty": 50}


def test_other_files_and_folders_with_patterns_are_refused(tmp_path, read):
    (tmp_path / "a.pdf").write_bytes(b"text")
    with pytest.raises(UserError, match=r"data.path: got .*a.pdf, allowed: a name that ends in .jsonl, .*.zst"):
        read(tmp_path / "a.pdf")
    (tmp_path / "d[1]").mkdir()
    (tmp_path / "d[1]" / "a.jsonl").write_bytes(JSONL)
    (tmp_path / "[b].csv.gz").write_bytes(gzip.compress(b"text\nhello\n"))
    for name in ("d[1]", "[b].csv.gz"):
        with pytest.raises(UserError, match=r"data.path: got .*, allowed: a path without \*, \? and \["):
            read(tmp_path / name)


@pytest.mark.parametrize(("name", "content", "reason"), [
    ("bad.txt", b"a\xff\n", "can't decode byte 0xff"),
    ("bad.jsonl", b'{"text": "a"}\n{"text": ', "JSON parse error"),
    ("bad.parquet", b"PAR1", "Parquet"),
    ("bad.jsonl.gz", gzip.compress(JSONL)[:-10], "ended before the end-of-stream marker"),
    ("empty.jsonl", b"", "StopIteration"),
])  # fmt: skip
@LIMITS
def test_the_reason_of_an_error_is_in_its_line(tmp_path, read, name, content, reason, limit):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / name, max_bytes=limit)
    assert reason in str(error.value) or (name == "empty.jsonl" and "holds no bytes" in str(error.value))
    assert "\n" not in str(error.value) and name in str(error.value)


SPLITS = ["train", "valid", "validation", "dev", "test", "extra"]


@settings(max_examples=15)
@given(names=st.sets(st.sampled_from(SPLITS)), limit=st.sampled_from([None, 10**6]))
def test_every_split_is_read_or_reported(tmp_path_factory, names, limit):
    folder = tmp_path_factory.mktemp("dataset")
    files = {name: f"{folder / name}.jsonl" for name in sorted(names)}
    for name, path in files.items():
        datasets.Dataset.from_dict({"text": [name] * 40}).to_json(path)
    card = {"configs": [{"config_name": "default", "data_files": [{"split": n, "path": f"{n}.jsonl"} for n in files]}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    validation = [name for name in ("dev", "valid", "validation") if name in names]
    if "train" not in names:
        with pytest.raises(UserError, match=r"data.path: .* (one named train among them|cannot be loaded|no file)"):
            read_dataset(folder, folder / "cache", max_bytes=limit)
        return

    corpus = read_dataset(folder, folder / "cache", max_bytes=limit)
    if validation and "test" in names:
        expected = ["train", validation[0], "test"]
        assert [corpus[split].tobytes() for split in corpus.sizes] == [f"{name}\n".encode() * 40 for name in expected]
    else:
        expected = ["train"]
        assert all_bytes(corpus) == b"train\n" * 40
    assert corpus.report.rows == 40 * len(expected)
    left = [each for each in corpus.report.left_out if each.unit == "split"]
    reported = {name.partition(" ")[0] for each in left for name in each.names}
    assert reported == names - set(expected) and sum(each.count for each in left) == len(reported)
    assert limit is not None or all("(40 rows)" in name for each in left for name in each.names)


def test_a_stream_ends_at_max_bytes(tmp_path, read):
    (tmp_path / "a.jsonl").write_bytes(JSONL)
    for limit in (1, 20, len(TEXT) - 1, len(TEXT), len(TEXT) + 1):
        corpus = read(tmp_path / "a.jsonl", max_bytes=limit)
        assert all_bytes(corpus) == TEXT[:limit]
        assert left_out(corpus) == ({"end of a split: after data.max_bytes": 1} if limit < len(TEXT) else {})

    folder = tmp_path / "dataset"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        datasets.Dataset.from_dict({"text": [split] * 1000}).to_parquet(str(folder / f"{split}.parquet"))
    assert read(folder, max_bytes=1000).sizes == {"train": 900, "valid": 50, "test": 50}


def test_files_of_a_folder_that_are_no_part_of_the_dataset_are_counted(tmp_path, read):
    folder = tmp_path / "dataset"
    folder.mkdir()
    for name in ("train", "test", "extra"):
        (folder / f"{name}.jsonl").write_bytes(JSONL)
    (folder / "README.md").write_text("# rows")
    (folder / ".hidden").touch()
    (folder / "link").symlink_to(tmp_path, target_is_directory=True)
    corpus = read(folder)
    assert all_bytes(corpus) == TEXT
    report = corpus.report
    assert (report.files, report.bytes, report.rows) == (2, 2 * len(JSONL), 50)
    assert [(each.unit, each.count, each.names) for each in report.left_out] == [
        ("file", 1, (f"{folder}/.hidden",)),
        ("link", 1, (f"{folder}/link",)),
        ("file", 2, (f"{folder}/README.md", f"{folder}/extra.jsonl")),
        ("split", 1, ("test (50 rows)",)),
    ]
    assert read(folder) == corpus


# -- the hub, of which a server plays the part


class Hub(http.server.BaseHTTPRequestHandler):
    """One dataset, someone/rows, with one file."""

    protocol_version = "HTTP/1.1"
    revision = "1" * 40

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/commit":
            type(self).revision = "2" * 40
            return self.answer(200)
        file = {"type": "file", "path": "rows.jsonl", "size": len(JSONL), "oid": "0" * 40}
        info = {"id": "someone/rows", "sha": self.revision, "siblings": [{"rfilename": "rows.jsonl"}], "tags": []}
        if "/resolve/" in path and path.endswith("rows.jsonl"):
            self.answer(200, JSONL)
        elif "/paths-info/" in path or "/tree/" in path:
            self.answer(200, json.dumps([file]).encode())
        elif path.startswith("/api/datasets/someone/rows"):
            self.answer(200, json.dumps(info).encode())
        else:
            self.answer(404)

    do_HEAD = do_GET

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def answer(self, status: int, content: bytes = b""):
        begin = 0
        end = len(content)
        if status == 200 and "Range" in self.headers:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            begin = int(first)
            end = int(last or end - 1) + 1
            status = 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(content[begin:end])))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.send_header("ETag", '"0"')
        self.send_header("X-Repo-Commit", self.revision)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[begin:end])

    def log_message(self, *args):
        pass


READ_THREE_TIMES = """
import contextlib, io, sys, urllib.request
import huggingface_hub.constants
from data import DataConfig, open_corpus

for change in ("nothing", "a commit", "no network"):
    if change == "a commit":
        urllib.request.urlopen(f"{huggingface_hub.constants.ENDPOINT}/commit")
    if change == "no network":
        huggingface_hub.constants.HF_HUB_OFFLINE = True
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        corpus = open_corpus(DataConfig(name="hub", path="someone/rows", max_bytes=299, cache_dir=sys.argv[1]))
    assert b"".join(corpus[split].tobytes() for split in corpus.sizes).hex() == sys.argv[2]
    assert "of revision 1111" in corpus.report.lines()[0]
    print([line.removeprefix("warning: ") for line in said.getvalue().splitlines() if "someone/rows" in line])
"""


def test_a_stream_of_the_hub_names_its_revision(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        home = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", READ_THREE_TIMES, str(tmp_path / "cache"), TEXT[:299].hex()]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | home, capture_output=True, text=True)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == "[]"
    assert f"someone/rows is now at revision {'2' * 40}; this is revision {'1' * 40}, which was read before" in second
    assert f"someone/rows cannot be asked for its newest revision; this is revision {'1' * 40}" in third
