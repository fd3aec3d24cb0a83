"""Bits per byte: the mean cost of a byte under a model's predictions, -log2 p(byte), where each byte counts once.

Sums are kept in nats (natural logarithms, as PyTorch's cross-entropy gives them) and converted at the end.
"""

from collections.abc import Iterator
from math import log

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from data import spread_windows
from model import Cache

FIRST_BYTE = log(256)  # nats of a text's first byte, which has no context: 8 bits


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
    """Yield the nats of the targets that windows score, batch by batch and in order: float64 (n) each.

    Args:
        model: maps ids (b n) to logits (b n num_tokens); evaluated in eval mode.
        data: bytes of a split (n), uint8.
        starts: index in `data` of each window's first input byte, (w).
        first_scored: index in `data` of the first target that each window scores, up to its last target, (w).
        seq_len: number of inputs, the same for all windows.
        batch_size: windows at once.
    """
    was_training = model.training
    model.eval()
    for i in range(0, len(starts), batch_size):
        index = starts[i : i + batch_size, None] + np.arange(seq_len + 1)
        ids = torch.from_numpy(data[index].astype(np.int64)).to(device)
        nats = nats_of_targets(model, ids).cpu().double().numpy()
        scored = index[:, 1:] >= first_scored[i : i + batch_size, None]
        yield nats[scored]
    model.train(was_training)


def nats_of_targets(model: nn.Module, ids: Tensor, cache: Cache | None = None) -> Tensor:
    """Nats of each of ids (b n+1) but the first, after those before it, and those in a cache if there is one: (b n)."""
    inputs, targets = ids[:, :-1], ids[:, 1:]
    logits = model(inputs) if cache is None else model(inputs, cache=cache)
    return F.cross_entropy(rearrange(logits.float(), "b n v -> b v n"), targets, reduction="none")


def total_nats(
    accelerator: Accelerator,
    model: nn.Module,
    data: np.ndarray,
    windows: tuple[np.ndarray, np.ndarray],
    seq_len: int,
    batch_size: int,
    show: bool = False,
) -> float:
    """Sum of the nats of all targets that windows score, over all processes. Every process calls this.

    Batches are dealt to the processes in turn, and have the same windows on any number of processes. Sharded models
    need every process to run equally many batches of the same shape, so the windows are padded with ones that score
    nothing.

    Args:
        data: bytes of a split (n), uint8.
        windows: starts and first_scored, (w) each, as in `window_nats`.
        show: print a progress bar, if the output is a terminal.
    """
    starts, first_scored = windows
    batch_size = min(batch_size, len(starts))

    # Pad to whole batches, equally many for each process. A padding window scores nothing, because its first scored
    # target is past the end of the data.
    padding = -len(starts) % (batch_size * accelerator.num_processes)
    starts = np.pad(starts, (0, padding))
    first_scored = np.pad(first_scored, (0, padding), constant_values=len(data))

    batch_of_window = np.arange(len(starts)) // batch_size
    mine = batch_of_window % accelerator.num_processes == accelerator.process_index
    device = next(model.parameters()).device
    batches = window_nats(model, data, starts[mine], first_scored[mine], seq_len, batch_size, device)

    hidden = None if show and accelerator.is_main_process else True  # tqdm: None hides the bar unless on a terminal
    batches = tqdm(batches, total=mine.sum() // batch_size, unit="batch", disable=hidden)
    own_nats = sum(nats.sum() for nats in batches)
    return sum(gather_object([float(own_nats)]))


def validation_bits_per_byte(
    accelerator: Accelerator, model: nn.Module, data: np.ndarray, seq_len: int, batch_size: int, count_bytes: int
) -> float:
    """Bits per byte of about `count_bytes` bytes of a split (n), uint8, spread evenly. Every process calls this."""
    starts = spread_windows(len(data), seq_len, count_bytes)
    first_scored = starts + 1  # every target
    nats = total_nats(accelerator, model, data, (starts, first_scored), seq_len, batch_size)
    return bits_per_byte(nats, len(starts) * seq_len)


def bits_per_byte(nats: float, count: float) -> float:
    """Bits per byte of `count` bytes that cost `nats` nats together."""
    return nats / count / log(2)
