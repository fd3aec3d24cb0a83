"""A trained model, from its run directory."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError

from model import HierarchicalTransformer


def load_model(run_dir: Path, device: str) -> HierarchicalTransformer:
    """The best model of a run, in evaluation mode.

    Raises:
        ValueError: when there is none, its weights do not fit its config, or the device cannot be used.
    """
    folder = run_dir / "model"
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"run_dir: {run_dir} holds no trained model ({folder / name} is missing)")
    try:
        model = HierarchicalTransformer.from_pretrained(folder)
    except (RuntimeError, SafetensorError, json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"run_dir: the weights in {folder} do not fit its config.json: {error}") from error
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: got {device}, which cannot be used here: {error}") from error


def best_device() -> str:
    """cuda, mps or cpu, the first of them that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
