"""Load a trained model from its run directory, and pick a device for it."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError

from model.transformer import HierarchicalTransformer
from utils.errors import Mistake, UserError


def load_model(run_dir: Path, device: str) -> HierarchicalTransformer:
    """The best model of a run, in evaluation mode.

    Raises:
        UserError: if there is none, its weights do not fit its config, or the device cannot be used.
    """
    folder = run_dir / "model"
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{run_dir} is no run directory with a trained model: it has no model/{name}")

    try:
        model = HierarchicalTransformer.from_pretrained(folder)
    except (RuntimeError, SafetensorError, json.JSONDecodeError, TypeError, UserError) as error:
        raise UserError(f"the weights in {folder} do not fit its config.json: {error}") from error

    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # what PyTorch raises for a device that is not there
        reason = str(error).partition("\n")[0]
        raise UserError(Mistake("device", device, f"one that PyTorch can use here ({reason})")) from error


def best_device() -> str:
    """The first of cuda, mps and cpu that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
