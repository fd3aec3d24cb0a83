"""Checkpoints of a run, each a folder that counts only when it is whole, and the best model beside them."""

import json
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from model import HierarchicalTransformer
from utils.files import fresh_folder, replace, sha256, write_text, writing_to

MANIFEST = "manifest.json"  # every other file's checksum; written last
STATE = "state.json"


@dataclass
class RunState:
    """Where a run stands, beside its weights, optimizer, gradient scaler and random states."""

    step: int = 0  # finished optimizer steps
    seconds: float = 0.0  # of training, over all of the run's lives
    validation: float = float("inf")  # the last one's bits per byte
    best_bits_per_byte: float = float("inf")
    skipped_in_a_row: int = 0  # steps, the last ones, that were not finite
    global_batch_size: int = 0  # sequences of a step, those of all processes and of accumulation together
    tracker_id: str | None = None


def save_checkpoint(accelerator: Accelerator, run_dir: Path, state: RunState, keep: int) -> None:
    """Write checkpoints/step-N; of the others only the newest and the best stay. Every process calls this.

    Raises:
        OSError: when it cannot be written; the checkpoints before it are as they were.
    """
    temporary = run_dir / "checkpoints" / ".writing"
    if accelerator.is_main_process:
        fresh_folder(temporary)
    accelerator.wait_for_everyone()
    with writing_to(temporary):
        accelerator.save_state(str(temporary))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_text(temporary / STATE, json.dumps(asdict(state), indent=2))
            files = {str(p.relative_to(temporary)): sha256(p) for p in sorted(temporary.rglob("*")) if p.is_file()}
            write_text(temporary / MANIFEST, json.dumps({"sha256": files}, indent=2))
            target = run_dir / "checkpoints" / f"step-{state.step:08d}"
            shutil.rmtree(target, ignore_errors=True)  # a damaged one, if any
            replace(temporary, target)
            prune(run_dir, state.step, keep)
    accelerator.wait_for_everyone()


def prune(run_dir: Path, step: int, keep: int) -> None:
    """Drop all checkpoints but the newest `keep` up to a step, and the one with the best validation.

    Those of later steps are of a life of the run that was not gone on with.
    """
    checkpoints = all_checkpoints(run_dir)
    reached = [checkpoint for checkpoint in checkpoints if int(checkpoint.name.removeprefix("step-")) <= step]
    kept = {*reached[:keep], min(reached, key=lambda checkpoint: read_state(checkpoint).validation)}
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            shutil.rmtree(checkpoint)


def all_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoint folders, newest first, whole or not."""
    return sorted((run_dir / "checkpoints").glob("step-*"), reverse=True)


def read_state(checkpoint: Path) -> RunState:
    """A checkpoint's record of where the run stood; of nowhere when it is damaged."""
    try:
        return RunState(**json.loads((checkpoint / STATE).read_text()))
    except (OSError, ValueError, TypeError):
        return RunState()


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint folder; None when it is whole."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, checksum in files.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if sha256(checkpoint / name) != checksum:
            return f"{name} is not what was written"
    return None


def newest_whole_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint whose checksums hold, with a warning for each that is passed over."""
    for checkpoint in all_checkpoints(run_dir):
        wrong = damage(checkpoint)
        if wrong is None:
            return checkpoint
        warnings.warn(f"passing over damaged checkpoint {checkpoint}: {wrong}", stacklevel=2)
    return None


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, global_batch_size: int) -> RunState:
    """Put weights, optimizer, scaler and random states back. Every process calls this.

    On another number of processes than it was written by, those that are new keep the random states they have.

    Raises:
        ValueError: when the checkpoint is sharded and this run is not, or the other way round, or when its steps were
            of more or fewer sequences.
    """
    state = read_state(checkpoint)
    if state.global_batch_size not in (0, global_batch_size):  # 0: of a run that did not write them down
        raise ValueError(
            f"train.batch_size: got {global_batch_size} sequences a step with all processes and accumulation, "
            f"allowed: {state.global_batch_size}, as {checkpoint} has"
        )
    sharded, sharding = (checkpoint / "pytorch_model_fsdp_0").is_dir(), accelerator.distributed_type == "FSDP"
    if sharded != sharding:
        ways = {True: "with FSDP", False: "without FSDP"}
        raise ValueError(f"resume: {checkpoint} was written {ways[sharded]}, this run is {ways[sharding]}")
    accelerator.load_state(str(checkpoint))
    accelerator.step = 0  # accumulation begins anew, perhaps over another number of batches
    return state


def save_best_model(accelerator: Accelerator, model: nn.Module, card: str, run_dir: Path) -> None:
    """Replace RUN_DIR/model by the weights of now, as safetensors with their config and card. Every process calls this.

    Raises:
        OSError: when it cannot be written.
    """
    weights = accelerator.get_state_dict(model)  # whole on the main process, even where the model is sharded
    if not accelerator.is_main_process:
        return
    # What was gathered of shares that are not alike is a view of something longer, which safetensors does not save.
    weights = {name: t.clone() if t.untyped_storage().nbytes() > t.nbytes else t for name, t in weights.items()}
    with torch.device("meta"):
        whole = HierarchicalTransformer(**accelerator.unwrap_model(model).config.to_dict())
    whole.load_state_dict(weights, assign=True)
    whole.card = card
    temporary = fresh_folder(run_dir / ".model")
    with writing_to(temporary):
        whole.save_pretrained(temporary)
        (run_dir / "model").mkdir(exist_ok=True)
        for file in temporary.iterdir():
            replace(file, run_dir / "model" / file.name)
    temporary.rmdir()
