"""What the races, the ablations and the regimes share: options, measured speeds, and trials of equal training time."""

import os
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import torch
from jsonargparse import DefaultHelpFormatter
from jsonargparse.typing import NonNegativeInt, PositiveInt

from benchmarks.quality.training_speeds import Speed, training_speeds
from benchmarks.quality.trial_runner import Result, run_trials
from benchmarks.quality.trials import Entry, Trial
from data import DataConfig, open_corpus
from model.generation.load import best_device
from training.command_line import Parser
from utils.checks import require
from utils.errors import Mistake, UserError

PRECISIONS = ("float32", "bf16")
Names = tuple[str, ...]  # what an entry is called, such as its contender and its size
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class RaceOptions:
    """The options of every race."""

    folder: Path
    """where everything is written"""
    data: DataConfig
    seeds: list[int]
    tokens_per_step: int
    """bytes of a training step, in all sequences together"""
    precision: str
    """one of PRECISIONS"""
    threads: int
    """threads of PyTorch on a CPU while speeds are measured"""
    rounds: int
    """timed calls of each entry"""
    jobs: int
    """trials that run at once"""
    quick: bool
    """train miniatures"""


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Prints a description with its own line breaks."""


def race_parser(module: str, description: str | None) -> Parser:
    """A parser with the flags of every race."""
    parser = Parser(prog=f"python -m {module}", description=description, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=str, required=True, help="folder where everything is written")
    parser.add_class_arguments(DataConfig, "data")
    parser.add_argument("--seeds", type=NonNegativeInt, nargs="+", default=[0, 1, 2], help="for weights and batches")
    parser.add_argument("--tokens-per-step", type=PositiveInt, default=8192, help="bytes of a training step")
    parser.add_argument("--precision", type=str, default="float32", help="float32, or bf16 for matrix products")
    parser.add_argument(
        "--threads",
        type=PositiveInt,
        default=torch.get_num_threads(),
        help="threads on a CPU while speeds are measured",
    )
    parser.add_argument("--rounds", type=PositiveInt, default=15, help="timed calls of each entry")
    parser.add_argument(
        "--jobs", type=PositiveInt | None, help="trials that run at once; null = one per CPU core, or one on a GPU"
    )
    parser.add_argument("--quick", action="store_true", help="train miniatures, to see whether everything runs")
    return parser


def read_race_options(args: Namespace) -> RaceOptions:
    """The options among the arguments of `race_parser`.

    Raises:
        UserError: when the data's settings do not fit together, or the precision is unknown.
    """
    try:
        data = DataConfig(**vars(args.data))
    except UserError as error:
        raise UserError(*(within_section("data", mistake) for mistake in error.mistakes)) from error
    require({"precision": args.precision}, precision=(args.precision in PRECISIONS, ", ".join(PRECISIONS)))

    return RaceOptions(
        folder=Path(args.out),
        data=data,
        seeds=args.seeds,
        tokens_per_step=args.tokens_per_step,
        precision=args.precision,
        threads=args.threads,
        rounds=args.rounds,
        jobs=args.jobs or default_jobs(),
        quick=args.quick,
    )


def within_section(section: str, mistake: Mistake | str) -> Mistake | str:
    """A mistake of a section's setting, by the setting's full name."""
    return replace(mistake, name=f"{section}.{mistake.name}") if isinstance(mistake, Mistake) else mistake


def default_jobs() -> int:
    """How many trials run at once: one per CPU core, or one on a GPU."""
    if best_device() != "cpu":
        return 1
    return os.cpu_count() or 1


def check_known(flag: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise a UserError with those of a flag's values that are not allowed."""
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        raise UserError(Mistake(flag, ", ".join(unknown), ", ".join(allowed)))


@dataclass(frozen=True)
class PlannedTrial:
    """A trial, and the name of its entry in messages and results."""

    name: str
    trial: Trial


