"""Rotary positions: queries and keys are rotated by angles that grow with position, so scores depend on distance."""

from collections.abc import Callable
from math import pi

import torch
from einops import rearrange
from torch import Tensor, nn

XPOS_SCALE_BASE = 512  # over so many tokens, xPos multiplies each channel by its scale once


class Rotary(nn.Module):
    """Cosines and sines that rotate pairs of channels, (i, i + d/2), by angles that grow with position.

    RoPE, arXiv 2104.09864. One table serves the heads of queries and of keys together, queries first. With `xpos`,
    queries are also scaled down and keys scaled up with position, which makes scores decay with distance (arXiv
    2212.10554). Only differences of positions matter.
    """

    inverse_frequency: Tensor
    phase: Tensor
    scale: Tensor
    xpos_exponent: Tensor

    def __init__(self, heads: int, kv_heads: int, dim_head: int, xpos: bool = False):
        super().__init__()
        self.xpos = xpos
        channel = torch.arange(0, dim_head, 2, dtype=torch.float32).repeat(2)

        # sin(x) = cos(x - π/2), so one cosine gives both rows: cosines, and sines with the sign that each half needs.
        phase = torch.tensor([[0.0, 0.0], [pi / 2, -pi / 2]]).repeat_interleave(dim_head // 2, dim=1)
        exponent = torch.tensor([1.0] * heads + [-1.0] * kv_heads) / XPOS_SCALE_BASE

        self.register_buffer("inverse_frequency", 10_000.0 ** (-channel / dim_head), persistent=False)
        self.register_buffer("phase", rearrange(phase, "t d -> t 1 1 1 d"), persistent=False)
        self.register_buffer("scale", (channel + 0.4 * dim_head) / (1.4 * dim_head), persistent=False)
        self.register_buffer("xpos_exponent", rearrange(exponent, "h -> h 1 1"), persistent=False)

    def forward(self, positions: Tensor, origin: int = 0) -> Tensor:
        """The cos and sin tables at positions (b n), or (1 n) for all rows: (2 b 1 n d), or (2 b heads n d) with xPos.

        The scale of xPos is 1 at `origin`. Angles are computed in float64, for long texts; MPS has no float64.
        """
        positions = rearrange(positions, "b n -> b 1 n 1")
        precision = torch.float32 if positions.device.type == "mps" else torch.float64
        angles = positions * self.inverse_frequency.to(precision) + self.phase
        cos_sin = angles.cos().to(self.inverse_frequency)
        if not self.xpos:
            return cos_sin
        return cos_sin * self.scale ** (self.xpos_exponent * (positions - origin))

    def _apply(self, fn: Callable, recurse: bool = True) -> "Rotary":
        """Move the tables with the model, and keep them in float32 if it is cast: far positions need the digits."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, table in before.items():
            moved = getattr(self, name)
            if moved.dtype.itemsize < table.dtype.itemsize:
                setattr(self, name, table.to(moved.device))
        return self

    def rescale_factor(self, distance: int) -> Tensor:
        """The factor (d) that moves keys with xPos from one origin to another, `distance` tokens later."""
        return self.scale ** (distance / XPOS_SCALE_BASE)


def rotate(t: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate t (b h n d) by a table of `Rotary`, in the dtype of t."""
    cos, sin = cos_sin.to(t.dtype)
    other_half = t.roll(t.shape[-1] // 2, dims=-1)
    return torch.addcmul(t * cos, other_half, sin)
