"""Atomic writes: write to a temporary name, wait until the bytes are on the disk, then rename."""

import hashlib
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


def user_path(text: str) -> Path:
    """A path that a user typed. A leading ~ is the home folder, also where no shell has expanded it.

    `~name` stays as it is if there is no such user.
    """
    return Path(os.path.expanduser(text))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8: a reader sees the old content or the new, never a part of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    replace(temporary, path)


def replace(source: Path, target: Path) -> None:
    """Rename a file or folder after all of its bytes have reached the disk.

    A file may replace an existing file. A folder needs a target that does not exist or is empty.
    """
    paths = [source]
    if source.is_dir():
        paths += source.rglob("*")
    for path in paths:
        sync(path)
    os.replace(source, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing_to(folder: Path) -> Generator[None]:
    """Clean up if writing to a folder fails: remove the folder, and raise an OSError that names it.

    On a full disk torch raises a RuntimeError and safetensors a SafetensorError, where an OSError would be expected.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)  # free the space on a full disk
        raise OSError(f"cannot write {folder}: {error}") from error


def fresh_folder(path: Path) -> Path:
    """Create an empty folder, and delete anything that an earlier run left there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def sha256(path: Path) -> str:
    """Checksum of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
