"""Fair timing on a noisy machine: contenders take turns, and the median of each counts."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from model.generation.load import best_device
from training.speed import keep_freed_memory, synchronize


def take_turns(contenders: Mapping[Any, Callable[..., object]], rounds: int, warmup: int = 1) -> dict[Any, list[float]]:
    """Seconds of each call: every contender runs once a round, so that a slow moment meets all of them."""
    keep_freed_memory()  # as training does
    device, seconds = torch.device(best_device()), {name: [] for name in contenders}
    for turn in range(warmup + rounds):
        for name, call in contenders.items():
            synchronize(device)
            begun = time.perf_counter()
            call()
            synchronize(device)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """Half the distance from the fastest to the slowest, as a share of the median."""
    return (max(values) - min(values)) / 2 / median(values)


def table(rows: list[dict]) -> str:
    """Rows of equal keys, aligned."""
    columns = {key: [key, *(str(row[key]) for row in rows)] for key in rows[0]}
    widths = {key: max(map(len, cells)) for key, cells in columns.items()}
    lines = zip(*([cell.rjust(widths[key]) for cell in cells] for key, cells in columns.items()), strict=True)
    return "\n".join("  ".join(line) for line in lines)
