"""How a level cuts the byte stream into units.

A level has one token for each unit. What matters is the byte at which a unit ends: the token is computed from the bytes
up to that one (see model/compress.py for how many), so every byte from there on may read it. Everything that depends on
where units end asks the level's segments: compression, merges, losses, the generation cache and the summary of a run.

For example, with a stride of 4 units end at the bytes 0, 4 and 8, and the bytes 4, 5, 6 and 7 read unit 1:

    byte    0 1 2 3 4 5 6 7 8
    unit    0 0 0 0 1 1 1 1 2    (the latest one that has ended)
"""

from dataclasses import dataclass
from math import ceil

import torch
from einops import repeat
from torch import Tensor


@dataclass(frozen=True)
class FixedStride:
    """Units that end at every `stride`-th byte: unit k ends at byte k · stride, the same in each row of a batch.

    The first unit ends at byte 0, so that every byte has a unit to read.
    """

    stride: int

    # These are for whole texts, and for the first pass of generation.

    def count(self, n: int) -> int:
        """Number of units in n bytes."""
        return ceil(n / self.stride)

    def down(self, x: Tensor) -> Tensor:
        """Bytes to units: features (b n …) at the last byte of each unit, (b k …)."""
        return x[:, :: self.stride]

    def windows(self, x: Tensor, size: int) -> Tensor:
        """The `size` bytes up to the end of each unit, oldest first: (b size-1+n …) -> (b k … size).

        The first size - 1 entries of x come before the first byte.
        """
        return x.unfold(1, size, self.stride)

    def up(self, units: Tensor, n: int) -> Tensor:
        """Units to bytes: (b k d) -> (b n d). Byte t reads unit ⌊t / stride⌋, the latest one that has ended."""
        if self.stride == 1:
            return units
        return repeat(units, "b k d -> b (k s) d", s=self.stride)[:, :n]

    # These are for a single byte in generation.

    def ends_unit(self, byte: int) -> bool:
        """Whether a unit ends at this byte."""
        return byte % self.stride == 0

    def unit(self, byte: int | Tensor) -> int | Tensor:
        """Index of the latest unit that has ended at this byte."""
        return byte // self.stride


def align(units: Tensor, source: FixedStride, target: FixedStride, n: int) -> Tensor:
    """Read one level's units at the unit ends of another level over the same n bytes: (b k d) -> (b j d).

    Equals `target.down(source.up(units, n))`, without going through all n bytes. A single unit (n = 1), as in a step of
    generation, comes back as it is: it ends at that byte, or is the latest one that has ended.
    """
    if source.stride == target.stride:
        return units
    if source.stride % target.stride == 0:
        repeated = repeat(units, "b k d -> b (k r) d", r=source.stride // target.stride)
        return repeated[:, : target.count(n)]
    if target.stride % source.stride == 0:
        return units[:, :: target.stride // source.stride]
    ends = torch.arange(target.count(n), device=units.device) * target.stride
    return units[:, ends // source.stride]


def coarser(one: FixedStride, other: FixedStride) -> FixedStride:
    """The segments with fewer units."""
    return one if one.stride >= other.stride else other
