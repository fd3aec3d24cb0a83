"""Compare the speed of calls on a machine whose own speed varies: they take turns, and medians are compared."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch

from model.generation.load import best_device
from training.speed import keep_freed_memory, synchronize

Name = TypeVar("Name", bound=Hashable)


def time_in_turns(calls: Mapping[Name, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[Name, list[float]]:
    """Time each call once per round, so that a slow moment of the machine affects all of them.

    Args:
        calls: what to time, by name.
        rounds: how often each call is timed.
        warmup: how often each call runs before that without being timed.

    Returns the seconds of every timed call, by name.
    """
    keep_freed_memory()  # as training does
    device = torch.device(best_device())
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    for round_index in range(warmup + rounds):
        for name, call in calls.items():
            synchronize(device)
            begun = time.perf_counter()
            call()
            synchronize(device)
            if round_index >= warmup:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def median_seconds(call: Callable[[], object], rounds: int, warmup: int = 1) -> float:
    """Time one call by itself."""
    return median(time_in_turns({"call": call}, rounds, warmup)["call"])


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """Half the distance from the smallest to the largest value, as a share of the median."""
    return (max(values) - min(values)) / 2 / median(values)
