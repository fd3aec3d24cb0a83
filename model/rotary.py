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

    def forward(self, positions: Tensor, origin: int = 0) -> tuple[Tensor, Tensor]:
        """Tables for queries and for keys at `positions` (n): each (2 n d/2), cosines and sines.

        `origin` is the position at which xpos scales by one. Angles are computed in float64, except on MPS, which has
        none: a text may become very long.
        """
        wide = torch.float32 if positions.device.type == "mps" else torch.float64
        angles = positions.unsqueeze(-1).to(wide) * self.freqs.to(wide)
        table = torch.stack((angles.cos(), angles.sin())).to(self.freqs)
        if self.scale is None:
            return table, table
        scale = self.fade(positions.unsqueeze(-1) - origin)
        return table * scale, table / scale

    def fade(self, distance: Tensor | int) -> Tensor:
        """What xpos multiplies each pair of channels by over a distance: (… d/2)."""
        return self.scale ** (distance / XPOS_SCALE_BASE)


def rotate(t: Tensor, table: Tensor) -> Tensor:
    """Turn t (… n d) by a table (2 n d/2) of `Rotary`; the dtype stays."""
    cos, sin = table
    x, y = t.chunk(2, dim=-1)
    return torch.cat((x * cos - y * sin, x * sin + y * cos), dim=-1).type_as(t)
