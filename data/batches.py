"""Which bytes the model reads: training batches, and the windows that score a split."""

import numpy as np
import torch
from torch import Tensor

from utils.checks import require


def sequence_starts(num_bytes: int, seq_len: int, *, seed: int, step: int, global_batch_size: int) -> np.ndarray:
    """Index of the first byte of each sequence in a step's global batch: (b) int64.

    A pure function of its arguments, so a run resumes with the same batches on any number of processes. Every index
    with seq_len + 1 bytes from there on is equally likely. Philox is a counter-based generator: it needs no state from
    the step before (https://doi.org/10.1145/2063384.2063405).
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, step]))
    return generator.integers(0, num_bytes - seq_len, size=global_batch_size)


def batch(
    data: np.ndarray, seq_len: int, *, seed: int, step: int, global_batch_size: int, rows: slice = slice(None)
) -> Tensor:
    """The sequences of a step's global batch, inputs and targets together: (b seq_len+1) int64.

    Args:
        data: bytes of the training split (n), uint8.
        rows: which sequences to return, such as those of one process; all of them by default.
    """
    starts = sequence_starts(len(data), seq_len, seed=seed, step=step, global_batch_size=global_batch_size)
    index = starts[rows, None] + np.arange(seq_len + 1)
    return torch.from_numpy(data[index].astype(np.int64))


def scoring_windows(num_bytes: int, context: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows that together score every byte of a split exactly once, except the first byte.

    All windows have the same length L = min(context, num_bytes - 1). The inputs of a window that starts at i are bytes
    i to i + L - 1, and its targets are bytes i + 1 to i + L. Starts advance by `stride`, and the last window ends with
    the split. A window scores only the targets that the window before it did not reach, so every byte after the first
    window has at least context - stride bytes of context.

    Returns:
        starts: index of each window's first input byte, (w) int64.
        first_scored: index of the first target that each window scores, (w) int64.

    Raises:
        UserError: unless 1 ≤ stride ≤ context, and the split has at least two bytes.
    """
    require(
        {"stride": stride, "split": f"{num_bytes} bytes"},
        stride=(1 <= stride <= context, f"1 to context = {context}"),
        split=(num_bytes >= 2, "at least 2"),
    )
    length = min(context, num_bytes - 1)
    last_start = num_bytes - 1 - length
    starts = np.append(np.arange(0, last_start, stride), last_start)

    last_target = starts + length
    first_scored = np.append(1, last_target[:-1] + 1)
    return starts, first_scored


def spread_windows(num_bytes: int, seq_len: int, count_bytes: int) -> np.ndarray:
    """Starts of evenly spaced windows that do not overlap: (w) int64.

    Each window has `seq_len` targets. There are about count_bytes / seq_len windows, at least one and no more than fit.
    """
    wanted = round(count_bytes / seq_len)
    fitting = (num_bytes - 1) // seq_len
    num_windows = max(1, min(wanted, fitting))
    last_start = num_bytes - 1 - seq_len
    return np.linspace(0, last_start, num_windows).astype(np.int64)
