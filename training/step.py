"""One training step: forward and backward over the pieces of a global batch, clipping, and the optimizer.

`train.py` trains with it, and so do the races in `benchmarks/`.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite, log

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data import batch, sequence_starts
from model import Losses
from training.config import TrainConfig
from training.optimizer import parameters_but_tables
from training.parallel import full_tensor
from training.schedules import learning_rate, set_learning_rate
from training.stop_signal import StopSignal

NATS_PER_BIT = log(2)
NOT_IN_BITS = {"next_latent"}  # a distance between embeddings; every other loss is a cross-entropy


@dataclass
class Trainer:
    """All that a training step needs.

    Args:
        model: `model(ids, return_loss=True)` of ids (b n+1) gives the loss to minimise and `Losses`.
        data: bytes of the training split (n), uint8.
        seq_len: bytes that a sequence predicts.
        activations: scalars that forward hooks replace at each pass, logged as `levels/NAME`.
        stop_signal: asked once a step, on all processes.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    data: np.ndarray
    seq_len: int
    activations: Mapping[str, Tensor] = field(default_factory=dict)
    stop_signal: StopSignal | None = None

    @property
    def global_batch_size(self) -> int:
        """Sequences of a step, over all processes and accumulated pieces."""
        pieces = self.config.gradient_accumulation_steps
        return self.config.batch_size * pieces * self.accelerator.num_processes

    @property
    def bytes_per_step(self) -> int:
        """Bytes predicted in a step, over all processes and accumulated pieces."""
        return self.global_batch_size * self.seq_len


@dataclass(frozen=True)
class StepResult:
    """What a step did. The same on all processes, apart from the times."""

    metrics: dict[str, float]
    """means over the global batch, by the keys of metrics.jsonl"""
    finite: bool
    """whether loss and gradient were finite; otherwise the optimizer skipped the step"""
    offsets: list[int]
    """first byte of each sequence in the training split, for a look at a skipped step; empty where finite"""
    stop_requested: bool
    """whether any process was told to save and stop"""
    save_requested: bool
    """whether any process was told to save and go on"""
    seconds: float
    """duration of the step on this process"""
    data_seconds: float
    """duration of making its batches, part of `seconds`"""


def train_step(trainer: Trainer, step: int) -> StepResult:
    """Take the step that follows `step` finished ones. Every process calls this.

    The global batch depends on the seed and the step alone. A step whose loss or gradient is not finite leaves the
    weights as they are.
    """
    accelerator, config = trainer.accelerator, trainer.config
    started = time.perf_counter()

    # -- the learning rate is a function of the step
    rate = learning_rate(step, config)
    set_learning_rate(trainer.optimizer, rate)

    # -- forward and backward over each piece of this process's share of the batch; `backward` divides the loss by the
    #    number of pieces, and processes exchange gradients in the last one
    trainer.model.train()
    totals: dict[str, Tensor] = {}
    data_seconds = 0.0
    for piece in range(config.gradient_accumulation_steps):
        fetch_started = time.perf_counter()
        ids = local_batch(trainer, step, piece)
        data_seconds += time.perf_counter() - fetch_started

        with accelerator.accumulate(trainer.model):
            loss, losses = trainer.model(ids, return_loss=True)
            accelerator.backward(loss)

        values = loss_metrics(loss, losses) | {f"levels/{name}": value for name, value in trainer.activations.items()}
        for name, value in values.items():
            share = value / config.gradient_accumulation_steps
            totals[name] = totals[name] + share if name in totals else share

    # -- the gradient's norm, before it is clipped; 0 in the config means no clipping. Of a sharded model's parameters,
    #    Accelerate's own function would unscale the gradients of fp16 twice, unless they are all of them
    accelerator.unscale_gradients()
    parameters = parameters_but_tables(trainer.model)
    norm = full_tensor(nn.utils.clip_grad_norm_(parameters, config.grad_clip or inf))

    # -- one exchange between processes for everything that they must agree on
    signal = trainer.stop_signal
    stop = torch.tensor(float(signal is not None and signal.received), device=norm.device)
    save = torch.tensor(float(signal is not None and signal.take_save_request()), device=norm.device)
    *means, mean_norm, stops, saves = mean_over_processes(accelerator, [*totals.values(), norm, stop, save])
    metrics = dict(zip(totals, means, strict=True))
    metrics["train/gradient_norm"] = mean_norm
    metrics["train/learning_rate"] = rate

    # -- the optimizer; a gradient scaler decides itself whether to skip, and lowers its scale when it does
    finite = isfinite(metrics["train/loss"]) and isfinite(mean_norm)
    if finite or accelerator.scaler is not None:
        trainer.optimizer.step()
    trainer.optimizer.zero_grad()

    return StepResult(
        metrics=metrics,
        finite=finite,
        offsets=[] if finite else batch_offsets(trainer, step),
        stop_requested=stops > 0,
        save_requested=saves > 0,
        seconds=time.perf_counter() - started,
        data_seconds=data_seconds,
    )


def local_batch(trainer: Trainer, step: int, piece: int) -> Tensor:
    """This process's sequences of one piece of a step's global batch: (batch_size seq_len+1), on its device."""
    accelerator, config = trainer.accelerator, trainer.config
    first = (piece * accelerator.num_processes + accelerator.process_index) * config.batch_size
    ids = batch(
        trainer.data,
        trainer.seq_len,
        seed=config.seed,
        step=step,
        global_batch_size=trainer.global_batch_size,
        rows=slice(first, first + config.batch_size),
    )
    return ids.to(accelerator.device, non_blocking=True)


def batch_offsets(trainer: Trainer, step: int) -> list[int]:
    """First byte in the training split of each sequence of a step's global batch."""
    starts = sequence_starts(
        len(trainer.data),
        trainer.seq_len,
        seed=trainer.config.seed,
        step=step,
        global_batch_size=trainer.global_batch_size,
    )
    return starts.tolist()


def loss_metrics(loss: Tensor, losses: Losses) -> dict[str, Tensor]:
    """The objective and each loss by its key in metrics.jsonl.

    Cross-entropies are in bits. The objective is divided by ln 2 as a whole, with the parts that are not in bits.
    """
    metrics = {
        "train/loss": loss.detach() / NATS_PER_BIT,
        "train/bits_per_byte": losses.cross_entropy / NATS_PER_BIT,
    }
    for name, value in losses._asdict().items():
        if name not in ("cross_entropy", "by_level") and value is not None:
            metrics[f"train/{name}"] = in_bits(name, value)
    for name, value in losses.by_level.items():  # such as "next_latent/4x"
        metrics[f"levels/{name}"] = in_bits(name.partition("/")[0], value)
    return metrics


def in_bits(name: str, value: Tensor) -> Tensor:
    """A loss in bits, or as it is where it is not a cross-entropy."""
    return value if name in NOT_IN_BITS else value / NATS_PER_BIT


def mean_over_processes(accelerator: Accelerator, scalars: list[Tensor]) -> list[float]:
    """The mean of each scalar over all processes, exchanged as one tensor."""
    stacked = torch.stack([value.float() for value in scalars])
    return accelerator.reduce(stacked, "mean").tolist()
