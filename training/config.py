"""The configuration of a run: dataclasses, filled from YAML files and flags, that check their values."""

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf
from pathlib import Path
from typing import Any, Literal

from jsonargparse import set_parsing_settings

from data.config import DataConfig
from model.config import ModelConfig
from training.command_line import Parser, reject
from training.completion import PrintCompletion
from training.init_from import check_shapes, find_source
from training.reading import split_into_flags
from utils.checks import is_number, require
from utils.errors import Mistake, UserError
from utils.files import user_path

set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the docstrings of fields are the help texts


@dataclass(frozen=True)
class TrainConfig:
    """How the model is trained.

    Raises:
        UserError: if a value does not fit; it lists all that do not.
    """

    max_steps: int = 1000
    """optimizer steps of the whole run"""
    batch_size: int = 8
    """sequences per process and forward pass; global batch = batch_size × processes × gradient_accumulation_steps"""
    gradient_accumulation_steps: int = 1
    """forward and backward passes whose gradients are averaged for one optimizer step"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the matrices of levels and merges and adamw for the rest (arXiv 2502.16982); tables of n-grams
    have an optimizer of their own, which steps the rows that were read (`RowwiseRMSprop`)"""
    learning_rate: float = 1e-3
    """peak learning rate, for all optimizers"""
    min_learning_rate: float = 1e-4
    """learning rate that the schedule reaches after max_steps"""
    schedule: Literal["cosine", "linear"] = "cosine"
    """how the learning rate falls from its peak to min_learning_rate: along half a cosine, or in a straight line"""
    warmup_steps: int = 100
    """steps of linear warm-up"""
    weight_decay: float = 0.1
    """weight decay of matrices; embeddings, norms and biases have none"""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates for the running averages of gradients and of squared gradients, the second for tables, too"""
    grad_clip: float = 1.0
    """the gradient, but for that of n-gram tables, is scaled down to this L2 norm if it is larger; 0 = no clipping"""
    max_skipped_steps: int = 10
    """steps with a loss or gradient that is not finite are skipped; after this many in a row the run stops"""
    seed: int = 0
    """seed of the weights, batches, dropout and samples"""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """auto = what `accelerate launch` was told, else the one of no and bf16 that is measured to be faster"""
    muon_precision: Literal["auto", "no", "bf16"] = "auto"
    """precision of muon's products: auto = bf16 on a GPU, and on a CPU the one that is measured to be faster"""
    tf32: bool = False
    """let a GPU multiply float32 matrices in TF32: faster, but with 10 bits of mantissa"""
    compile: bool = False
    """compile the blocks with torch.compile: slower to start, then faster"""
    activation_checkpointing: bool = False
    """recompute the blocks in the backward pass instead of keeping their activations: slower, but less memory"""
    log_every: int = 10
    """steps between two writes to metrics.jsonl, and between two measurements of speed/… and train/update_ratio; every
    step has a line there"""
    validate_every: int = 250
    """steps between two validations; the best model so far is kept in RUN_DIR/model"""
    validate_bytes: int = 65_536
    """approximate number of bytes of the validation split to score: evenly spaced, the same ones each time"""
    sample_every: int = 500
    """steps between two text samples; 0 = only one, at the end"""
    sample_length: int = 256
    """length of a text sample in bytes"""
    checkpoint_every: int = 500
    """steps between two checkpoints"""
    keep_checkpoints: int = 2
    """number of latest checkpoints to keep; the one with the best validation is kept as well"""
    trackers: tuple[str, ...] = ("wandb",)
    """dashboards to log to: any of wandb and trackio; RUN_DIR/metrics.jsonl is written in any case"""

    def __post_init__(self):
        checks = {}
        for name in (
            "max_steps",
            "batch_size",
            "gradient_accumulation_steps",
            "max_skipped_steps",
            "log_every",
            "validate_every",
            "validate_bytes",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            checks[name] = is_number(getattr(self, name), 1), "1 or above"
        for name in ("warmup_steps", "weight_decay", "grad_clip", "sample_every", "sample_length"):
            checks[name] = is_number(getattr(self, name), 0), "0 or above"

        rate = self.learning_rate
        rate_fits = is_number(rate, 0) and rate > 0
        highest = rate if rate_fits else inf  # a wrong peak is one mistake, not two
        min_rate_fits = is_number(self.min_learning_rate, 0) and self.min_learning_rate <= highest
        checks["learning_rate"] = rate_fits, "above 0"
        checks["min_learning_rate"] = min_rate_fits, f"0 to learning_rate = {rate}"

        checks["betas"] = all(is_number(beta, 0) and beta < 1 for beta in self.betas), "two values from 0 to below 1"
        checks["seed"] = is_number(self.seed, 0, int) and self.seed < 2**32, f"0 to {2**32 - 1}"
        require(vars(self), **checks)


@dataclass(frozen=True)
class WandbConfig:
    """Logging to Weights & Biases, if train.trackers names it."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto = online with an API key that works, else offline (upload later with `wandb sync`); disabled = no wandb"""
    project: str = "hierarchical-bytes"
    """wandb project"""
    name: str | None = None
    """name of the run; null = the name of the run directory"""
    log_model: bool = False
    """upload the best model to wandb as an artifact, with a version for each improvement"""


@dataclass(frozen=True)
class TrackioConfig:
    """Logging to Trackio, if train.trackers names it."""

    project: str = "hierarchical-bytes"
    """Trackio project"""
    name: str | None = None
    """name of the run; null = the name of the run directory"""
    space: str | None = None
    """Space of the Hugging Face hub to log to, as user/name; null = log to this machine"""


@dataclass(frozen=True)
class Config:
    """Train a hierarchical byte model: `accelerate launch train.py --config configs/quickstart.yaml`."""

    run_dir: str | None = None
    """folder for all that the run writes; null = runs/NAME for configs/NAME.yaml, runs/NAME-ID in a wandb sweep"""
    resume: bool = False
    """continue from the newest intact checkpoint of run_dir"""
    allow_other_corpus: bool = False
    """resume even if the corpus is not the one that the run was trained on"""
    init_from: str | None = None
    """begin with the weights of another run, a folder with a model, or a hub repository, and with its model settings
    where none are given; null = random weights"""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    trackio: TrackioConfig = field(default_factory=TrackioConfig)

    def __post_init__(self):
        if self.model.num_tokens != 256:
            raise UserError(Mistake("model.num_tokens", self.model.num_tokens, "256, because a corpus is bytes"))
        for name in ("run_dir", "init_from"):
            if getattr(self, name) == "":  # an unset variable of the shell
                raise UserError(Mistake(name, "", "null, or a path"))
        if self.allow_other_corpus and not self.resume:
            raise UserError("--allow_other_corpus needs --resume")

    @property
    def folder(self) -> Path:
        """The run directory. `load_config` gives it a name if the user did not."""
        assert self.run_dir is not None
        return user_path(self.run_dir)

    def to_dict(self) -> dict:
        """All settings, defaults included, as plain values that `--config` reads. SWITCHES are no settings."""
        values = asdict(self) | {"model": self.model.to_dict()}
        values["train"]["betas"] = list(self.train.betas)
        values["train"]["trackers"] = list(self.train.trackers)
        return {name: value for name, value in values.items() if name not in SWITCHES}


SWITCHES = {"resume", "allow_other_corpus"}  # flags for one start of a run

SECTIONS: dict[str, type] = {"model": ModelConfig, "data": DataConfig, "train": TrainConfig}
SECTIONS |= {"wandb": WandbConfig, "trackio": TrackioConfig}

# While the value of the first is not known, the second, a setting or a whole section, cannot be judged.
RESTS_ON = {
    "model.hierarchies": "model.",
    "model.seq_len": "model.window_sizes",
    "model.heads": "model.kv_heads",
    "model.depth": "model.attn_depth",
    "data.name": "data.",
    "train.learning_rate": "train.min_learning_rate",
}


def load_config(argv: list[str] | None = None) -> Config:
    """Read `--config FILE` and flags, which replace what is in the file, and check all of it.

    What neither has is as in the run that is resumed, or else as in the model that the run begins from. Mistakes end
    the program, with exit code 2 and a line for each.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    given = parser.read(argv)
    run_dir = given.get("run_dir") or default_run_dir(argv)

    # -- the settings of the run to resume, or those of the model to begin from
    if given.get("resume"):
        known = user_path(run_dir) / "config.yaml"
        if known.is_file():
            argv = ["--config", str(known), *argv]
    elif given.get("init_from"):
        try:
            model = find_source(given["init_from"]).config
        except UserError as error:
            reject(error.mistakes)
        parser.inherit({f"model.{each.name}": getattr(model, each.name) for each in fields(model)})

    # -- all of it
    config = parser.build_from(parser.parse_args(argv))
    return config if config.run_dir else replace(config, run_dir=run_dir)


def build_parser() -> Parser:
    """The parser of train.py's command line."""
    usage = "train.py [--config FILE] [--SETTING=VALUE ...] [--resume]"
    parser = Parser(prog="train.py", usage=usage, description=Config.__doc__, build=build_config, rests_on=RESTS_ON)
    parser.add_argument("--config", action="config", help="a YAML file of any of these settings")
    parser.add_class_arguments(Config, skip=SWITCHES)
    parser.add_argument("--resume", action="store_true", help="continue from the newest intact checkpoint of run_dir")
    help_text = "resume even if the corpus is not the one that the run was trained on"
    parser.add_argument("--allow_other_corpus", action="store_true", help=help_text)
    parser.add_argument("--print_completion", action=PrintCompletion, help="print a script for completion in a shell")
    return parser


def build_config(values: Mapping[str, Any]) -> Config:
    """The configuration from settings by their dotted names; those that are not given have their defaults.

    Raises:
        UserError: if settings do not fit; it lists all that do not.
    """
    # -- the sections
    sections: dict[str, Any] = {}
    mistakes = []
    for section, kind in SECTIONS.items():
        prefix = f"{section}."
        own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        try:
            sections[section] = kind(**own)
        except UserError as error:
            mistakes += [in_section(section, mistake) for mistake in error.mistakes]

    # -- the whole
    others = {name: values[name] for name in ("run_dir", "init_from", *SWITCHES) if name in values}
    try:
        config = Config(**others, **sections)
        if config.init_from and not config.resume and not mistakes:
            check_shapes(find_source(config.init_from), config.model)
    except UserError as error:
        mistakes += error.mistakes
    if mistakes:
        raise UserError(*mistakes)
    return config


def in_section(section: str, mistake: Mistake | str) -> Mistake | str:
    """The same mistake, with the name of the section before that of the setting."""
    if isinstance(mistake, Mistake):
        return replace(mistake, name=f"{section}.{mistake.name}")
    return mistake


def default_run_dir(argv: list[str]) -> str:
    """The run directory if none is given, named after the last config file. Each run of a wandb sweep has its own."""
    texts = [flag.words[0] for flag in split_into_flags(argv) if flag.name == "config" and flag.words]
    files = [user_path(text) for text in texts if os.path.exists(user_path(text))]  # the others are settings themselves
    name = files[-1].stem if files else "default"
    if "WANDB_SWEEP_ID" in os.environ:
        name += f"-{os.environ['WANDB_RUN_ID']}"
    return f"runs/{name}"
