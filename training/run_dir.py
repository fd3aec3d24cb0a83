"""The run directory: one run each, with its settings."""

import shlex
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml

from training.checkpoints import newest_whole_checkpoint
from training.code_version import code_version
from training.command_line import fail
from training.config import Config
from utils.errors import Mistake, UserError, as_typed
from utils.files import write_text

# Sections and settings that may change on --resume.
FREE_SECTIONS = {"run_dir", "wandb", "trackio"}
FREE_IN_MODEL = {"attention"}  # every backend computes the same
FREE_IN_TRAIN = {
    # how long, and what is logged and kept
    "max_steps",
    "max_skipped_steps",
    "log_every",
    "validate_every",
    "validate_bytes",
    "sample_every",
    "sample_length",
    "checkpoint_every",
    "keep_checkpoints",
    "trackers",
    # how the same numbers are computed
    "mixed_precision",
    "tf32",
    "compile",
    "activation_checkpointing",
    # their product with the number of processes must stay, which `load_checkpoint` checks
    "batch_size",
    "gradient_accumulation_steps",
}


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


def check_same_run(now: dict, then: dict, path: Path) -> None:
    """Compare two configs, the earlier one read from `path`. Settings that it does not have do not count.

    Raises:
        UserError: with each setting that makes this another run.
    """
    mistakes = []
    for section, values in now.items():
        if section in FREE_SECTIONS:
            continue
        for name, value in then.get(section, {}).items():
            is_free = name in {"model": FREE_IN_MODEL, "train": FREE_IN_TRAIN}.get(section, set())
            if not is_free and values.get(name) != value:
                mistakes.append(Mistake(f"{section}.{name}", values.get(name), f"{as_typed(value)}, as in {path}"))
    if mistakes:
        raise UserError(*mistakes)


def make_run_dir(config: Config) -> None:
    """Create the run directory, and write the run's settings and the code's version into it.

    Raises:
        UserError: when that is not possible.
    """
    run_dir = config.folder
    settings = yaml.safe_dump(config.to_dict(), sort_keys=False)
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run_dir / "samples").mkdir(exist_ok=True)
        write_text(run_dir / "config.yaml", f"# code version {code_version()}\n{settings}")
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
        advice = (
            f"; {checkpoint} is whole: continue with --run_dir {shlex.quote(str(run_dir))} --resume"
            if checkpoint
            else ""
        )
        fail(f"{error}{advice}", code=1)
