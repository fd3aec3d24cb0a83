"""Datasets of the Hugging Face hub, and files of the same formats."""

import functools
import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.cache import cached
from data.config import DataConfig
from data.files import File, find_files, fingerprint
from data.report import Tally
from data.store import SPLITS, Corpus, Streams, split_sizes
from utils.errors import Mistake, UserError
from utils.files import user_path
from utils.terminal import warn

# A dataset's own names of its splits, and ours. Other splits are not read.
SPLIT_NAMES = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}

# Files that `datasets` loads, by suffix, with the name of its loader and the loader's options.
BLANK_CELLS = {"keep_default_na": False, "na_values": [""]}  # only blank cells are null, not the words NA or None
LOADERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
    ".csv": ("csv", BLANK_CELLS),
    ".tsv": ("csv", {"sep": "\t", **BLANK_CELLS}),
    ".txt": ("text", {}),
}
PACKED = {".gz", ".bz2", ".xz", ".zst", ".zip"}  # may follow these suffixes


def read_dataset(config: DataConfig) -> Corpus:
    """Read one column of a dataset. Its own splits are kept if it has all three; else its train split is cut 90/5/5.

    With data.max_bytes the dataset is read as a stream: only its beginning is downloaded.
    """
    assert config.path  # DataConfig checks it
    path = user_path(config.path)
    is_local = os.path.exists(path)
    is_streamed = config.max_bytes is not None
    revision = _newest_revision(config.path) if is_streamed and not is_local else None

    @functools.cache
    def load() -> dict:
        return _load(config, path, revision)

    # -- what the bytes depend on: the files, or the rows of a dataset that is downloaded whole
    key: list = ["hub", config.path, config.subset, config.column]
    listing = Tally()
    files = []
    if is_local:
        files = find_files(config.path, listing)
        key.append(fingerprint(files))
    elif not is_streamed:
        key.append({split: rows._fingerprint for split, rows in load().items()})

    # -- the corpus
    def read(tally: Tally) -> Streams:
        dataset = load()
        tally.revision = revision
        _count_files(files, path, config.subset, tally)
        return _streams(dataset, config, tally)

    corpus = cached(config, key, config.path, read, listing)

    # -- a stream that was read before may be an older revision
    if revision != corpus.report.revision:
        newest = f"is now at revision {revision}" if revision else "cannot be asked for its newest revision"
        warn(
            f"the dataset {config.path} {newest}; this is revision {corpus.report.revision}, which was read before "
            f"(delete {corpus.folder} to read it again)"
        )
    return corpus


def _newest_revision(name: str) -> str | None:
    """The newest commit of a dataset; None if the hub does not answer."""
    import huggingface_hub  # slow to import

    try:
        return huggingface_hub.dataset_info(name).sha
    except Exception:  # the hub and the network raise exceptions of many kinds
        return None


def _load(config: DataConfig, path: Path, revision: str | None) -> dict:
    """All splits of a dataset, from a file, from a folder, or by its name on the hub."""
    import datasets  # slow to import

    is_streamed = config.max_bytes is not None
    if glob.escape(str(path)) != str(path) and (path.is_dir() or path.suffix.lower() in PACKED):
        allowed = "a path without *, ? and [ for a folder or a packed file, because datasets takes it for a pattern"
        raise UserError(Mistake("data.path", path, allowed))
    try:
        if path.is_file():
            loader, options = _loader(path)
            return datasets.load_dataset(loader, data_files=glob.escape(str(path)), streaming=is_streamed, **options)
        name = str(path) if path.is_dir() else str(config.path)
        return datasets.load_dataset(name, config.subset, revision=revision, streaming=is_streamed)
    except UserError:
        raise
    except Exception as error:  # the hub, the network and the loaders raise exceptions of many kinds
        raise UserError(f"data.path: dataset {config.path} cannot be loaded: {_reasons(error)}") from error


