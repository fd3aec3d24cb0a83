"""One trial: a contender trained on so many bytes, whatever ends its process on the way, and scored.

What a trial ends with is a pure function of its description, bit for bit on a CPU, where it runs on one thread.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from math import isfinite
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks import contenders
from benchmarks.contenders import Contender, build_trainer
from benchmarks.quality.causality import check_causality
from data import DataConfig, open_corpus, scoring_windows
from evaluation.bits_per_byte import FIRST_BYTE, bits_per_byte, window_nats
from model.generation.load import best_device
from training.config import TrainConfig
from training.optimizer import build_optimizer
from training.speed import keep_freed_memory
from training.step import train_step
from utils.files import replace

POINTS, POINT_BYTES = 10, 1 << 15  # of a final trial's curve, evenly spread: the beginning of the validation split
END_BYTES = 1 << 16  # the same of the other trials, which are validated at their end alone
WINDOWS = 16  # scored at once
SAVE_SECONDS = 30  # the most that is lost when a process ends


@dataclass(frozen=True)
class Entry:
    """What is raced: a builder of `benchmarks.contenders`, its arguments, and how training differs from our own."""

    builder: str
    model: dict
    train: dict = field(default_factory=dict)  # fields of `TrainConfig` other than the schedule

    def build(self) -> Contender | None:
        """A new model; None where a peer is not installed."""
        return getattr(contenders, self.builder)(**self.model)


@dataclass(frozen=True)
class Trial:
    """All that decides how a contender ends."""

    entry: Entry
    learning_rate: float
    seed: int
    steps: int
    batch_size: int
    precision: str
    corpus: str  # checksum of its training split
    final: bool  # with a curve on the way, and the test split scored at the end

    @property
    def key(self) -> str:
        """Of these settings alone."""
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
            **self.entry.train,
        )


def key_of(settings: dict) -> str:
    """A name for settings, the same for equal ones."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def run_trial(name: str, trial: Trial, data: DataConfig, path: Path) -> dict:
    """Train and score, from where the file at `path`, which is written on the way, says that it stood; for a process
    that another one started, and is waiting for.

    Returns `validation`, `curve` and, of a final trial, `test`, in bits per byte, and the `seconds` that it took.

    Raises:
        ValueError: that names the contender, when what was trained is not causal.
    """
    device = torch.device(best_device())
    torch.set_num_threads(1)
    keep_freed_memory()
    corpus, config, seq_len = open_corpus(data), trial.schedule(), trial.entry.model["seq_len"]
    torch.manual_seed(trial.seed)
    contender = trial.entry.build()
    assert contender is not None  # what is not installed is not raced
    contender.to(device)
    optimizer = build_optimizer(contender.model, config)
    trainer = build_trainer(contender, optimizer, config, corpus["train"], seq_len, trial.precision == "bf16")
    state: dict = {"step": 0, "curve": [], "scored": (0, FIRST_BYTE), "seconds": 0.0}
    if path.exists():
        state |= torch.load(path, map_location=device)
        contender.load_state_dict(state.pop("model"))
        optimizer.load_state_dict(state.pop("optimizer"))
    saved = time.monotonic()
    begun = saved - state["seconds"]

    def keep(now: bool = False) -> None:
        """Save the state, if it is time to."""
        nonlocal saved
        parent = parent_process()
        if parent is None or not parent.is_alive():
            os._exit(1)  # nobody waits for the result
        if now or time.monotonic() - saved > SAVE_SECONDS:
            saved, state["seconds"] = time.monotonic(), time.monotonic() - begun
            save(path, state | {"model": contender.state_dict(), "optimizer": optimizer.state_dict()})

    points, validation = (POINTS, POINT_BYTES) if trial.final else (1, END_BYTES)
    validated = {-(-point * trial.steps // points) for point in range(1, points + 1)}
    while state["step"] < trial.steps:
        step = state["step"]
        torch.manual_seed((trial.seed << 32) + step)  # dropout depends on the step alone, as the batch does
        train_step(trainer, step)
        state["step"] = step + 1
        if step + 1 in validated:
            bits = score(contender, corpus["valid"][:validation], seq_len)
            state["curve"].append({"bytes": (step + 1) * trial.batch_size * seq_len, "bits_per_byte": bits})
        keep(now=step + 1 in validated)

    result = {"validation": state["curve"][-1]["bits_per_byte"], "curve": state["curve"]}
    if trial.final:
        check_causality(name, contender, seq_len)
        for scored in scoring(contender, corpus["test"], seq_len, *state["scored"]):
            state["scored"] = scored
            keep()
        result["test"] = finite_bits(state["scored"][1], len(corpus["test"]))
    return result | {"seconds": round(time.monotonic() - begun, 1)}


def scoring(
    contender: nn.Module, data: np.ndarray, context: int, windows: int = 0, nats: float = FIRST_BYTE
) -> Iterator[tuple[int, float]]:
    """Score data (n), uint8, on from where so many windows of `context` bytes have cost so many nats: both, after each
    batch. Windows advance by half of themselves, and predict each byte but the first once, in float32."""
    starts, first_scored = (part[windows:] for part in scoring_windows(len(data), context, context // 2))
    device, length = next(contender.parameters()).device, min(context, len(data) - 1)
    for part in window_nats(contender, data, starts, first_scored, length, WINDOWS, device):
        windows, nats = windows + WINDOWS, nats + float(part.sum())
        yield windows, nats


def score(contender: nn.Module, data: np.ndarray, context: int) -> float | None:
    """Bits per byte of all of data (n), uint8; None where weights are not finite."""
    *_, (_, nats) = scoring(contender, data, context)
    return finite_bits(nats, len(data))


def finite_bits(nats: float, count: int) -> float | None:
    """Bits per byte of so many bytes; None, which JSON has, where they are not finite."""
    return bits_per_byte(nats, count) if isfinite(nats) else None


def save(path: Path, state: dict) -> None:
    """Replace a file of tensors and numbers in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(state, temporary)
    replace(temporary, path)
