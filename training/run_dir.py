"""A run directory belongs to one run; a run that is told to stop leaves in good order."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml

from training.checkpoints import newest_whole_checkpoint
from training.command_line import fail
from training.config import Config
from utils.files import write_text

# What may differ on --resume without making it another run.
FREE = {"run_dir", "wandb"}
FREE_IN_TRAIN = {"log_every", "validate_every", "validate_bytes", "sample_every", "sample_length"}
FREE_IN_TRAIN |= {"checkpoint_every", "keep_checkpoints", "max_skipped_steps", "max_steps"}
FREE_IN_TRAIN |= {"mixed_precision", "tf32", "compile", "activation_checkpointing"}
FREE_IN_TRAIN |= {"batch_size", "gradient_accumulation_steps"}  # their product with the processes is what counts


def check_run_dir(config: Config) -> None:
    """Raise a ValueError when the run directory holds a run and this is no resume, another run, or none to resume."""
    known = config.folder / "config.yaml"
    if known.is_file() and not config.resume:
        raise ValueError(
            f"run_dir: {config.run_dir} already holds a run; allowed: --resume to go on with it, or another --run_dir"
        )
    if config.resume and not known.is_file():
        raise ValueError(f"run_dir: {config.run_dir} holds no run to resume (no config.yaml)")
    if config.resume:
        check_same_run(config.to_dict(), yaml.safe_load(known.read_text()), config.folder)


def make_run_dir(config: Config) -> None:
    """Make the run directory, with the run's settings; an OSError that names it where that cannot be."""
    run_dir = config.folder
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run_dir / "samples").mkdir(exist_ok=True)
        write_text(run_dir / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
    except OSError as error:
        raise OSError(f"run_dir: got {run_dir}, allowed: a folder that can be written ({error})") from error


def check_same_run(now: dict, then: dict, run_dir: Path) -> None:
    """Raise a ValueError that names each setting by which two configs are not the same run.

    Settings that the earlier one does not know, being older than they are, do not count.
    """
    differences = [
        f"{section}.{name} is {values.get(name)} here and {value} there"
        for section, values in now.items()
        if section not in FREE
        for name, value in then.get(section, {}).items()
        if not (section == "train" and name in FREE_IN_TRAIN) and values.get(name) != value
    ]
    if differences:
        raise ValueError(f"run_dir: {run_dir} holds another run's config: " + "; ".join(differences))


class Diverged(Exception):
    """Too many steps in a row were not finite."""


@contextmanager
def run_errors(run_dir: Path) -> Generator[None]:
    """End with one line that says how to go on, and exit code 1, when a disk, a GPU or the numbers fail a run."""
    try:
        yield
    except (OSError, torch.AcceleratorError, torch.OutOfMemoryError, Diverged) as error:
        last = newest_whole_checkpoint(run_dir)
        resume = f"; {last} is whole: go on with --run_dir {run_dir} --resume" if last else ""
        fail(f"{error}{resume}", code=1)
