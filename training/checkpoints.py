"""Checkpoints of a run, each a folder that counts only when it is whole, and the best model beside them."""

import json
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from training.files import fresh_folder, replace, sha256, write_text

MANIFEST = "manifest.json"  # every file's checksum, and the run's state; written last


@dataclass
class RunState:
    """Where a run stands, beside its weights, optimizer and random states."""

    step: int = 0  # finished optimizer steps
    best_bits_per_byte: float = float("inf")
    tracker_id: str | None = None


def save_checkpoint(accelerator: Accelerator, run_dir: Path, state: RunState, keep: int) -> None:
    """Write checkpoints/step-N and drop all but the newest `keep`. Every process calls this."""
    checkpoints = run_dir / "checkpoints"
    temporary = checkpoints / ".writing"
    if accelerator.is_main_process:
        fresh_folder(temporary)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        files = {str(p.relative_to(temporary)): sha256(p) for p in sorted(temporary.rglob("*")) if p.is_file()}
        write_text(temporary / MANIFEST, json.dumps({"state": asdict(state), "sha256": files}, indent=2))
        target = checkpoints / f"step-{state.step:08d}"
        shutil.rmtree(target, ignore_errors=True)
        replace(temporary, target)
        for old in all_checkpoints(run_dir)[keep:]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def all_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoint folders, newest first, whole or not."""
    return sorted((run_dir / "checkpoints").glob("step-*"), reverse=True)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint folder; None when it is whole."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError) as error:
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


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> RunState:
    """Put weights, optimizer and random states back. Every process calls this."""
    accelerator.load_state(str(checkpoint))
    return RunState(**json.loads((checkpoint / MANIFEST).read_text())["state"])


def save_best_model(accelerator: Accelerator, model: nn.Module, run_dir: Path) -> None:
    """Replace RUN_DIR/model by the weights of now, as safetensors with their config."""
    state_dict = accelerator.get_state_dict(model)
    if not accelerator.is_main_process:
        return
    temporary = fresh_folder(run_dir / ".model")
    accelerator.unwrap_model(model).save_pretrained(temporary, state_dict=state_dict)
    (run_dir / "model").mkdir(exist_ok=True)
    for file in temporary.iterdir():
        replace(file, run_dir / "model" / file.name)
    temporary.rmdir()
