"""The corpora by name: where their bytes come from, and how it is known that they are the right ones."""

import glob
import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from data.config import DataConfig
from data.store import Corpus, store, stored
from data.unpack import unpacked


class Known(TypedDict):
    """What is known of a benchmark's corpus: where it lies packed, and its size in bytes and checksum unpacked."""

    url: str
    size: int
    md5: str


# Matt Mahoney's Large Text Compression Benchmark, https://mattmahoney.net/dc/textdata.html
BENCHMARKS: dict[str, Known] = {
    "enwik8": {
        "url": "https://mattmahoney.net/dc/enwik8.zip",
        "size": 10**8,
        "md5": "a1fa5ffddb56f4953e226637dabbb36a",
    },
    "text8": {"url": "https://mattmahoney.net/dc/text8.zip", "size": 10**8, "md5": "3bea1919949baf155f99411df5fada7e"},
}
# sha256 of the first 65,536 bytes of enwik8: what a part of it must begin with
HEAD_SIZE, HEAD_SHA256 = 1 << 16, "05fc5f44993ef0557959db76bf47e45badb2dd9c69d93ce08911935b5e52bf40"
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def open_corpus(config: DataConfig, seq_len: int | None = None) -> Corpus:
    """The corpus that a config names, unpacked into the cache if it is not there yet.

    Raises:
        ValueError: when it cannot be read, is not what its name says, or a split is too small for one sequence of
            `seq_len` bytes and the one after it.
        FileNotFoundError: when data.path is not there.
    """
    corpus = READERS[config.name](config)
    for split, size in corpus.sizes.items():
        if seq_len is not None and size <= seq_len:
            raise ValueError(
                f"data.path: the {split} split of {corpus.source} has {size:,} bytes, "
                f"allowed: at least model.seq_len + 1 = {seq_len + 1:,}"
            )
    return corpus


def _benchmark(config: DataConfig) -> Corpus:
    expected = BENCHMARKS[config.name]
    path = Path(config.path).expanduser() if config.path else _download(config.name, expected["url"])
    if not path.is_file():
        raise FileNotFoundError(f"data.path: {path} is not a file; allowed: {config.name}, packed or not")
    key = [config.name, config.head, _fingerprint([path])]
    check = _checked_head(path) if config.head and config.path else _checked(path, config.name, expected)
    return _cached(config, key, str(path), check)


def _checked(path: Path, name: str, expected: Known) -> Iterator[bytes]:
    """Pass bytes through, and raise at their end unless they are the whole corpus."""
    size, digest = 0, hashlib.md5()
    for piece in unpacked(path):
        size += len(piece)
        digest.update(piece)
        yield piece
    if (size, digest.hexdigest()) != (expected["size"], expected["md5"]):
        raise ValueError(
            f"data.path: {path} is not {name}: got {size:,} bytes, md5 {digest.hexdigest()}, allowed: "
            f"{expected['size']:,} bytes, md5 {expected['md5']} (--data.head=true for the beginning of enwik8, "
            "--data.name=files for any other text)"
        )


def _checked_head(path: Path) -> Iterator[bytes]:
    """Pass bytes through, and raise unless they begin as enwik8 does."""
    head = b""
    for piece in unpacked(path):
        if len(head) < HEAD_SIZE:
            head += piece[: HEAD_SIZE - len(head)]
        yield piece
    if hashlib.sha256(head).hexdigest() != HEAD_SHA256:
        raise ValueError(
            f"data.path: {path} does not begin as enwik8 does (first {HEAD_SIZE:,} bytes), "
            "allowed: a part of enwik8 from its beginning (--data.name=files for any other text)"
        )


def _download(name: str, url: str) -> Path:
    from datasets import DownloadConfig, DownloadManager  # heavy

    manager = DownloadManager(dataset_name=name, download_config=DownloadConfig(max_retries=1))
    try:
        return Path(manager.download_and_extract(url)) / name
    except Exception as error:  # whatever the network does
        raise ValueError(
            f"data.path: got null, and {url} cannot be fetched ({type(error).__name__}); download it where there is a "
            f"network and pass --data.path=FILE, or train on --data.name=python, which needs none"
        ) from error


def _files(config: DataConfig) -> Corpus:
    assert config.path  # DataConfig takes no null here
    pattern = os.path.expanduser(config.path)
    found = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))] or [Path(pattern)]
    paths = []
    for path in found:
        below = sorted(path.rglob("*")) if path.is_dir() else [path]
        paths += [
            p for p in below if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts)
        ]
    if not paths:
        raise FileNotFoundError(f"data.path: got {config.path}, which names no file; allowed: a file, folder or glob")
    return _cached(config, ["files", _fingerprint(paths)], config.path, (b for p in paths for b in unpacked(p)))


def _python(config: DataConfig) -> Corpus:
    root = Path(sysconfig.get_path("stdlib"))
    paths = [p for p in root.rglob("*.py") if not NOT_LIBRARY & set(p.relative_to(root).parts)]
    paths.sort(key=lambda p: p.relative_to(root).parts)
    source = f"the standard library of Python {sys.version.split()[0]}"
    return _cached(config, ["python", _fingerprint(paths)], source, (p.read_bytes() for p in paths))


def _hub(config: DataConfig) -> Corpus:
    import datasets  # heavy

    assert config.path  # as for files
    path = Path(config.path).expanduser()
    kind = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}.get(path.suffix)
    try:
        if kind and path.is_file():
            found = datasets.load_dataset(kind, data_files=str(path))
        else:
            found = datasets.load_dataset(config.path, config.subset)
    except Exception as error:  # what the hub, the network or a builder raises
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"data.path: dataset {config.path} cannot be loaded: {reason}") from error
    names = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}
    splits = {names[str(name)]: rows for name, rows in found.items() if name in names}
    if "train" not in splits:
        raise ValueError(f"data.path: {config.path} has the splits {list(found)}, allowed: one named train among them")
    columns = splits["train"].column_names
    if config.column not in columns:
        raise ValueError(f"data.column: got {config.column}, allowed: one of {columns}")
    key = ["hub", config.path, config.subset, config.column, {name: d._fingerprint for name, d in splits.items()}]
    streams = {name: _documents(rows, config.column) for name, rows in splits.items()}
    if set(streams) != {"train", "valid", "test"}:
        return _cached(config, key, config.path, streams["train"])
    return _cached(config, key, config.path, {name: streams[name] for name in ("train", "valid", "test")})


def _documents(rows, column: str) -> Iterator[bytes]:
    """Each row's text as UTF-8, ended by a newline."""
    for batch in rows.select_columns(column).iter(1000):
        for text in batch[column]:
            yield (text if isinstance(text, bytes) else str(text).encode("utf-8")) + b"\n"


def _cached(config: DataConfig, key: list, source: str, parts: dict[str, Iterator[bytes]] | Iterator[bytes]) -> Corpus:
    """The corpus that lies in the cache under a key, stored there first if need be."""
    cache = config.cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "byte-corpora"
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    folder = Path(cache).expanduser() / f"{config.name}-{name}"
    return stored(folder) or store(folder, config.name, source, parts)


def _fingerprint(paths: list[Path]) -> str:
    """Changes when any of the files does."""
    stats = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


READERS = {  # by the names that DataConfig.name takes
    "enwik8": _benchmark,
    "text8": _benchmark,
    "files": _files,
    "hub": _hub,
    "python": _python,
}
