"""Atomic writes: write to a temporary name, wait until the bytes are on the disk, then rename."""

import hashlib
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from utils.errors import UserError

ALMOST_NOTHING = 1 << 20  # bytes that may be free on a disk to which nothing more can be written


def user_path(text: str) -> Path:
    """A path that a user typed. A leading ~ is the home folder, also where no shell has expanded it.

    `~name` stays as it is if there is no such user.
    """
    return Path(os.path.expanduser(text))


def cache_folder(name: str) -> Path:
    """A folder of ours for what can be made again, in $XDG_CACHE_HOME or ~/.cache. It may not exist yet."""
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / name


def refuse_endless(name: str, path: Path) -> None:
    """Raise a UserError if a path is a pipe or a device, which may never end. `name` is the setting that it is from."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{name}: {path} is no regular file")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: when it cannot be read or is no JSON; it names the file.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no regular file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason})") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8: a reader sees the old content or the new, never a part of it.

    Raises:
        OSError: if it cannot be written; it names the file. Nothing is left of the attempt.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with naming(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


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
def naming(path: Path) -> Generator[None]:
    """If writing to a file or folder fails within, raise an OSError that names it.

    On a full disk torch raises a RuntimeError, which does not say so, and safetensors a SafetensorError, where an
    OSError would be expected.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, RuntimeError) and shutil.disk_usage(path.parent).free < ALMOST_NOTHING:
            reason = f"No space left on device ({error})"
        raise OSError(f"cannot write {path}: {reason}") from error


@contextmanager
def writing_to(folder: Path) -> Generator[None]:
    """If writing to a folder fails within, remove it, and raise an OSError that names it."""
    try:
        with naming(folder):
            yield
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)  # free the space on a full disk
        raise


def fresh_folder(path: Path) -> Path:
    """Create an empty folder, and delete anything that an earlier run left there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def sha256(path: Path) -> str:
    """Checksum of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
