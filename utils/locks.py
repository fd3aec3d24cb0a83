"""Locks between processes. The system releases a lock when the process that holds it ends, even by a kill."""

import os
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from utils.files import write_text


def try_lock(path: Path) -> FileLock | None:
    """Take the lock on a file, which is created if need be and stays afterwards; None if another process holds it.

    The lock is held until it is passed to `release`, or the process ends. A file beside it tells other processes who
    holds it, see `holder_of`.

    Raises:
        OSError: if the file cannot be created.
    """
    lock = acquired(path)
    if lock is not None:
        write_text(holder_path(path), f"process {os.getpid()} on {socket.gethostname()}")
    return lock


def acquired(path: Path) -> FileLock | None:
    """The lock on a file, held by this process; None if another one holds it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def release(lock: FileLock) -> None:
    """Release a lock, and forget who held it."""
    holder_path(Path(lock.lock_file)).unlink(missing_ok=True)
    lock.release()


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock on a file that exists. Nothing is written.

    Raises:
        OSError: if the file cannot be opened.
    """
    lock = acquired(path)
    if lock is None:
        return True
    lock.release()
    return False


def holder_of(path: Path) -> str:
    """Who holds the lock on a file, or held it last: `process 4711 on node3`."""
    for _ in range(20):  # a process that has just taken the lock may still be writing
        try:
            return holder_path(path).read_text(encoding="utf-8")
        except OSError:
            time.sleep(0.05)
    return "another process"


def holder_path(path: Path) -> Path:
    """The file that says who holds a lock."""
    return path.with_name(f"{path.name}-holder")
