"""One trial: a contender trained on a given number of bytes with `train.py`'s training step, and scored.

A trial continues after its process was killed. Its result is a pure function of its description, bit for bit on a CPU,
where it runs on one thread.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from math import ceil, isfinite
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks import contenders
from benchmarks.contenders import Contender, build_trainer
from benchmarks.quality.causality_check import check_causality
from data import DataConfig, open_corpus, scoring_windows
from evaluation.bits_per_byte import FIRST_BYTE, bits_per_byte, window_nats
from model.generation.load import best_device
from training.config import TrainConfig
from training.optimizer import build_optimizer
from training.speed import keep_freed_memory
from training.step import train_step
from utils.files import replace

POINTS = 10  # a final trial is scored at so many evenly spread points
POINT_BYTES = 1 << 18  # from the start of the validation split, that a point of the curve scores
END_BYTES = 1 << 20  # the same for other trials, which are compared by what they score at their end
WINDOWS = 16  # scored at once
SAVE_SECONDS = 30  # at most so much is lost when a process is killed


@dataclass(frozen=True)
class Entry:
    """What is raced: a builder of `benchmarks.contenders`, its arguments, and settings of training that differ."""

    builder: str
    model: dict
    train: dict = field(default_factory=dict)  # fields of `TrainConfig`, apart from those that `Trial.schedule` sets

    def build(self) -> Contender | None:
        """A new model; None if it comes from a package that is not installed."""
        return getattr(contenders, self.builder)(**self.model)


@dataclass(frozen=True)
class Trial:
    """Everything that decides the result of a trial."""

    entry: Entry
    learning_rate: float
    seed: int
    steps: int
    batch_size: int
    precision: str
    corpus: str  # checksum of its training split
    final: bool  # with a curve along the way, and a score of the test split

    @property
    def key(self) -> str:
        """A name for these settings."""
        return key_of(asdict(self))

    def schedule(self) -> TrainConfig:
        """Warm-up over a tenth of the steps, 100 at most, then a cosine to 5 % of the rate."""
        return TrainConfig(
            max_steps=self.steps,
            batch_size=self.batch_size,
            seed=self.seed,
            learning_rate=self.learning_rate,
            min_learning_rate=0.05 * self.learning_rate,
            warmup_steps=min(100, self.steps // 10),
            muon_precision="bf16" if self.precision == "bf16" else "no",
            **self.entry.train,
        )


def key_of(settings: dict) -> str:
    """A name for settings, the same for equal ones."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class TrialState:
    """How far a trial is, in memory and in a file that is replaced every SAVE_SECONDS.

    Attributes:
        step: finished steps.
        curve: validation scores so far, {"bytes", "bits_per_byte"} each.
        scored: windows of the test split that are scored, and their nats.
    """

    def __init__(self, path: Path, contender: Contender, optimizer: torch.optim.Optimizer, device: torch.device):
        self.path, self.contender, self.optimizer = path, contender, optimizer
        self.step = 0
        self.curve: list[dict] = []
        self.scored = (0, FIRST_BYTE)
        seconds = 0.0
        if path.exists():
            saved = torch.load(path, map_location=device)
            self.step, self.curve, self.scored = saved["step"], saved["curve"], saved["scored"]
            seconds = saved["seconds"]
            contender.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
        self.last_saved = time.monotonic()
        self.started = self.last_saved - seconds

    def seconds(self) -> float:
        """Time that the trial took so far, over all of its processes."""
        return time.monotonic() - self.started

    def save_when_due(self, now: bool = False) -> None:
        """Save if it is time to, or `now`. Exit if the process that waits for the result is gone."""
        parent = parent_process()
        if parent is None or not parent.is_alive():
            os._exit(1)
        if not now and time.monotonic() - self.last_saved <= SAVE_SECONDS:
            return
        self.last_saved = time.monotonic()
        progress = {"step": self.step, "curve": self.curve, "scored": self.scored, "seconds": self.seconds()}
        weights = {"model": self.contender.state_dict(), "optimizer": self.optimizer.state_dict()}
        save(self.path, progress | weights)


def run_trial(name: str, trial: Trial, data: DataConfig, path: Path) -> dict:
    """Train and score, from the state in the file at `path` if there is one. Runs in a child process.

    Returns `validation`, `curve` and, of a final trial, `test`, in bits per byte, and `seconds`.

    Raises:
        ValueError: that names the contender, when the trained model is not causal.
    """
    # -- the machine, the data and the contender
    device = torch.device(best_device())
    torch.set_num_threads(1)
    keep_freed_memory()
    corpus, config, seq_len = open_corpus(data), trial.schedule(), trial.entry.model["seq_len"]
    torch.manual_seed(trial.seed)
    contender = trial.entry.build()
    assert contender is not None  # contenders that are not installed are not raced
    contender.to(device)
    optimizer = build_optimizer(contender.model, config)
    trainer = build_trainer(contender, optimizer, config, corpus["train"], seq_len, trial.precision == "bf16")
    state = TrialState(path, contender, optimizer, device)

    # -- training, validated at some steps
    points, validation_bytes = (POINTS, POINT_BYTES) if trial.final else (1, END_BYTES)
    validated_steps = {ceil(point * trial.steps / points) for point in range(1, points + 1)}
    while state.step < trial.steps:
        torch.manual_seed((trial.seed << 32) + state.step)  # dropout depends on the step alone, as the batch does
        train_step(trainer, state.step)
        state.step += 1
        is_validated = state.step in validated_steps
        if is_validated:
            bits = score(contender, corpus["valid"][:validation_bytes], seq_len)
            state.curve.append({"bytes": state.step * trial.batch_size * seq_len, "bits_per_byte": bits})
        state.save_when_due(now=is_validated)

    # -- the test split, if this trial counts
    result = {"validation": state.curve[-1]["bits_per_byte"], "curve": state.curve}
    if trial.final:
        check_causality(name, contender, seq_len)
        for scored in scoring(contender, corpus["test"], seq_len, *state.scored):
            state.scored = scored
            state.save_when_due()
        result["test"] = finite_bits(state.scored[1], len(corpus["test"]))
    return result | {"seconds": round(state.seconds(), 1)}


def scoring(
    contender: nn.Module, data: np.ndarray, context: int, windows: int = 0, nats: float = FIRST_BYTE
) -> Iterator[tuple[int, float]]:
    """Score data (n), uint8, by windows of `context` bytes: yields windows and nats so far after each batch.

    Windows advance by half of their length, and predict each byte but the first once, in float32.

    Args:
        windows: how many are scored already.
        nats: what these came to.
    """
    starts, first_scored = (part[windows:] for part in scoring_windows(len(data), context, context // 2))
    device, length = next(contender.parameters()).device, min(context, len(data) - 1)
    for part in window_nats(contender, data, starts, first_scored, length, WINDOWS, device):
        windows, nats = windows + WINDOWS, nats + float(part.sum())
        yield windows, nats


def score(contender: nn.Module, data: np.ndarray, context: int) -> float | None:
    """Bits per byte of all of data (n), uint8; None if the weights are not finite."""
    *_, (_, nats) = scoring(contender, data, context)
    return finite_bits(nats, len(data))


def finite_bits(nats: float, count: int) -> float | None:
    """Bits per byte of `count` bytes; None, which is null in JSON, if they are not finite."""
    return bits_per_byte(nats, count) if isfinite(nats) else None


def save(path: Path, state: dict) -> None:
    """Replace a file of tensors and numbers in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(state, temporary)
    replace(temporary, path)
