"""Open a corpus by name: find or download its bytes, check them, and store them in the cache."""

import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from data.benchmarks import read_benchmark
from data.cache import cached
from data.config import DataConfig
from data.files import File, files_at, find_files, fingerprint, read_files
from data.hub import read_dataset
from data.report import Tally
from data.store import Corpus
from utils.errors import UserError

# Folders below the standard library that are not part of it, or that hold tests.
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


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


def _files(config: DataConfig) -> Corpus:
    """Read a file, all files of a folder, or all matches of a glob, in the order of their paths."""
    assert config.path  # DataConfig checks it
    listing = Tally()
    files = find_files(config.path, listing)
    return cached(config, ["files", fingerprint(files)], config.path, _reader(config, files), listing)


def _python(config: DataConfig) -> Corpus:
    """Read the sources of this Python's standard library, without its tests, in the order of their paths."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in root.rglob("*.py") if NOT_LIBRARY.isdisjoint(path.relative_to(root).parts)]
    files = files_at(paths, Tally())
    source = f"the standard library of Python {sys.version.split()[0]}"
    return cached(config, ["python", fingerprint(files)], source, _reader(config, files))


def _reader(config: DataConfig, files: list[File]) -> Callable[[Tally], Iterator[bytes]]:
    """What `cached` calls to read files, up to data.max_bytes."""
    return lambda tally: read_files(files, tally, config.max_bytes)


# By DataConfig.name. A new corpus is a function from DataConfig to Corpus, a line here, and its name in DataConfig.
READERS = {
    "enwik8": read_benchmark,
    "text8": read_benchmark,
    "files": _files,
    "hub": read_dataset,
    "python": _python,
}
