"""Open a corpus by name: find or download its bytes, check them, and store them in the cache."""

import glob
import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.config import DataConfig
from data.store import SPLITS, Corpus, Streams, load_corpus, write_corpus
from data.unpack import unpack
from utils.errors import Mistake, UserError
from utils.files import user_path


@dataclass(frozen=True)
class KnownCorpus:
    """A corpus that is the same for everybody."""

    url: str
    """where to download the packed file"""
    size: int
    """bytes, unpacked"""
    md5: str
    """checksum of the unpacked bytes, in hex"""


# Matt Mahoney's Large Text Compression Benchmark, https://mattmahoney.net/dc/textdata.html
BENCHMARKS = {
    "enwik8": KnownCorpus(
        url="https://mattmahoney.net/dc/enwik8.zip", size=10**8, md5="a1fa5ffddb56f4953e226637dabbb36a"
    ),
    "text8": KnownCorpus(
        url="https://mattmahoney.net/dc/text8.zip", size=10**8, md5="3bea1919949baf155f99411df5fada7e"
    ),
}
# A file with the beginning of enwik8 is recognised by the sha256 of its first HEAD_SIZE bytes.
HEAD_SIZE = 1 << 16
HEAD_SHA256 = "05fc5f44993ef0557959db76bf47e45badb2dd9c69d93ce08911935b5e52bf40"

# Folders below the standard library that are not part of it, or that hold tests.
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}

# A dataset's own names of its splits, and ours. Other splits are not read.
HUB_SPLITS = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}
# Files that `datasets` loads, by suffix, and the name of its loader.
HUB_LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def open_corpus(config: DataConfig, seq_len: int | None = None) -> Corpus:
    """Open the corpus of a config. The first time, it is read or downloaded and written to the cache.

    Args:
        seq_len: if given, every split must have at least one sequence of `seq_len` bytes and the byte after it.

    Raises:
        UserError: if the corpus is missing, unreadable, damaged, empty, too small, or different from the corpus of that
            name; or if the cache cannot be written.
    """
    corpus = READERS[config.name](config)
    if seq_len is None:
        return corpus
    for split, size in corpus.sizes.items():
        if size < seq_len + 1:
            raise UserError(
                f"data.path: the {split} split of {corpus.source} has {size:,} bytes, "
                f"allowed: at least model.seq_len + 1 = {seq_len + 1:,}"
            )
    return corpus


# -- enwik8 and text8


def _benchmark(config: DataConfig) -> Corpus:
    """Read enwik8 or text8 from data.path, or download it."""
    known = BENCHMARKS[config.name]
    path = user_path(config.path) if config.path else _download(config.name, known.url)
    if not path.is_file():
        raise UserError(Mistake("data.path", path, f"a file that holds {config.name}, packed or not"))

    only_head = config.head and bool(config.path)
    stream = _check_head(path) if only_head else _check_whole(path, config.name, known)
    key = [config.name, config.head, _fingerprint([path])]
    return _cached(config, key, str(path), stream)


def _check_whole(path: Path, name: str, known: KnownCorpus) -> Iterator[bytes]:
    """Pass on the bytes of a file, and raise a UserError at the end unless they are the whole corpus."""
    size = 0
    digest = hashlib.md5()
    for piece in unpack(path):
        size += len(piece)
        digest.update(piece)
        yield piece

    md5 = digest.hexdigest()
    if size != known.size or md5 != known.md5:
        raise UserError(
            f"data.path: {path} is not {name}: got {size:,} bytes, md5 {md5}, "
            f"allowed: {known.size:,} bytes, md5 {known.md5} "
            "(--data.head=true for the beginning of enwik8, --data.name=files for any other text)"
        )


def _check_head(path: Path) -> Iterator[bytes]:
    """Pass on the bytes of a file, and raise a UserError at the end unless they begin as enwik8 does."""
    head = b""
    for piece in unpack(path):
        missing = HEAD_SIZE - len(head)
        head += piece[:missing]
        yield piece

    if hashlib.sha256(head).hexdigest() != HEAD_SHA256:
        raise UserError(
            f"data.path: {path} does not begin as enwik8 does (first {HEAD_SIZE:,} bytes), "
            "allowed: the beginning of enwik8 (--data.name=files for any other text)"
        )


def _download(name: str, url: str) -> Path:
    """Download and unpack a zip, unless an earlier call has; returns the path of its member `name`."""
    from datasets import DownloadConfig, DownloadManager  # slow to import

    manager = DownloadManager(dataset_name=name, download_config=DownloadConfig(max_retries=1))
    try:
        folder = manager.download_and_extract(url)
    except Exception as error:  # the network and its libraries raise exceptions of many kinds
        raise UserError(
            f"data.path: got null, and {url} cannot be downloaded ({type(error).__name__}). Download it on a machine "
            "with a network and pass --data.path=FILE, or train on --data.name=python, which needs no download"
        ) from error
    return Path(folder) / name


