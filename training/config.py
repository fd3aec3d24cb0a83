"""A run's configuration: YAML and flags to checked dataclasses, with one clear line for what is wrong."""

import os
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from jsonargparse import set_parsing_settings

from data.config import DataConfig
from model.config import ModelConfig
from training.command_line import Parser, Reading, files_first, reject
from training.completion import PrintCompletion
from utils.checks import is_number, require

set_parsing_settings(docstring_parse_attribute_docstrings=True)


@dataclass(frozen=True)
class TrainConfig:
    """How the model is trained."""

    max_steps: int = 1000
    """optimizer steps of the whole run"""
    batch_size: int = 8
    """sequences a process takes through the model at once; times processes times accumulation = global batch"""
    gradient_accumulation_steps: int = 1
    """batches whose gradients make one step"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the matrices of levels and merges with adamw for the rest (arXiv 2502.16982)"""
    learning_rate: float = 1e-3
    """peak learning rate, of both optimizers"""
    min_learning_rate: float = 1e-4
    """where the schedule ends, at max_steps"""
    schedule: Literal["cosine", "linear"] = "cosine"
    """from the peak learning rate down to the lowest: along half a cosine, or in a straight line"""
    warmup_steps: int = 100
    """steps of linear warm-up"""
    weight_decay: float = 0.1
    """decay of matrices; embeddings, norms and biases have none"""
    betas: tuple[float, float] = (0.9, 0.95)
    """running averages of AdamW: gradients and their squares"""
    grad_clip: float = 1.0
    """largest norm of the gradient; 0 = no clipping"""
    max_skipped_steps: int = 10
    """steps in a row whose loss or gradient is not finite, each of them skipped, before the run stops"""
    seed: int = 0
    """of the weights, the batches, dropout and samples"""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """auto = bf16 or fp16 if `accelerate launch` was told so, else bf16 on a GPU or CPU that has it, else no"""
    tf32: bool = False
    """let a GPU multiply float32 matrices in TF32: faster, with 10 bits of mantissa"""
    compile: bool = False
    """compile the blocks with torch.compile: slower to start, faster to run"""
    activation_checkpointing: bool = False
    """compute a block again in the backward pass instead of keeping what is inside it: slower, in less memory"""
    log_every: int = 10
    """steps between two writes of metrics, which have a line for every step"""
    validate_every: int = 250
    """steps between two validations; the best model so far is kept in RUN_DIR/model"""
    validate_bytes: int = 65_536
    """about how much of the validation split a validation scores, spread evenly, always the same bytes"""
    sample_every: int = 500
    """steps between two text samples; 0 = none but the last"""
    sample_length: int = 256
    """bytes of a sample"""
    checkpoint_every: int = 500
    """steps between two checkpoints"""
    keep_checkpoints: int = 2
    """newest checkpoints that are kept, beside the one with the best validation"""
    trackers: tuple[str, ...] = ("wandb",)
    """dashboards to log to, any of wandb and trackio; RUN_DIR/metrics.jsonl is always written"""

    def __post_init__(self):
        least = dict.fromkeys(("max_steps", "batch_size", "gradient_accumulation_steps", "log_every"), 1)
        least |= dict.fromkeys(("validate_every", "validate_bytes", "checkpoint_every", "keep_checkpoints"), 1)
        least |= dict.fromkeys(("warmup_steps", "weight_decay", "grad_clip", "sample_every", "sample_length"), 0)
        least["max_skipped_steps"] = 1
        checks = {name: (is_number(getattr(self, name), low), f"{low} or above") for name, low in least.items()}
        checks["learning_rate"] = is_number(self.learning_rate, 0) and self.learning_rate > 0, "above 0"
        checks["seed"] = is_number(self.seed, 0, int) and self.seed < 1 << 32, "0 to 4294967295"
        lowest = is_number(self.min_learning_rate, 0) and not self.min_learning_rate > self.learning_rate
        checks["min_learning_rate"] = lowest, f"0 to learning_rate = {self.learning_rate}"
        between = all(is_number(beta, 0) and beta < 1 for beta in self.betas)
        checks["betas"] = between, "two values from 0 to below 1"
        require(vars(self) | {"betas": list(self.betas)}, **checks)