def _loader(path: Path) -> tuple[str, dict[str, Any]]:
    """The loader of a file by its name, and the loader's options."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in LOADERS:
        allowed = f"a name that ends in {', '.join(LOADERS)}, or one of these and {', '.join(sorted(PACKED))}"
        raise UserError(Mistake("data.path", path, allowed))
    return LOADERS[suffixes[-1]]


def _count_files(files: list[File], path: Path, subset: str | None, tally: Tally) -> None:
    """Count which files the dataset of a file or folder consists of, and which it leaves out."""
    import datasets  # slow to import

    names = [str(path)]
    if path.is_dir():
        data_files = datasets.load_dataset_builder(str(path), subset).config.data_files or {}
        names = [name for split in data_files.values() for name in split]
    taken = set(map(os.path.realpath, names))
    for file in files:
        if os.path.realpath(file.path) in taken:
            tally.files += 1
            tally.bytes += file.size
        else:
            tally.leave_out("file", "not part of the dataset", str(file.path), file.size)


def _reasons(error: BaseException | None) -> str:
    """What an exception says, and those that caused it, in one line."""
    reasons = []
    while error is not None:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        if text not in reasons:
            reasons.append(text)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "; ".join(reasons[:4])


def _streams(dataset: dict, config: DataConfig, tally: Tally) -> Streams:
    """The bytes of the splits that are read: of all three, or of train alone."""
    splits = _choose_splits(dataset, config, tally)
    for rows in splits.values():
        _check_column(rows, config)
    limits: dict[str, int | None] = dict.fromkeys(splits, config.max_bytes)
    if config.max_bytes is not None and set(splits) == set(SPLITS):
        limits.update(split_sizes(config.max_bytes))

    streams = {split: _read_rows(rows, config, split, limits[split], tally) for split, rows in splits.items()}
    return streams if len(streams) > 1 else streams["train"]


def _choose_splits(dataset: dict, config: DataConfig, tally: Tally) -> dict[str, Any]:
    """The rows of the splits that are read, by our names of the splits, in their order."""
    chosen: dict[str, str] = {}
    for name in map(str, dataset):
        ours = SPLIT_NAMES.get(name)
        if ours is None:
            tally.leave_out("split", f"not one of {', '.join(SPLIT_NAMES)}", _with_rows(dataset, name))
        elif ours in chosen:
            tally.leave_out("split", f"{chosen[ours]} is read in its place", _with_rows(dataset, name))
        else:
            chosen[ours] = name

    if "train" not in chosen:
        raise UserError(
            f"data.path: {config.path} has the splits {list(map(str, dataset))}, allowed: one named train among them"
        )
    missing = [split for split in SPLITS if split not in chosen]
    if missing:
        for name in chosen.values():
            if name != "train":
                reason = f"there is no {missing[0]} split, so train is cut into all three"
                tally.leave_out("split", reason, _with_rows(dataset, name))
        chosen = {"train": "train"}
    return {split: dataset[chosen[split]] for split in SPLITS if split in chosen}


def _with_rows(dataset: dict, name: str) -> str:
    """The name of a split, with its number of rows if that is known."""
    rows = getattr(dataset[name], "num_rows", None)
    return name if rows is None else f"{name} ({rows:,} rows)"


def _check_column(rows: Any, config: DataConfig) -> None:
    """Raise a UserError unless a split has no rows, or a column of text or bytes."""
    table = next(_tables(rows, config, batch_size=1), None)
    if table is None:
        return
    if config.column not in table.column_names:
        raise UserError(Mistake("data.column", config.column, f"one of {table.column_names}"))
    _texts(table, config)


def _texts(table: Any, config: DataConfig) -> Any:
    """The column of text in an Arrow table, as bytes.

    Raises:
        UserError: if the column holds something else.
    """
    import pyarrow  # slow to import

    kind = str(table.schema.field(config.column).type)
    if kind not in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view"):
        raise UserError(Mistake("data.column", f"{config.column}, which holds {kind}", "a column of text or bytes"))
    return table[config.column].cast(pyarrow.large_binary())


def _tables(rows: Any, config: DataConfig, batch_size: int) -> Iterator[Any]:
    """The rows of a split as Arrow tables, which do not copy them."""
    try:
        yield from rows.with_format("arrow").iter(batch_size)
    except Exception as error:  # a stream is downloaded and parsed only here
        raise UserError(f"data.path: dataset {config.path} cannot be read: {_reasons(error)}") from error


def _read_rows(rows: Any, config: DataConfig, split: str, limit: int | None, tally: Tally) -> Iterator[bytes]:
    """Each row's text as UTF-8, followed by a newline; without rows that are null or empty.

    Args:
        limit: stop after this many bytes.
    """
    total = 0
    for table in _tables(rows.select_columns(config.column), config, batch_size=1000):
        for row in _texts(table, config):
            text = row.as_py()
            if not text:
                tally.leave_out_row("null" if text is None else "empty")
                continue
            piece = text + b"\n"
            room = len(piece) if limit is None else limit - total
            if room > 0:
                tally.rows += 1
            yield piece[:room]
            total += min(room, len(piece))
            if room < len(piece):
                tally.leave_out("end of a split", "after data.max_bytes", split)
                return
