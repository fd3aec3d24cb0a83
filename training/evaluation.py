"""Bits per byte: how well a model predicts bytes, each counted once."""

from math import log

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@torch.no_grad()
def total_nats(
    model: nn.Module,
    data: np.ndarray,
    starts: np.ndarray,
    first_scored: np.ndarray,
    seq_len: int,
    batch_size: int,
    device: torch.device,
) -> Tensor:
    """Nats of the scored targets and their number, summed over windows: a float64 pair on the CPU.

    Args:
        data: bytes of a split (n), uint8.
        starts: first input byte of each window.
        first_scored: index in `data` of the first target that a window scores; the rest up to its end count too.
        seq_len: inputs of a window, all of the same length.
    """
    was_training = model.training
    model.eval()
    nats, count = 0.0, 0
    for i in range(0, len(starts), batch_size):
        start = starts[i : i + batch_size, None]
        index = start + np.arange(seq_len + 1)
        ids = torch.from_numpy(data[index].astype(np.int64)).to(device)
        logits = model(ids[:, :-1])
        losses = F.cross_entropy(rearrange(logits.float(), "b n v -> b v n"), ids[:, 1:], reduction="none")
        scored = torch.from_numpy(index[:, 1:] >= first_scored[i : i + batch_size, None])
        nats += losses.cpu().double()[scored].sum().item()
        count += int(scored.sum())
    model.train(was_training)
    return torch.tensor([nats, count], dtype=torch.float64)


def bits_per_byte(nats: float, count: float) -> float:
    """Mean of `count` bytes that cost `nats` together."""
    return nats / count / log(2)
