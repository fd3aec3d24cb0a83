"""Which bytes go through the model when: training batches, and windows that score a split."""

import numpy as np
import torch
from torch import Tensor


def offsets(num_bytes: int, seq_len: int, *, seed: int, step: int, global_batch_size: int) -> np.ndarray:
    """First byte of each sequence of a step's global batch: (b) int64, a pure function of the arguments.

    Every place where seq_len + 1 bytes fit is equally likely. The generator counts, so that no state is carried from
    step to step (Philox, https://doi.org/10.1145/2063384.2063405).
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, step]))
    return generator.integers(0, num_bytes - seq_len, size=global_batch_size)


def batch(
    data: np.ndarray, seq_len: int, *, seed: int, step: int, global_batch_size: int, rows: slice = slice(None)
) -> Tensor:
    """The given rows of a step's global batch: (b seq_len+1) int64."""
    starts = offsets(len(data), seq_len, seed=seed, step=step, global_batch_size=global_batch_size)[rows]
    return torch.from_numpy(data[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64))


def scoring_windows(num_bytes: int, context: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows that score every byte of a split but the first exactly once: (starts, first_scored), int64 (w) each.

    A window's inputs are L = min(context, num_bytes - 1) bytes from its start, its targets the bytes one later, of
    which those from `first_scored` on count. Starts advance by `stride`; the last window ends with the split.

    Raises:
        ValueError: unless 1 ≤ stride ≤ context and there are two bytes.
    """
    if not 1 <= stride <= context:
        raise ValueError(f"stride: got {stride}, allowed: 1 to context = {context}")
    if num_bytes < 2:
        raise ValueError(f"split: got {num_bytes} bytes, allowed: at least 2")
    length = min(context, num_bytes - 1)
    last = num_bytes - 1 - length
    starts = np.append(np.arange(0, last, stride), last)
    ends = starts + length  # of the targets, inclusive
    first_scored = np.append(1, ends[:-1] + 1)
    return starts, first_scored


def spread_windows(num_bytes: int, seq_len: int, count_bytes: int) -> np.ndarray:
    """Starts of evenly spread windows that do not overlap, with about `count_bytes` targets in all: (w) int64."""
    windows = max(1, min(round(count_bytes / seq_len), (num_bytes - 1) // seq_len))
    return np.linspace(0, num_bytes - 1 - seq_len, windows).astype(np.int64)
