"""Rotary positions: attention that knows how far apart two tokens are, and nothing else."""

from math import pi

import torch
from einops import rearrange
from torch import Tensor, nn

XPOS_SCALE_BASE = 512  # distance over which xpos fades by one power of its per-channel scale


class Rotary(nn.Module):
    """Turns pairs of channels, (i, i + d/2), by angles that grow with position (RoPE, arXiv 2104.09864).

    Serves the heads of queries and those of keys together, queries first. With `xpos` queries are also scaled up and
    keys down with position, so that scores fade with distance (arXiv 2212.10554). Only differences of positions count.
    """

    def __init__(self, heads: int, kv_heads: int, dim_head: int, xpos: bool = False, theta: float = 10_000.0):
        super().__init__()
        pair = torch.arange(0, dim_head, 2, dtype=torch.float32).repeat(2)
        turn = torch.tensor([[0.0, 0.0], [pi / 2, -pi / 2]]).repeat_interleave(dim_head // 2, dim=1)
        power = torch.tensor([1.0] * heads + [-1.0] * kv_heads) / XPOS_SCALE_BASE
        self.xpos = xpos
        self.register_buffer("freqs", theta ** (-pair / dim_head), persistent=False)
        self.register_buffer("turn", rearrange(turn, "t d -> t 1 1 d"), persistent=False)
        self.register_buffer("scale", (pair + 0.4 * dim_head) / (1.4 * dim_head), persistent=False)
        self.register_buffer("power", rearrange(power, "h -> h 1 1"), persistent=False)

    def forward(self, positions: Tensor, origin: int = 0) -> Tensor:
        """Factors of t and of its swapped halves at `positions` (n): (2 1 n d), or (2 heads n d) with xpos, whose scale
        is one at `origin`. Cosines and, a quarter turn away, -sines and sines, of angles in float64, except on MPS,
        which has none: a text may become very long.
        """
        positions = rearrange(positions, "n -> n 1")
        wide = torch.float32 if positions.device.type == "mps" else torch.float64
        table = (positions * self.freqs.to(wide) + self.turn).cos().to(self.freqs)
        return table * self.scale ** (self.power * (positions - origin)) if self.xpos else table


def rotate(t: Tensor, table: Tensor) -> Tensor:
    """Turn t (b h n d) by a table of `Rotary`; the dtype stays."""
    cos, sin = table
    return torch.addcmul(t * cos, t.roll(t.shape[-1] // 2, dims=-1), sin).type_as(t)
