"""Learning rate schedules. The rate is a pure function of the step, so checkpoints hold none.

A new schedule is a function, a line in SCHEDULES and its name in `TrainConfig.schedule`.
"""

from collections.abc import Callable
from math import cos, pi

import torch

from training.config import TrainConfig


def cosine(progress: float) -> float:
    """Half a period of a cosine (arXiv 1608.03983, without restarts)."""
    return 0.5 * (1 + cos(pi * progress))


def linear(progress: float) -> float:
    """A straight line."""
    return 1 - progress


# From the progress after the warm-up, 0 to 1, to the share of the distance between lowest and peak rate: from 1 to 0.
SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": cosine, "linear": linear}


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of the step that follows `step` finished ones: linear warm-up to `learning_rate`, then the configured
    schedule down to `min_learning_rate` at `max_steps`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    steps_after_warmup = max(1, config.max_steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / steps_after_warmup)
    distance = config.learning_rate - config.min_learning_rate
    return config.min_learning_rate + distance * SCHEDULES[config.schedule](progress)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group, before the step that uses it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
