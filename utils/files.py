"""Writing so that nothing is ever half there: to a temporary name, synced, renamed."""

import hashlib
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


def write_text(path: Path, text: str) -> None:
    """Replace a file's text in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    replace(temporary, path)


def replace(source: Path, target: Path) -> None:
    """Rename a file, or a folder that takes a free name, after all of its bytes have reached the disk."""
    for path in [source, *source.rglob("*")] if source.is_dir() else [source]:
        sync(path)
    os.replace(source, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def filling(folder: Path) -> Generator[None]:
    """Whatever a library raises while it writes into a folder becomes an OSError that names it, and the folder goes."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors on a full disk
        shutil.rmtree(folder, ignore_errors=True)  # there may be no room for half of what was wanted
        raise OSError(f"cannot write {folder}: {error}") from error


def fresh_folder(path: Path) -> Path:
    """An empty folder, whatever an earlier run left there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def sha256(path: Path) -> str:
    """Checksum of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
