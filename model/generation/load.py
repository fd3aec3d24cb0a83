"""Load a trained model from its run directory, and pick a device for it."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from model.config import ModelConfig
from model.transformer import HierarchicalTransformer
from utils.checks import is_number
from utils.errors import Mistake, UserError
from utils.files import read_json
from utils.new_weights import NoInitialValues

Shapes = dict[str, tuple[int, ...]]  # the shape of each weight, by its name


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
        check_shapes(folder)
        with NoInitialValues():
            model = HierarchicalTransformer.from_pretrained(folder)
    except (OSError, RuntimeError, SafetensorError, UserError) as error:
        raise UserError(f"the weights in {folder} do not fit its config.json: {error}") from error

    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # what PyTorch raises for a device that is not there
        reason = str(error).partition("\n")[0]
        raise UserError(Mistake("device", device, f"one that PyTorch can use here ({reason})")) from error


def check_shapes(folder: Path) -> None:
    """Compare the shapes of the weights in model.safetensors with those of config.json, before any memory is taken.

    Raises:
        UserError: when config.json holds no settings of a model, or the first weight that does not fit.
    """
    found = saved_shapes(folder / "model.safetensors")

    settings = read_model_settings(folder / "config.json")
    check_depth("depth", settings.get("depth"), found)

    # -- the weights that the settings ask for
    expected = weight_shapes(ModelConfig(**settings))
    for name in expected | found:
        if expected.get(name) != found.get(name):
            raise UserError(f"{name} has shape {found.get(name)}, config.json asks for {expected.get(name)}")


def read_model_settings(path: Path) -> dict[str, Any]:
    """The settings of a model by name, from its config.json. Their values are not checked.

    Raises:
        UserError: when it holds something else, or a setting that does not exist.
    """
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise UserError("config.json holds no settings by name")
    unknown = settings.keys() - {each.name for each in fields(ModelConfig)}
    if unknown:
        raise UserError(f"config.json has {', '.join(sorted(unknown))}, and there is no such setting")
    return settings


def check_depth(name: str, depth: Any, found: Shapes) -> None:
    """Raise a UserError on a depth of more layers than there are weights, which would take minutes to build."""
    depths = depth if isinstance(depth, list | tuple) else [depth]
    if any(is_number(each, len(found) + 1) for each in depths):
        raise UserError(Mistake(name, depth, f"at most {len(found)}, as there are no more weights"))


def weight_shapes(config: ModelConfig) -> Shapes:
    """The shapes of the weights of a model with these settings. No memory is taken."""
    with NoInitialValues("meta"):
        model = HierarchicalTransformer(**config.to_dict())
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def saved_shapes(path: Path) -> Shapes:
    """The shapes of the weights in a safetensors file, of which only the header is read.

    Raises:
        OSError, SafetensorError: if it cannot be read.
    """
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, it is no dict


def best_device() -> str:
    """The first of cuda, mps and cpu that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
