"""The run directory: one run each, with its settings."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml

from training.checkpoints import newest_whole_checkpoint
from training.command_line import fail
from training.config import Config
from training.resume import check_same_run
from utils.errors import Mistake, UserError


def check_run_dir(config: Config) -> None:
    """Check that the run directory is free, or that --resume may continue the run in it.

    Raises:
        UserError: when it holds a run and this is no resume, when it holds none to resume, or another run.
    """
    known = config.folder / "config.yaml"
    if known.is_file() and not config.resume:
        raise UserError(f"{config.run_dir} already holds a run: continue it with --resume, or choose another --run_dir")
    if config.resume and not known.is_file():
        raise UserError(f"{config.run_dir} holds no run to resume: it has no config.yaml")
    if config.resume:
        check_same_run(config.to_dict(), yaml.safe_load(known.read_text()), known)


def make_run_dir(config: Config) -> None:
    """Create the run directory.

    Raises:
        UserError: when that is not possible.
    """
    run_dir = config.folder
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run_dir / "samples").mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(Mistake("run_dir", run_dir, f"a folder that can be written ({error})")) from error


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
        advice = f"; {checkpoint} is whole: continue with --run_dir {run_dir} --resume" if checkpoint else ""
        fail(f"{error}{advice}", code=1)
