"""Rotary positions: attention that knows how far apart two tokens are, and nothing else."""

import torch
from torch import Tensor, nn

XPOS_SCALE_BASE = 512  # distance over which xpos fades by one power of its per-channel scale


class Rotary(nn.Module):
    """Turns channel pairs of queries and keys by angles that grow with position (RoPE, arXiv 2104.09864).

    Pairs are (i, i + d/2). With `xpos` queries are also scaled up and keys down with position, so that scores fade with
    distance (arXiv 2212.10554). Only differences of positions matter, in both.

    Args:
        dim_head: channels of a head, even.
        xpos: scale as well as turn.
    """

    def __init__(self, dim_head: int, xpos: bool = False, theta: float = 10_000.0):
        super().__init__()
        pair = torch.arange(0, dim_head, 2, dtype=torch.float32)
        self.register_buffer("freqs", theta ** (-pair / dim_head), persistent=False)
        self.register_buffer("scale", (pair + 0.4 * dim_head) / (1.4 * dim_head) if xpos else None, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Tables for queries and for keys at `positions` (n): each (2 n d/2), cosines and sines."""
        angles = positions.unsqueeze(-1) * self.freqs
        table = torch.stack((angles.cos(), angles.sin()))
        if self.scale is None:
            return table, table
        centred = positions - len(positions) // 2
        scale = self.scale ** (centred / XPOS_SCALE_BASE).unsqueeze(-1)
        return table * scale, table / scale


def rotate(t: Tensor, table: Tensor) -> Tensor:
    """Turn t (… n d) by a table (2 n d/2) of `Rotary`; the dtype stays."""
    cos, sin = table
    x, y = t.chunk(2, dim=-1)
    return torch.cat((x * cos - y * sin, x * sin + y * cos), dim=-1).type_as(t)
