"""Checkpoints of a run, and the best model.

A checkpoint is a folder with a manifest of checksums. It counts only if all of them hold.
"""

import json
import random
import re
import shutil
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, get_type_hints

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import load as load_pickle
from safetensors import SafetensorError
from torch import Tensor, nn

from model import HierarchicalTransformer
from training.code_version import code_version
from utils.checks import is_number
from utils.errors import Mistake, UserError
from utils.files import fresh_folder, read_json, replace, sha256, write_text, writing_to
from utils.terminal import warn

MANIFEST = "manifest.json"  # checksums of all other files; written last
STATE = "state.json"


@dataclass
class RunState:
    """How far a run is: what a checkpoint holds besides weights, optimizer, gradient scaler and random states."""

    step: int = 0
    """finished steps, skipped ones included"""
    seconds: float = 0.0
    """seconds of training, over all resumes"""
    validation: float = inf
    """bits per byte of the last validation"""
    best_bits_per_byte: float = inf
    """the lowest validation so far"""
    skipped_in_a_row: int = 0
    """how many of the last steps were skipped, because they were not finite"""
    global_batch_size: int = 0
    """sequences of a step, over all processes and accumulated batches"""
    tracker_ids: dict[str, str] = field(default_factory=dict)
    """id of the run at each tracker that has one, to continue it"""


def save_checkpoint(accelerator: Accelerator, run_dir: Path, state: RunState, keep: int) -> None:
    """Write checkpoints/step-N, and delete all others but the newest and the best. Every process calls this.

    Raises:
        OSError: when it cannot be written; earlier checkpoints are untouched.
    """
    temporary = run_dir / "checkpoints" / ".writing"
    if accelerator.is_main_process:
        fresh_folder(temporary)
    accelerator.wait_for_everyone()

    with writing_to(temporary):
        # -- every process writes its part
        accelerator.save_state(str(temporary))
        accelerator.wait_for_everyone()

        # -- the main process adds the state and the checksums, and gives the folder its name
        if accelerator.is_main_process:
            write_text(temporary / STATE, json.dumps(asdict(state), indent=2))
            checksums = {name: sha256(temporary / name) for name in sorted(files_in(temporary))}
            write_text(temporary / MANIFEST, json.dumps({"sha256": checksums}, indent=2))

            target = run_dir / "checkpoints" / f"step-{state.step:08d}"
            if is_checkpoint(target):
                remove(target)  # a damaged one
            replace(temporary, target)
            prune(run_dir, state.step, keep)
    accelerator.wait_for_everyone()


