"""enwik8 and text8, which are the same for everybody."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.cache import cached
from data.config import DataConfig
from data.files import files_at, fingerprint, read_files
from data.report import Tally
from data.store import Corpus
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


def read_benchmark(config: DataConfig) -> Corpus:
    """Read enwik8 or text8 from data.path, or download it."""
    known = BENCHMARKS[config.name]
    path = user_path(config.path) if config.path else _download(config.name, known.url)
    if not os.path.isfile(path):
        raise UserError(Mistake("data.path", path, f"a file that holds {config.name}, packed or not"))
    files = files_at([path], Tally())
    if not files:
        raise UserError(f"data.path: {path} cannot be read (no permission)")

    def read(tally: Tally) -> Iterator[bytes]:
        stream = read_files(files, tally)
        only_head = config.head and bool(config.path)
        return _check_head(stream, path) if only_head else _check_whole(stream, path, config.name, known)

    return cached(config, [config.name, config.head, fingerprint(files)], str(path), read)


def _check_whole(stream: Iterator[bytes], path: Path, name: str, known: KnownCorpus) -> Iterator[bytes]:
    """Pass on the bytes of a stream, and raise a UserError at the end unless they are the whole corpus."""
    size = 0
    digest = hashlib.md5()
    for piece in stream:
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


def _check_head(stream: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """Pass on the bytes of a stream, and raise a UserError at the end unless they begin as enwik8 does."""
    head = b""
    for piece in stream:
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