class Race:
    """Entries whose packages are installed, with their speeds, which are measured unless the folder has them.

    Args:
        options: those of the command line.
        entries: what is trained, by names such as contender and size.

    Raises:
        UserError: when the options do not fit the entries, the corpus cannot be read, the folder cannot be made, or no
            entry is installed.
        ValueError: names an entry that is not causal.
    """

    def __init__(self, options: RaceOptions, entries: Mapping[Names, Entry]):
        self.options = options
        lengths = {entry.model["seq_len"] for entry in entries.values()}
        if any(options.tokens_per_step % n for n in lengths):
            allowed = f"multiples of {sorted(lengths)}"
            raise UserError(Mistake("tokens_per_step", options.tokens_per_step, allowed))
        self.corpus = open_corpus(options.data, max(lengths))
        self.entries = installed_entries(entries)
        make_folder(options.folder)

        by_name = {full_name(names): entry for names, entry in self.entries.items()}
        speeds = training_speeds(
            by_name,
            options.tokens_per_step,
            options.precision,
            options.threads,
            options.rounds,
            options.folder / "speeds.json",
        )
        self.speeds: dict[Names, Speed] = {names: speeds[full_name(names)] for names in self.entries}

    def plan_trial(self, names: Names, learning_rate: float, seed: int, minutes: float, final: bool) -> PlannedTrial:
        """Train an entry for as many steps as its speed allows in some minutes.

        Args:
            final: also score the test split, and the validation split along the way.
        """
        entry = self.entries[names]
        trial = Trial(
            entry=entry,
            learning_rate=learning_rate,
            seed=seed,
            steps=self.steps_in(names, minutes),
            batch_size=self.options.tokens_per_step // entry.model["seq_len"],
            precision=self.options.precision,
            corpus=self.corpus.sha256["train"],
            final=final,
        )
        return PlannedTrial(full_name(names), trial)

    def bytes_in(self, names: Names, minutes: float) -> int:
        """How many bytes an entry trains on in some minutes."""
        return self.steps_in(names, minutes) * self.options.tokens_per_step

    def steps_in(self, names: Names, minutes: float) -> int:
        """How many training steps an entry makes in some minutes at its measured speed, at least one."""
        bytes_to_train = 60 * minutes * self.speeds[names]["bytes_per_second"]
        return max(1, round(bytes_to_train / self.options.tokens_per_step))

    def run_trials(self, planned: Mapping[Key, PlannedTrial]) -> dict[Key, Result]:
        """Run the trials that have no result yet, and return the results of all of them."""
        named = [(one.name, one.trial) for one in planned.values()]
        results = run_trials(named, self.options.data, self.options.folder, self.options.jobs)
        return {key: results[one.trial.key] for key, one in planned.items()}

    def conditions(self) -> dict[str, Any]:
        """What results depend on besides the entries."""
        return {
            "device": best_device(),
            "torch": torch.__version__,
            "corpus": self.corpus.name,
            "sizes": self.corpus.sizes,
            "tokens_per_step": self.options.tokens_per_step,
            "precision": self.options.precision,
            "threads": self.options.threads,
            "seeds": self.options.seeds,
        }


def full_name(names: Names) -> str:
    """An entry's names as one."""
    return ", ".join(names)


def installed_entries(entries: Mapping[Names, Entry]) -> dict[Names, Entry]:
    """The entries whose packages are installed. The first entry of each builder is built to find out."""
    installed: dict[str, bool] = {}
    for entry in entries.values():
        if entry.builder not in installed:
            installed[entry.builder] = entry.build() is not None
    if not any(installed.values()):
        raise UserError("none of the contenders is installed: pip install -r benchmarks/requirements.txt")
    return {names: entry for names, entry in entries.items() if installed[entry.builder]}


def make_folder(folder: Path) -> None:
    """Make the folder of a race unless it exists.

    Raises:
        UserError: when that is impossible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot make the folder {folder}: {error.strerror}") from error


def score_or_infinity(bits: float | None) -> float:
    """Bits per byte to compare by: None, the score of weights that are not finite, is the worst."""
    return inf if bits is None else bits


def mean_and_spread(values: list[float], style: str = ".4f") -> str:
    """The mean of values over seeds, ± half the distance from the least to the largest."""
    half_range = (max(values) - min(values)) / 2
    return f"{mean(values):{style}} ± {half_range:.4f}"