@dataclass(frozen=True)
class WandbConfig:
    """How Weights & Biases logs, when `train.trackers` names it."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto = online when a key is at hand, else offline (see `wandb sync`); disabled = no wandb at all"""
    project: str = "hierarchical-bytes"
    """wandb project"""
    name: str | None = None
    """name of the run; the run directory's own when null"""
    log_model: bool = False
    """keep the best model at wandb, too, as an artifact with a version for each time it got better"""


@dataclass(frozen=True)
class TrackioConfig:
    """Where Trackio logs, when `train.trackers` names it."""

    project: str = "hierarchical-bytes"
    """Trackio project"""
    name: str | None = None
    """name of the run; the run directory's own when null"""
    space: str | None = None
    """Space of the Hugging Face hub to log to, as user/name; this machine when null"""


@dataclass(frozen=True)
class Config:
    """Train a hierarchical byte model. `accelerate launch train.py --config configs/quickstart.yaml`"""

    run_dir: str | None = None
    """folder of all that the run writes; when null, runs/NAME for configs/NAME.yaml, and in a sweep runs/NAME-ID"""
    resume: bool = False
    """go on from the newest whole checkpoint of run_dir"""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    trackio: TrackioConfig = field(default_factory=TrackioConfig)

    @property
    def folder(self) -> Path:
        """The run directory, which `load_config` has given a name."""
        assert self.run_dir is not None
        return Path(self.run_dir)

    def to_dict(self) -> dict:
        """Plain values, every default filled in, as `--config` reads them; without `resume`, which is no setting."""
        values = asdict(self) | {"model": self.model.to_dict()}
        values["train"]["betas"] = list(self.train.betas)
        values["train"]["trackers"] = list(self.train.trackers)
        del values["resume"]
        return values


SECTIONS: dict[str, type] = {"model": ModelConfig, "data": DataConfig, "train": TrainConfig}
SECTIONS |= {"wandb": WandbConfig, "trackio": TrackioConfig}

# What cannot be judged while another setting is not known.
RESTS_ON = {"model.hierarchies": "model.", "model.seq_len": "model.window_sizes", "model.heads": "model.kv_heads"}
RESTS_ON |= {"model.depth": "model.attn_depth", "data.name": "data."}


def build_sections(values: dict[str, Any]) -> tuple[dict, list[str]]:
    """Sections from settings by their dotted names, and a line for each value that a section refuses."""
    sections, mistakes = {}, []
    for name, section in SECTIONS.items():
        own = {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}
        try:
            sections[name] = section(**own)
        except ValueError as error:  # which joins what is wrong
            mistakes += [f"{name}.{mistake}" for mistake in re.split(r"; (?=\w+: got )", str(error))]
    if "model" in sections and sections["model"].num_tokens != 256:
        mistakes.append(f"model.num_tokens: got {sections['model'].num_tokens}, allowed: 256, as a corpus is bytes")
    return sections, mistakes


class RunParser(Parser):
    """The parser of a run's settings, which are checked beside one another even where some cannot be read."""

    def mistakes(self) -> list[str]:
        reading = Reading(self)
        unsure = tuple(RESTS_ON.get(setting, f"{setting}:") for setting, _ in reading.mistakes)
        refused = [line for line in build_sections(reading.values)[1] if not line.startswith(unsure)]
        return [line for _, line in reading.mistakes] + refused


def load_config(argv: list[str] | None = None) -> Config:
    """Read `--config FILE` and dotted flags, which count more, and check them all.

    What is wrong ends the program, with exit code 2 and a line for each mistake.
    """
    argv = files_first(sys.argv[1:] if argv is None else argv)
    parser = RunParser(prog="train.py", description=Config.__doc__, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a YAML file of any of these settings")
    parser.add_class_arguments(Config, skip={"resume"})
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint of run_dir")
    parser.add_argument("--print_completion", action=PrintCompletion, help="print what completes all this in a shell")
    values = parser.parse_args(argv)
    if values.resume and values.run_dir and not values.config:  # a run remembers its own settings
        known = Path(values.run_dir) / "config.yaml"
        values = parser.parse_args(["--config", str(known), *argv]) if known.is_file() else values
    if values.run_dir is None:
        values.run_dir = f"runs/{Path(str(values.config[-1])).stem if values.config else 'default'}"
        if "WANDB_SWEEP_ID" in os.environ:  # each run of a sweep has its own
            values.run_dir += f"-{os.environ['WANDB_RUN_ID']}"

    sections, mistakes = build_sections(vars(values.as_flat()))
    if mistakes:
        reject(mistakes)
    return Config(run_dir=values.run_dir, resume=values.resume, **sections)
