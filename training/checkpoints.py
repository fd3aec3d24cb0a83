"""Checkpoints of a run, and the best model.

A checkpoint is a folder with a manifest of checksums. It counts only if all of them hold.
"""

import json
import shutil
import warnings
from dataclasses import asdict, dataclass, field
from math import inf, isnan
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from model import HierarchicalTransformer
from training.code_version import code_version
from utils.errors import UserError
from utils.files import fresh_folder, replace, sha256, write_text, writing_to

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
            files = [path for path in sorted(temporary.rglob("*")) if path.is_file()]
            checksums = {str(path.relative_to(temporary)): sha256(path) for path in files}
            write_text(temporary / MANIFEST, json.dumps({"sha256": checksums}, indent=2))

            target = run_dir / "checkpoints" / f"step-{state.step:08d}"
            shutil.rmtree(target, ignore_errors=True)  # a damaged one, if any
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
            shutil.rmtree(checkpoint)


def all_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoint folders, newest first, damaged ones included."""
    return sorted((run_dir / "checkpoints").glob("step-*"), reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def validation_of(checkpoint: Path) -> float:
    """Bits per byte of the last validation before a checkpoint; infinite if there was none, or it was NaN."""
    bits_per_byte = read_state(checkpoint).validation
    return inf if isnan(bits_per_byte) else bits_per_byte


def read_state(checkpoint: Path) -> RunState:
    """The RunState saved in a checkpoint, or a default one if it cannot be read."""
    try:
        return RunState(**json.loads((checkpoint / STATE).read_text()))
    except (OSError, ValueError, TypeError):
        return RunState()


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None if every checksum holds."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, checksum in files.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if sha256(checkpoint / name) != checksum:
            return f"{name} does not match its checksum"
    return None


def newest_whole_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint whose checksums hold, with a warning for each one skipped."""
    for checkpoint in all_checkpoints(run_dir):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        warnings.warn(f"skipping damaged checkpoint {checkpoint}: {problem}", stacklevel=2)
    return None


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, global_batch_size: int) -> RunState:
    """Restore weights, optimizer, scaler and random states. Every process calls this.

    With more processes than wrote it, the additional ones keep their random states.

    Raises:
        UserError: when the checkpoint is sharded and this run is not, or the other way round, or when this run has
            more or fewer sequences per step.
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

    accelerator.load_state(str(checkpoint))
    accelerator.step = 0  # accumulation starts over, perhaps over another number of batches
    return state


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
        for file in temporary.iterdir():
            replace(file, run_dir / "model" / file.name)
    temporary.rmdir()


def own_storage(weight: Tensor) -> Tensor:
    """The weight, copied if it is a view of something larger, as gathered shards of unequal size are. safetensors does
    not save views."""
    return weight.clone() if weight.untyped_storage().nbytes() > weight.nbytes else weight
