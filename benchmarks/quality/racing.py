"""What races have in common: their flags, and trials of as many bytes as the clock gives for a time."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from benchmarks.quality.clock import speeds
from benchmarks.quality.ledger import run_all
from benchmarks.quality.trials import Entry, Trial
from data import DataConfig, open_corpus
from model.generation.load import best_device
from training.command_line import Parser
from utils.checks import require

PRECISIONS = ("float32", "bf16")


def racing_parser(module: str, description: str) -> Parser:
    """The flags of every race."""
    parser = Parser(prog=f"python -m {module}", description=description)
    parser.add_argument("--out", type=str, required=True, help="the folder of all that is written")
    parser.add_class_arguments(DataConfig, "data")
    parser.add_argument("--minutes", type=PositiveFloat, default=10.0, help="of a trial that counts")
    parser.add_argument("--seeds", type=NonNegativeInt, nargs="+", default=[0, 1, 2], help="of weights and batches")
    parser.add_argument("--tokens-per-step", type=PositiveInt, default=8192, help="bytes of a step's whole batch")
    parser.add_argument("--precision", type=str, default="float32", help="float32, or bf16 for products")
    parser.add_argument("--threads", type=PositiveInt, default=torch.get_num_threads(), help="of the clock, on a CPU")
    parser.add_argument("--rounds", type=PositiveInt, default=15, help="timed steps of each entry")
    parser.add_argument("--jobs", type=PositiveInt | None, help="trials at once; null = one a core, or one on a GPU")
    parser.add_argument("--quick", action="store_true", help="miniatures, to see that everything runs")
    return parser


def check_known(flag: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise a ValueError that names the flag and those of its values that are not allowed."""
    unknown = ", ".join(sorted(set(given) - set(allowed)))
    require({flag: unknown}, **{flag: (not unknown, ", ".join(allowed))})


class Race:
    """Entries, a tuple of names each, with a clock that was read or set.

    Raises:
        ValueError: when flags do not fit, or an entry is not causal.
    """

    def __init__(self, args, entries: dict[Any, Entry]):
        self.args, self.folder = args, Path(args.out)
        try:
            self.data = DataConfig(**vars(args.data))
        except ValueError as error:
            raise ValueError(f"data.{error}") from error
        if args.precision not in PRECISIONS:
            raise ValueError(f"precision: got {args.precision}, allowed: {', '.join(PRECISIONS)}")
        lengths = {entry.model["seq_len"] for entry in entries.values()}
        if any(args.tokens_per_step % n for n in lengths):
            raise ValueError(f"tokens_per_step: got {args.tokens_per_step}, allowed: multiples of {sorted(lengths)}")
        self.corpus = open_corpus(self.data, max(lengths))
        firsts = {entry.builder: entry for entry in reversed(entries.values())}
        installed = {builder for builder, entry in firsts.items() if entry.build() is not None}
        self.entries = {names: entry for names, entry in entries.items() if entry.builder in installed}
        if not self.entries:
            raise ValueError("contenders: got none that is installed, allowed: at least one")
        self.folder.mkdir(parents=True, exist_ok=True)
        named = {", ".join(names): entry for names, entry in self.entries.items()}
        timed = speeds(
            named, args.tokens_per_step, args.precision, args.threads, args.rounds, self.folder / "speeds.json"
        )
        self.speeds = {names: timed[", ".join(names)] for names in self.entries}

    def trial(self, names: tuple[str, ...], rate: float, seed: int, minutes: float, final: bool) -> Trial:
        """An entry at a learning rate for as many steps as the clock gives it."""
        entry, tokens = self.entries[names], self.args.tokens_per_step
        steps = max(1, round(60 * minutes * self.speeds[names]["bytes_per_second"] / tokens))
        batch_size = tokens // entry.model["seq_len"]
        return Trial(entry, rate, seed, steps, batch_size, self.args.precision, self.corpus.sha256["train"], final)

    def run(self, trials: list[tuple[tuple[str, ...], Trial]]) -> dict[str, dict]:
        """What came of trials, by key."""
        jobs = self.args.jobs or (os.cpu_count() or 1 if best_device() == "cpu" else 1)
        return run_all([(", ".join(names), trial) for names, trial in trials], self.data, self.folder, jobs)

    def circumstances(self) -> dict:
        """What a result depends on beside the entries."""
        names = ("tokens_per_step", "precision", "threads", "seeds")
        return {
            "device": best_device(),
            "torch": torch.__version__,
            "corpus": self.corpus.name,
            "sizes": self.corpus.sizes,
            **{name: vars(self.args)[name] for name in names},
        }
