"""Every corpus is read whole, checked and cached, and each mistake of the user is a UserError that names it."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import lzma
import sysconfig
import threading
import zipfile
from pathlib import Path
from typing import get_args, get_type_hints

import datasets
import pytest
import zstandard

from data import DataConfig, benchmarks, corpora, open_corpus
from data.store import split_sizes
from data.unpack import unpack
from utils import UserError

TEXT = b"".join(b"line %d of a small corpus\n" % i for i in range(2000))


def all_bytes(corpus) -> bytes:
    return b"".join(corpus[split].tobytes() for split in ("train", "valid", "test"))


def stored_in(cache: Path) -> list[Path]:
    """What is in a cache, except files of locks."""
    return [path for path in cache.iterdir() if ".lock" not in path.name]


@pytest.fixture
def config(tmp_path):
    """DataConfig with a cache of its own; TEXT is in text.txt."""
    (tmp_path / "text.txt").write_bytes(TEXT)
    return functools.partial(DataConfig, cache_dir=str(tmp_path / "cache"))


def test_every_corpus_that_the_config_allows_has_a_reader():
    assert set(corpora.READERS) == set(get_args(get_type_hints(DataConfig)["name"]))


def test_splits_are_90_5_5_by_bytes():
    assert split_sizes(10**8) == {"train": 90_000_000, "valid": 5_000_000, "test": 5_000_000}
    assert split_sizes(4_154_400) == {"train": 3_738_960, "valid": 207_720, "test": 207_720}


def pack(path: Path, suffix: str) -> Path:
    """Compress a file into another one with the given suffix."""
    packed = path.with_suffix(suffix)
    if suffix == ".zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("enwik8", path.read_bytes())
    else:
        opener = {".gz": gzip.open, ".xz": lzma.open, ".zst": zstandard.open}[suffix]
        with opener(packed, "wb") as file:
            file.write(path.read_bytes())
    return packed


@pytest.mark.parametrize("suffix", [".txt", ".gz", ".xz", ".zst", ".zip"])
def test_a_file_is_read_whole_in_every_packing(config, tmp_path, suffix):
    path = tmp_path / "text.txt" if suffix == ".txt" else pack(tmp_path / "text.txt", suffix)
    corpus = open_corpus(config(name="files", path=str(path)))
    assert all_bytes(corpus) == TEXT
    for split, size in split_sizes(len(TEXT)).items():
        assert corpus.sizes[split] == len(corpus[split]) == size
        assert corpus.sha256[split] == hashlib.sha256(corpus[split].tobytes()).hexdigest()
        assert not corpus[split].flags.writeable


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst", ".zip"])
def test_a_damaged_file_is_named_and_nothing_is_cached(config, tmp_path, suffix):
    packed = pack(tmp_path / "text.txt", suffix)
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(UserError, match=f"path: .*{packed.name} is damaged or cut short"):
        open_corpus(config(name="files", path=str(packed)))
    assert stored_in(tmp_path / "cache") == []


def test_an_encrypted_archive_is_named(config, tmp_path):
    packed = pack(tmp_path / "text.txt", ".zip")
    archive = bytearray(packed.read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flags of both headers: encrypted
        archive[archive.index(signature) + flags] |= 1
    packed.write_bytes(archive)
    with pytest.raises(UserError, match=r"data.path: .*text.zip is damaged or cut short .*encrypted"):
        open_corpus(config(name="files", path=str(packed)))


def test_folders_and_globs_are_read_in_order_without_hidden_files(config, tmp_path):
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / ".hidden").write_bytes(b"hidden")
    (folder / "b" / "2.txt").write_bytes(b"22")
    (folder / "1.txt").write_bytes(b"1")
    (folder / "c.md").write_bytes(b"3")
    assert all_bytes(open_corpus(config(name="files", path=str(folder)))) == b"1223"
    assert all_bytes(open_corpus(config(name="files", path=str(folder / "**" / "*.txt")))) == b"122"


def test_a_changed_file_is_read_again(config, tmp_path):
    source = config(name="files", path=str(tmp_path / "text.txt"))
    first = open_corpus(source)
    assert open_corpus(source).folder == first.folder
    (tmp_path / "text.txt").write_bytes(TEXT + b"more")
    assert all_bytes(open_corpus(source)) == TEXT + b"more"


def test_a_damaged_cache_is_written_again(config, tmp_path, capsys):
    source = config(name="files", path=str(tmp_path / "text.txt"))
    stored = open_corpus(source).folder / "bytes.bin"
    stored.write_bytes(stored.read_bytes()[:100])
    assert all_bytes(open_corpus(source)) == TEXT
    assert " is damaged or incomplete: it is read again" in capsys.readouterr().err


def test_a_missing_file_an_empty_file_and_no_path_are_named(config, tmp_path):
    with pytest.raises(UserError, match=r"data.path: got .*nowhere.txt"):
        open_corpus(config(name="files", path=str(tmp_path / "nowhere.txt")))
    with pytest.raises(UserError, match=r"data.path: got .*nowhere, allowed: a file that holds enwik8"):
        open_corpus(config(name="enwik8", path=str(tmp_path / "nowhere")))
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match=r"empty\.txt holds no bytes"):
        open_corpus(config(name="files", path=str(tmp_path / "empty.txt")))
    with pytest.raises(UserError, match="path: got null, allowed: a file, folder or glob"):
        config(name="files")


def test_a_corpus_too_small_for_one_sequence_is_named(config, tmp_path):
    source = config(name="files", path=str(tmp_path / "text.txt"))
    smallest = len(TEXT) * 5 // 100
    open_corpus(source, seq_len=smallest - 1)
    with pytest.raises(
        ValueError, match=f"valid split .* has {smallest:,} bytes, allowed: at least .*{smallest + 1:,}"
    ):
        open_corpus(source, seq_len=smallest)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data.path: .*gone\.txt cannot be read \(No such file or directory\)"):
        list(unpack(tmp_path / "gone.txt"))


def test_a_cache_that_cannot_be_written_is_named(config, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"data.cache_dir: cannot write a corpus to .*cache"):
        open_corpus(config(name="files", path=str(tmp_path / "text.txt")))


def test_python_is_the_standard_library(config):
    corpus = open_corpus(config(name="python"))
    train = corpus["train"].tobytes()
    assert (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_bytes() in train
    assert sum(corpus.sizes.values()) > 5_000_000
    assert open_corpus(config(name="python")).sha256 == corpus.sha256


class TestEnwik8:
    """The checks of enwik8, with a small text in its place."""

    @pytest.fixture(autouse=True)
    def small_text(self, monkeypatch):
        md5 = hashlib.md5(TEXT).hexdigest()
        known = benchmarks.KnownCorpus(url="http://127.0.0.1:9/enwik8.zip", size=len(TEXT), md5=md5)
        monkeypatch.setitem(benchmarks.BENCHMARKS, "enwik8", known)
        monkeypatch.setattr(benchmarks, "HEAD_SIZE", 1000)
        monkeypatch.setattr(benchmarks, "HEAD_SHA256", hashlib.sha256(TEXT[:1000]).hexdigest())

    def test_the_right_file_is_accepted(self, config, tmp_path):
        assert all_bytes(open_corpus(config(name="enwik8", path=str(tmp_path / "text.txt")))) == TEXT

    @pytest.mark.parametrize("wrong", [TEXT[:-1], TEXT + b"x", b"X" + TEXT[1:]])
    def test_any_other_file_is_refused(self, config, tmp_path, wrong):
        (tmp_path / "wrong").write_bytes(wrong)
        with pytest.raises(UserError, match=f"data.path: .*wrong is not enwik8: got {len(wrong):,} bytes, md5 "):
            open_corpus(config(name="enwik8", path=str(tmp_path / "wrong")))
        assert stored_in(tmp_path / "cache") == []

    def test_a_head_must_be_the_beginning_of_enwik8(self, config, tmp_path):
        (tmp_path / "head").write_bytes(TEXT[:20_000])
        assert all_bytes(open_corpus(config(name="enwik8", path=str(tmp_path / "head"), head=True))) == TEXT[:20_000]
        for wrong in (b"X" + TEXT[1:], TEXT[:999]):
            (tmp_path / "wrong").write_bytes(wrong)
            with pytest.raises(UserError, match="does not begin as enwik8 does"):
                open_corpus(config(name="enwik8", path=str(tmp_path / "wrong"), head=True))
        with pytest.raises(UserError, match="head: got true, allowed: only with name=enwik8"):
            config(name="text8", head=True)

    def test_it_is_downloaded_once(self, config, tmp_path, monkeypatch):
        served = tmp_path / "served"
        served.mkdir()
        pack(tmp_path / "text.txt", ".zip").rename(served / "enwik8.zip")
        requests = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args):
                requests.append(self.command)

        handler = functools.partial(Handler, directory=str(served))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(tmp_path / "downloads"))
            monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
            url = f"http://127.0.0.1:{server.server_port}/enwik8.zip"
            known = dataclasses.replace(benchmarks.BENCHMARKS["enwik8"], url=url)
            monkeypatch.setitem(benchmarks.BENCHMARKS, "enwik8", known)
            assert all_bytes(open_corpus(config(name="enwik8"))) == TEXT
            downloads = requests.count("GET")
            assert downloads >= 1
            assert all_bytes(open_corpus(config(name="enwik8"))) == TEXT
            assert requests.count("GET") == downloads
            server.shutdown()

    def test_without_a_network_the_message_says_how_to_get_it(self, config, tmp_path):
        with pytest.raises(UserError, match=r"data.path: got null, .* cannot be downloaded .*pass --data.path=FILE"):
            open_corpus(config(name="enwik8"))


class TestHub:
    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")

    @pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
    def test_a_column_becomes_bytes(self, config, tmp_path, kind):
        rows = datasets.Dataset.from_dict({"text": ["erste Zeile", "zweite: äöü"] * 50, "n": list(range(100))})
        path = tmp_path / f"rows.{kind}"
        {"jsonl": rows.to_json, "parquet": rows.to_parquet, "csv": rows.to_csv}[kind](str(path))
        assert all_bytes(open_corpus(config(name="hub", path=str(path)))).decode() == "erste Zeile\nzweite: äöü\n" * 50

    def test_the_splits_of_the_dataset_are_kept(self, config, tmp_path):
        folder = tmp_path / "dataset"
        folder.mkdir()
        for split in ("train", "validation", "test"):
            datasets.Dataset.from_dict({"text": [split] * 3}).to_parquet(str(folder / f"{split}.parquet"))
        corpus = open_corpus(config(name="hub", path=str(folder)))
        assert corpus["train"].tobytes() == b"train\n" * 3
        assert corpus["valid"].tobytes() == b"validation\n" * 3
        assert corpus["test"].tobytes() == b"test\n" * 3

    def test_a_missing_column_and_a_missing_dataset_are_named(self, config, tmp_path):
        datasets.Dataset.from_dict({"body": ["a"] * 50}).to_parquet(str(tmp_path / "rows.parquet"))
        with pytest.raises(UserError, match=r"data.column: got text, allowed: one of \['body'\]"):
            open_corpus(config(name="hub", path=str(tmp_path / "rows.parquet")))
        with pytest.raises(UserError, match=r"data.path: dataset nobody/nothing cannot be loaded"):
            open_corpus(config(name="hub", path="nobody/nothing"))
