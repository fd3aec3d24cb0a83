"""Bits per byte: how well a model predicts bytes, each counted once."""

from collections.abc import Iterator
from math import log

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from einops import rearrange
from torch import nn
from tqdm import tqdm

from data import spread_windows

FIRST_BYTE = log(256)  # nats of a byte that nothing stands before


@torch.no_grad()
def window_nats(
    model: nn.Module,
    data: np.ndarray,
    starts: np.ndarray,
    first_scored: np.ndarray,
    seq_len: int,
    batch_size: int,
    device: torch.device | str,
) -> Iterator[np.ndarray]:
    """Nats of the scored targets of some windows at a time, in order: float64 (n) each.

    Args:
        data: bytes of a split (n), uint8.
        starts: first input byte of each window.
        first_scored: index in `data` of the first target that a window scores; the rest up to its end count too.
        seq_len: inputs of a window, all of the same length.
    """
    was_training = model.training
    model.eval()
    for i in range(0, len(starts), batch_size):
        index = starts[i : i + batch_size, None] + np.arange(seq_len + 1)
        ids = torch.from_numpy(data[index].astype(np.int64)).to(device)
        logits = model(ids[:, :-1])
        nats = F.cross_entropy(rearrange(logits.float(), "b n v -> b v n"), ids[:, 1:], reduction="none")
        yield nats.cpu().double().numpy()[index[:, 1:] >= first_scored[i : i + batch_size, None]]
    model.train(was_training)


def total_nats(
    accelerator: Accelerator,
    model: nn.Module,
    data: np.ndarray,
    windows: tuple[np.ndarray, np.ndarray],
    seq_len: int,
    batch_size: int,
    show: bool = False,
) -> float:
    """Nats of all that windows (starts, first_scored) of a split score, over all processes together.

    Whole batches, the same on any number of processes, go round among them. Each process runs as many as the others,
    all of the same shape, as sharded models need; windows that are there to fill up score nothing. `show`s progress.
    """
    starts, first_scored = windows
    batch_size, device = min(batch_size, len(starts)), next(model.parameters()).device
    fill = (0, -len(starts) % (batch_size * accelerator.num_processes))
    starts, first_scored = np.pad(starts, fill), np.pad(first_scored, fill, constant_values=len(data))
    mine = np.arange(len(starts)) // batch_size % accelerator.num_processes == accelerator.process_index
    scores = window_nats(model, data, starts[mine], first_scored[mine], seq_len, batch_size, device)
    hidden = None if show and accelerator.is_main_process else True  # None: unless it is a terminal
    scores = tqdm(scores, total=mine.sum() // batch_size, unit="batch", disable=hidden)
    return sum(gather_object([float(sum(nats.sum() for nats in scores))]))


def validate(
    accelerator: Accelerator, model: nn.Module, data: np.ndarray, seq_len: int, batch_size: int, count_bytes: int
) -> float:
    """Bits per byte of about `count_bytes` of a split, evenly spread, over all processes together."""
    starts = spread_windows(len(data), seq_len, count_bytes)
    nats = total_nats(accelerator, model, data, (starts, starts + 1), seq_len, batch_size)
    return bits_per_byte(nats, len(starts) * seq_len)


def bits_per_byte(nats: float, count: float) -> float:
    """Mean of `count` bytes that cost `nats` together."""
    return nats / count / log(2)
