"""Begin a run from the weights of a trained model: another run's, a folder's, or those of the Hugging Face hub."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file

from model import HierarchicalTransformer, ModelConfig
from model.generation.load import check_depth, read_model_settings, saved_shapes, weight_shapes
from utils.errors import Mistake, UserError, as_typed
from utils.files import sha256, user_path

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ALLOWED = "a run directory, a folder with a model, or a repository of the Hugging Face hub"


@dataclass(frozen=True)
class Source:
    """A trained model to begin from."""

    name: str
    """as the user typed it"""
    folder: Path
    """holds config.json and model.safetensors"""
    config: ModelConfig

    def to_dict(self) -> dict[str, str]:
        """What a run remembers of it, with the checksum of the weights."""
        return {"init_from": self.name, "weights": str(self.folder / WEIGHTS), "sha256": sha256(self.folder / WEIGHTS)}


def find_source(name: str) -> Source:
    """Find a model by what the user typed: a run directory, whose best model it is, a folder, or a hub repository.

    Raises:
        UserError: if there is no model, or its config.json is not one.
    """
    folder = find_folder(name)
    try:
        return Source(name, folder, ModelConfig(**read_model_settings(folder / CONFIG)))
    except UserError as error:
        raise UserError(f"init_from: {folder / CONFIG} is no config of a model here ({error})") from error


def find_folder(name: str) -> Path:
    """The folder with the files of a model, downloaded from the hub if no folder has that name."""
    path = user_path(name)
    if not path.exists():
        return download(name)
    for folder in (path / "model", path):
        if all((folder / file).is_file() for file in (CONFIG, WEIGHTS)):
            return folder
    if (path / "config.yaml").is_file():
        raise UserError(f"init_from: the run in {path} has no model yet; it saves the first one when it validates")
    raise UserError(Mistake("init_from", name, ALLOWED))


def download(repository: str) -> Path:
    """The folder of a hub repository in the hub's cache."""
    try:
        return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # the hub and the network raise exceptions of many kinds
        reason = str(error).strip().partition("\n")[0]
        raise UserError(Mistake("init_from", repository, f"{ALLOWED} ({reason})")) from error


def check_shapes(source: Source, config: ModelConfig) -> None:
    """Check that the weights of a model fit other settings.

    Raises:
        UserError: with the settings that give weights another shape, or else with the first few weights that differ;
            or if the weights cannot be read.
    """
    path = source.folder / WEIGHTS
    try:
        found = saved_shapes(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"init_from: {path} cannot be read ({error})") from error
    for depth in (source.config.depth, config.depth):
        check_depth("model.depth", depth, found)
    needed = weight_shapes(config)
    if needed == found:
        return

    # -- the settings to blame
    mistakes = []
    for name, value in config.to_dict().items():
        if changes_shapes(source.config, name, getattr(config, name)):
            allowed = f"{as_typed(getattr(source.config, name))}, as in {source.folder}"
            mistakes.append(Mistake(f"model.{name}", value, allowed))
    if mistakes:
        raise UserError(*mistakes)

    # -- no setting is: the weights do not fit their own config
    weights = [name for name in sorted({*needed, *found}) if needed.get(name) != found.get(name)]
    parts = [f"{name} is {found.get(name, 'missing')} instead of {needed.get(name, 'none')}" for name in weights[:3]]
    more = f"; {len(weights) - 3} more differ" if len(weights) > 3 else ""
    raise UserError(f"init_from: the weights in {source.folder} do not fit: {'; '.join(parts)}{more}")


def changes_shapes(config: ModelConfig, name: str, value: object) -> bool:
    """Whether another value of one setting gives weights other shapes, or does not fit the other settings."""
    if getattr(config, name) == value:
        return False
    try:
        return weight_shapes(replace(config, **{name: value})) != weight_shapes(config)
    except UserError:
        return True


def load_weights(model: HierarchicalTransformer, source: Source) -> None:
    """Load all weights of a source into a model on the CPU that is not wrapped or sharded yet."""
    model.load_state_dict(load_file(source.folder / WEIGHTS))


def differences(source: Source, config: ModelConfig) -> list[str]:
    """Model settings that are not those of the source, for people to read."""
    pairs = {each.name: (getattr(source.config, each.name), getattr(config, each.name)) for each in fields(config)}
    return [f"model.{name}: {as_typed(old)} -> {as_typed(new)}" for name, (old, new) in pairs.items() if old != new]