def prune(run_dir: Path, step: int, keep: int) -> None:
    """Delete all checkpoints but the newest `keep` up to a step, and the one with the best validation.

    Checkpoints of later steps go as well: the run was resumed before them.
    """
    checkpoints = all_checkpoints(run_dir)
    reached = [checkpoint for checkpoint in checkpoints if step_of(checkpoint) <= step]
    best = min(reached, key=validation_of)
    for checkpoint in checkpoints:
        if checkpoint not in reached[:keep] and checkpoint != best:
            remove(checkpoint)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint, or the link to it, if the user has moved it elsewhere."""
    if checkpoint.is_symlink():
        checkpoint.unlink()
    else:
        shutil.rmtree(checkpoint)


def all_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoint folders, newest first, damaged ones included. Other files and folders are passed over."""
    folders = [path for path in (run_dir / "checkpoints").glob("step-*") if is_checkpoint(path)]
    return sorted(folders, key=step_of, reverse=True)


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a folder with the name of a checkpoint."""
    return re.fullmatch(r"step-[0-9]{8,}", path.name) is not None and path.is_dir()


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def validation_of(checkpoint: Path) -> float:
    """Bits per byte of the last validation before a checkpoint; infinite if there is no such number."""
    try:
        bits_per_byte = read_state(checkpoint).validation
    except UserError:
        return inf
    return bits_per_byte if is_number(bits_per_byte, 0) else inf


def read_state(checkpoint: Path) -> RunState:
    """The RunState saved in a checkpoint.

    Raises:
        UserError: when it cannot be read, or does not have exactly the fields of a RunState, each with a value of its
            type. It names them all.
    """
    path = checkpoint / STATE
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no fields by name")

    hints = get_type_hints(RunState)
    mistakes: list[Mistake | str] = []
    for name in values.keys() - hints.keys():
        mistakes.append(f"{path} has the field {name}, which this version of the code does not know")
    for name, hint in hints.items():
        if name not in values:
            mistakes.append(f"{path} lacks the field {name}, so another version of the code wrote it")
        elif not fits(name, values[name], hint):
            mistakes.append(Mistake(f"{name} in {path}", values[name], ALLOWED[hint]))
    if mistakes:
        raise UserError(*mistakes)
    return RunState(**values)


# What the fields of a RunState hold, by their types.
ALLOWED: dict[Any, str] = {int: "a whole number, 0 or above", float: "a number", dict[str, str]: "texts by name"}


# Fields that may be infinite, before the first validation, or NaN, if the model has diverged.
SCORES = {"validation", "best_bits_per_byte"}


def fits(name: str, value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of the type of a RunState's field."""
    if hint is int:
        return is_number(value, 0, int)
    if name in SCORES:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float:
        return is_number(value, 0)
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None if every checksum holds."""
    try:
        manifest = read_json(checkpoint / MANIFEST)
    except UserError as error:
        return str(error)
    checksums = manifest.get("sha256") if isinstance(manifest, dict) else None
    if not isinstance(checksums, dict) or STATE not in checksums:
        return f"{MANIFEST} lists no checksums by file"

    files = files_in(checkpoint)
    for name, checksum in checksums.items():
        if name not in files:
            return f"{name} is missing"
        try:
            holds = sha256(checkpoint / name) == checksum
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if not holds:
            return f"{name} does not match its checksum"
    return None


def files_in(folder: Path) -> set[str]:
    """The files of a folder and its subfolders, as paths from it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def newest_whole_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint whose checksums hold; None if there is none."""
    return next((checkpoint for checkpoint in all_checkpoints(run_dir) if damage(checkpoint) is None), None)


def checkpoint_to_resume(run_dir: Path) -> Path | None:
    """The newest whole checkpoint, with a warning for each one passed over; None if the run has saved none yet.

    Raises:
        UserError: when all are damaged.
    """
    folder = run_dir / "checkpoints"
    for path in sorted(folder.glob("step-*")):
        if not is_checkpoint(path):
            warn(f"passing over {path}: checkpoints are folders named step-00000000")

    newest = None
    damaged = {}
    for checkpoint in all_checkpoints(run_dir):
        problem = damage(checkpoint)
        if problem is None:
            newest = checkpoint
            break
        damaged[checkpoint] = problem

    if damaged and newest is None:
        problems = "; ".join(f"{path.name}: {problem}" for path, problem in damaged.items())
        raise UserError(
            f"every checkpoint in {folder} is damaged ({problems}): put back a copy of one, "
            f"or delete {folder} to begin again at step 0"
        )
    for path, problem in damaged.items():
        warn(f"skipping damaged checkpoint {path}: {problem}")
    return newest


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, global_batch_size: int) -> RunState:
    """Restore weights, optimizer, scaler and random states. Every process calls this.

    With more processes than wrote it, the additional ones keep their random states.

    Raises:
        UserError: when the checkpoint is sharded and this run is not, or the other way round, when this run has more
            or fewer sequences per step, or when a file cannot be loaded.
    """
    state = read_state(checkpoint)
    if state.global_batch_size != global_batch_size:
        raise UserError(
            f"{checkpoint} was trained with {state.global_batch_size} sequences per step, over all processes and "
            f"accumulated batches; this run has {global_batch_size}: change train.batch_size or "
            "train.gradient_accumulation_steps"
        )

    was_sharded = (checkpoint / "pytorch_model_fsdp_0").is_dir()
    is_sharded = accelerator.distributed_type == "FSDP"
    if was_sharded != is_sharded:
        before, now = ("with FSDP" if sharded else "without FSDP" for sharded in (was_sharded, is_sharded))
        raise UserError(f"{checkpoint} was written {before}, this run is {now}")

    try:
        check_random_states(checkpoint / f"random_states_{accelerator.process_index}.pkl")
        accelerator.load_state(str(checkpoint))
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # a RuntimeError, but no fault of the checkpoint
        raise
    except (*UNREADABLE, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{checkpoint} cannot be loaded, though its checksums hold: {reason}") from error
    accelerator.step = 0  # accumulation starts over, perhaps over another number of batches
    return state


# What loading raises on a file that holds something else than it should. A pickle that would run code is refused.
UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, EOFError, UnpicklingError, SafetensorError)


def check_random_states(path: Path) -> None:
    """Raise an exception if a file of random states is there but cannot be used, which Accelerate passes over."""
    if path.exists():
        states = load_pickle(path)
        random.Random().setstate(states["random_state"])
        np.random.RandomState().set_state(states["numpy_random_seed"])
        torch.Generator().set_state(states["torch_manual_seed"])


def save_best_model(accelerator: Accelerator, model: nn.Module, card: str, run_dir: Path, state: RunState) -> None:
    """Replace RUN_DIR/model by the current weights, their config, card and training.json. Every process calls this.

    Raises:
        OSError: when it cannot be written.
    """
    weights = accelerator.get_state_dict(model)  # gathered on the main process if the model is sharded
    if not accelerator.is_main_process:
        return

    # -- an unwrapped model with these weights
    with torch.device("meta"):
        plain_model = HierarchicalTransformer(**accelerator.unwrap_model(model).config.to_dict())
    plain_model.load_state_dict({name: own_storage(weight) for name, weight in weights.items()}, assign=True)
    plain_model.card = card

    # -- written to a temporary folder, then moved file by file
    training = {
        "step": state.step,
        "validation_bits_per_byte": state.validation,
        "code_version": code_version(),
    }
    temporary = fresh_folder(run_dir / ".model")
    with writing_to(temporary):
        plain_model.save_pretrained(temporary)
        write_text(temporary / "training.json", json.dumps(training, indent=2) + "\n")
        (run_dir / "model").mkdir(exist_ok=True)
        for file in sorted(temporary.iterdir()):  # training.json, which describes the others, is last
            replace(file, run_dir / "model" / file.name)
    temporary.rmdir()


def own_storage(weight: Tensor) -> Tensor:
    """The weight, copied if it is a view of something larger, as gathered shards of unequal size are. safetensors does
    not save views."""
    return weight.clone() if weight.untyped_storage().nbytes() > weight.nbytes else weight
