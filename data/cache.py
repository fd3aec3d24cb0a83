"""The folder with corpora that were read before, each under a key that changes when its bytes do."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from data.config import DataConfig
from data.report import Tally
from data.store import Corpus, Streams, load_corpus, write_corpus
from utils.errors import UserError
from utils.files import cache_folder, user_path
from utils.locks import holder_of, release, try_lock
from utils.terminal import warn

FORMAT = 2  # changes with the way in which corpora are read
WRITING = ".writing-"  # begins the names of folders that are being written
POLL_SECONDS = 0.2


def cached(
    config: DataConfig, key: list, source: str, read: Callable[[Tally], Streams], listing: Tally | None = None
) -> Corpus:
    """The corpus that the cache holds under a key. If there is none, or it is damaged, it is read and written.

    One process writes it; others wait for it. A cache that may not be written can still be read.

    Args:
        key: what the bytes depend on, apart from data.name and data.max_bytes.
        source: where the bytes come from, for people to read.
        read: begins to read, and counts into a Tally what is read and left out. The cache keeps these counts.
        listing: what was left out before, when files were chosen. It may differ each time that the corpus is opened.

    Raises:
        UserError: if the corpus cannot be read, holds no bytes, or the cache cannot be written.
    """
    # -- the folder of this key
    cache = user_path(config.cache_dir) if config.cache_dir else cache_folder("byte-corpora")
    digest = hashlib.sha256(json.dumps([FORMAT, config.max_bytes, *key]).encode()).hexdigest()[:16]
    folder = cache / f"{config.name}-{digest}"

    # -- the corpus, from the cache or from its source
    try:
        corpus = load_corpus(folder) or _load_or_write(folder, config.name, source, read)
    except OSError as error:
        raise UserError(f"data.cache_dir: cannot write a corpus to {cache} ({error})") from error

    # -- its report, with what was left out before
    if listing is None:
        return corpus
    left_out = listing.report().left_out + corpus.report.left_out
    return replace(corpus, report=replace(corpus.report, left_out=left_out))


def _load_or_write(folder: Path, name: str, source: str, read: Callable[[Tally], Streams]) -> Corpus:
    """Write a corpus, unless another process has written it while this one waited."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _only_writer(folder):
        corpus = load_corpus(folder)
        if corpus is not None:
            return corpus
        if folder.exists():
            warn(f"the corpus in {folder} is damaged or incomplete: it is read again")
        _remove_leftovers(folder.parent)
        tally = Tally()
        return write_corpus(folder, _temporary(folder), name, source, read(tally), tally)


def _temporary(folder: Path) -> Path:
    """Where a corpus is written before it is complete."""
    return folder.with_name(f"{WRITING}{folder.name}")


def _lock_path(folder: Path) -> Path:
    """The file whose lock a process holds while it writes a corpus."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def _only_writer(folder: Path) -> Generator[None]:
    """Be the only process that writes a corpus. If another one does, say so in a line, and wait until it ends."""
    path = _lock_path(folder)
    try:
        lock = try_lock(path)
    except NotImplementedError as error:
        raise UserError(f"data.cache_dir: the file system of {folder.parent} has no locks ({error})") from error
    if lock is None:
        warn(f"waiting for {holder_of(path)}, which is reading the same corpus")
    while lock is None:
        time.sleep(POLL_SECONDS)
        lock = try_lock(path)
    try:
        yield
    finally:
        release(lock)


def _remove_leftovers(cache: Path) -> None:
    """Delete what killed processes have left of corpora that they were writing."""
    for temporary in cache.glob(f"{WRITING}*"):
        lock = try_lock(_lock_path(temporary.with_name(temporary.name.removeprefix(WRITING))))
        if lock is not None:
            shutil.rmtree(temporary, ignore_errors=True)
            release(lock)