# -- files of the user's own


def _files(config: DataConfig) -> Corpus:
    """Read a file, all files of a folder, or all matches of a glob, in the order of their paths."""
    assert config.path  # DataConfig checks it
    pattern = os.path.expanduser(config.path)
    matches = sorted(glob.glob(pattern, recursive=True)) or [pattern]

    paths = []
    for match in matches:
        paths += _visible_files(Path(match))
    if not paths:
        raise UserError(Mistake("data.path", config.path, "a file, folder or glob that exists"))

    stream = (piece for path in paths for piece in unpack(path))
    return _cached(config, ["files", _fingerprint(paths)], config.path, stream)


def _visible_files(path: Path) -> list[Path]:
    """The path itself if it is a file; all files below it, sorted, if it is a folder, without hidden ones."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    files = []
    for below in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in below.relative_to(path).parts)
        if below.is_file() and not hidden:
            files.append(below)
    return files


# -- the standard library of Python


def _python(config: DataConfig) -> Corpus:
    """Read the sources of this Python's standard library, without its tests, in the order of their paths."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = []
    for path in root.rglob("*.py"):
        if NOT_LIBRARY.isdisjoint(path.relative_to(root).parts):
            paths.append(path)
    paths.sort(key=lambda path: path.relative_to(root).parts)

    source = f"the standard library of Python {sys.version.split()[0]}"
    stream = (piece for path in paths for piece in unpack(path))
    return _cached(config, ["python", _fingerprint(paths)], source, stream)


# -- datasets of the Hugging Face hub


def _hub(config: DataConfig) -> Corpus:
    """Read one column of a dataset. Its own splits are kept if it has all three; else its train split is cut 90/5/5."""
    assert config.path  # DataConfig checks it
    dataset = _load_dataset(config.path, config.subset)

    splits = {}
    for name, rows in dataset.items():
        if name in HUB_SPLITS:
            splits[HUB_SPLITS[str(name)]] = rows
    if "train" not in splits:
        raise UserError(f"data.path: {config.path} has the splits {list(dataset)}, allowed: one named train among them")
    columns = splits["train"].column_names
    if config.column not in columns:
        raise UserError(Mistake("data.column", config.column, f"one of {columns}"))

    fingerprints = {split: rows._fingerprint for split, rows in splits.items()}
    key = ["hub", config.path, config.subset, config.column, fingerprints]
    if set(splits) == set(SPLITS):
        streams = {split: _rows_as_bytes(splits[split], config.column) for split in SPLITS}
    else:
        streams = _rows_as_bytes(splits["train"], config.column)
    return _cached(config, key, config.path, streams)


def _load_dataset(path: str, subset: str | None) -> dict:
    """All splits of a dataset, from a file or by its name on the hub."""
    import datasets  # slow to import

    file = user_path(path)
    loader = HUB_LOADERS.get(file.suffix)
    try:
        if loader and file.is_file():
            return datasets.load_dataset(loader, data_files=str(file))
        return datasets.load_dataset(path, subset)
    except Exception as error:  # the hub, the network and the loaders raise exceptions of many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"data.path: dataset {path} cannot be loaded: {reason}") from error


def _rows_as_bytes(rows, column: str) -> Iterator[bytes]:
    """Each row's text as UTF-8, followed by a newline."""
    for group in rows.select_columns(column).iter(1000):
        for text in group[column]:
            if not isinstance(text, bytes):
                text = str(text).encode("utf-8")
            yield text + b"\n"


# -- the cache


def _cached(config: DataConfig, key: list, source: str, streams: Streams) -> Corpus:
    """The corpus that the cache holds under a key. If there is none, it is written from `streams`."""
    if config.cache_dir:
        cache = Path(config.cache_dir)
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "byte-corpora"
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    folder = cache.expanduser() / f"{config.name}-{digest}"
    return load_corpus(folder) or write_corpus(folder, config.name, source, streams)


def _fingerprint(paths: list[Path]) -> str:
    """A checksum that changes when a file is added, removed, renamed, resized or written again."""
    stats = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


# By DataConfig.name. A new corpus is a function from DataConfig to Corpus, a line here, and its name in DataConfig.
READERS = {
    "enwik8": _benchmark,
    "text8": _benchmark,
    "files": _files,
    "hub": _hub,
    "python": _python,
}
