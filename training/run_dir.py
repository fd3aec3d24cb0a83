"""The run directory: one run each, with its settings and its lock."""

import shlex
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock

from training.checkpoints import all_checkpoints, newest_whole_checkpoint
from training.command_line import fail, reject
from training.config import Config
from training.resume import check_same_run, read_settings
from utils.errors import Mistake, UserError
from utils.locks import holder_of, is_locked, try_lock


def check_run_dir(config: Config) -> None:
    """Check that no run trains in the run directory, and what `check_run_in` checks.

    Raises:
        UserError: when that is not so.
    """
    with errors_of(config.folder):
        refuse_if_in_use(config.folder)
        check_run_in(config)


def check_run_in(config: Config) -> None:
    """Check that the run directory holds no run, or that --resume may continue the one that it holds.

    Raises:
        UserError: when it holds a run and this is no resume, when it holds none to resume, or another run.
    """
    known = config.folder / "config.yaml"
    if config.resume:
        if not known.is_file():
            raise UserError(f"{config.run_dir} holds no run to resume: it has no config.yaml")
        check_same_run(config.to_dict(), read_settings(known), known)
    elif known.is_file():
        raise UserError(f"{config.run_dir} already holds a run: continue it with --resume, or choose another --run_dir")
    elif all_checkpoints(config.folder):
        raise UserError(f"{config.run_dir} holds checkpoints, but no config.yaml: choose another --run_dir")


def open_run_dir(config: Config, process: int) -> FileLock:
    """Create the run directory, and take the lock that keeps other runs out of it.

    The lock holds until it is released, or its process ends. Each process of a run has one, and the main process, which
    comes first, looks at those of all: of a run whose launcher was killed, any process may still be alive. The main
    process also deletes what kills have left half written.

    Args:
        process: index of this process in its run, 0 for the main process.

    Raises:
        UserError: when another run holds a lock, has begun in the folder since `check_run_dir`, or it is not writable.
    """
    run_dir = config.folder
    with errors_of(run_dir):
        lock = lock_run_dir(run_dir, process)
        if process == 0:
            check_run_in(config)
            delete_half_written(run_dir)
            (run_dir / "checkpoints").mkdir(exist_ok=True)
            (run_dir / "samples").mkdir(exist_ok=True)
    return lock


@contextmanager
def errors_of(run_dir: Path) -> Generator[None]:
    """Raise a UserError if the run directory cannot be opened or written within."""
    try:
        yield
    except OSError as error:
        raise UserError(Mistake("run_dir", run_dir, f"a folder that can be written ({error})")) from error


def lock_run_dir(run_dir: Path, process: int) -> FileLock:
    """Take RUN_DIR/.locks/PROCESS; see `open_run_dir`."""
    if process == 0:
        refuse_if_in_use(run_dir)
    path = run_dir / ".locks" / str(process)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = try_lock(path)
    if lock is None:
        raise in_use(path, run_dir)
    return lock


def refuse_if_in_use(run_dir: Path) -> None:
    """Raise a UserError if any process of another run has a lock. It names the process."""
    for path in sorted((run_dir / ".locks").glob("*[0-9]")):
        if is_locked(path):
            raise in_use(path, run_dir)


def in_use(path: Path, run_dir: Path) -> UserError:
    """The error that names the process that has a lock."""
    return UserError(f"{run_dir} is in use: {holder_of(path)} trains there; stop it first, or choose another --run_dir")


def delete_half_written(run_dir: Path) -> None:
    """Delete the temporary files and folders of writes that a kill cut short."""
    shutil.rmtree(run_dir / "checkpoints" / ".writing", ignore_errors=True)
    shutil.rmtree(run_dir / ".model", ignore_errors=True)
    for folder in (run_dir, run_dir / "samples", run_dir / ".locks"):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


class Diverged(Exception):
    """Too many steps in a row had a loss or gradient that is not finite."""


# What can end a run without being a bug: a full disk, a lost GPU, too little memory, numbers that are not finite.
RUN_FAILURES = (OSError, torch.AcceleratorError, torch.OutOfMemoryError, Diverged)


@contextmanager
def run_errors(run_dir: Path) -> Generator[None]:
    """Turn a failure of the run into one line that names the last whole checkpoint, and exit code 1."""
    try:
        yield
    except RUN_FAILURES as error:
        checkpoint = newest_whole_checkpoint(run_dir)
        resume = f"--run_dir {shlex.quote(str(run_dir))} --resume"
        advice = f"; {checkpoint} is whole: continue with {resume}" if checkpoint else ""
        message = f"{error}{advice}"
        if isinstance(error, Diverged):
            reject([message], code=1)  # every process diverges
        fail(message, code=1)
