"""How a level cuts the byte stream into units.

A level has one token for each unit. What matters is the byte at which a unit ends: the token is computed from the bytes
up to that one (see model/compress.py for how many), so every byte from there on may read it. Everything that depends on
where units end asks the level's units: compression, merges, losses, the generation cache and the summary of a run.

For example, with a stride of 4 units end at the bytes 0, 4 and 8, and the bytes 4, 5, 6 and 7 read unit 1:

    byte    0 1 2 3 4 5 6 7 8
    unit    0 0 0 0 1 1 1 1 2    (the latest one that has ended)

A rule says where units end: `FixedStride` here, `WordEnds` in model/words.py. Of n bytes it makes `Units`, which carry
features from bytes to units and back. In generation, where one byte follows another, they are a `Step`.
"""

from dataclasses import dataclass
from math import ceil
from typing import Protocol

import torch
from einops import rearrange, repeat
from torch import Tensor


class Units(Protocol):
    """The units of n bytes, in each row of a batch."""

    @property
    def n(self) -> int:
        """Bytes."""

    @property
    def runs(self) -> bool:
        """Whether a unit ends in these bytes, in any row."""

    @property
    def count(self) -> int:
        """Units of a row, k; in some rows the last ones may not be real."""

    @property
    def real(self) -> Tensor | None:
        """Which units exist, (b k) bool; None if all do. In a row with fewer than k units they come first."""

    @property
    def before(self) -> int | Tensor:
        """Units that ended before these bytes; (b) if that differs from row to row."""

    def down(self, x: Tensor) -> Tensor:
        """Bytes to units: features (b n …) at the last byte of each unit, (b k …)."""

    def windows(self, x: Tensor, size: int) -> Tensor:
        """The `size` bytes up to the end of each unit, oldest first: (b size-1+n …) -> (b k size …).

        The first size - 1 entries of x come before the first byte.
        """

    def up(self, units: Tensor) -> Tensor:
        """Units to bytes: (b k d) -> (b n d). Each byte reads the latest unit that has ended."""

    def last(self, tokens: Tensor, count: int = 1) -> Tensor:
        """The last `count` real tokens of each row: (b any+k d) -> (b count d)."""

    def take(self, values: Tensor) -> Tensor:
        """Keep the rows in which the level runs: (b …) -> (m …)."""

    def put(self, old: Tensor | None, new: Tensor) -> Tensor:
        """Fill these rows in again: the new values (m …) where the level runs, the old ones (b …) elsewhere."""


class TextUnits:
    """What the units of a text, or of a part of it, have in common: the level runs, in all rows of a batch.

    A part begins at a multiple of the rule's `period`, and its units are counted from 0 again.
    """

    runs = True

    def ends(self, device: torch.device) -> Tensor:
        """The last byte of each unit: (b k), or (1 k) if it is the same in all rows."""
        raise NotImplementedError

    def latest_at(self, byte: Tensor) -> Tensor:
        """Index of the latest unit that has ended at each of some bytes: (b j) -> (b j)."""
        raise NotImplementedError

    def take(self, values: Tensor) -> Tensor:
        return values

    def put(self, old: Tensor | None, new: Tensor) -> Tensor:
        return new


@dataclass(frozen=True)
class Rule:
    """Where the units of a level end."""

    stride: int
    """bytes between two ends, on average at least"""

    def count(self, n: int) -> int:
        """Units in n bytes, at most."""
        return ceil(n / self.stride)


@dataclass(frozen=True)
class FixedStride(Rule):
    """Units that end at every `stride`-th byte: unit k ends at byte k · stride, the same in each row of a batch.

    The first unit ends at byte 0, so that every byte has a unit to read.
    """

    @property
    def period(self) -> int:
        """Units from a multiple of this byte on do not depend on the bytes before it."""
        return self.stride

    @property
    def longest(self) -> int:
        """Bytes of the longest unit."""
        return self.stride

    def cut(self, ids: Tensor) -> "StrideUnits":
        """The units of ids (b n)."""
        return StrideUnits(self.stride, ids.shape[1])

    def ends_unit(self, byte: int) -> bool:
        """Whether a unit ends at this byte."""
        return byte % self.stride == 0

    def unit(self, byte: int | Tensor) -> int | Tensor:
        """Index of the latest unit that has ended at this byte."""
        return byte // self.stride


@dataclass(frozen=True)
class StrideUnits(TextUnits):
    """The units of `FixedStride` in n bytes: slices and repetitions, with no index in memory."""

    stride: int
    n: int
    before: int = 0

    @property
    def count(self) -> int:
        return ceil(self.n / self.stride)

    @property
    def real(self) -> None:
        return None

    def down(self, x: Tensor) -> Tensor:
        return x[:, :: self.stride]

    def windows(self, x: Tensor, size: int) -> Tensor:
        windows = x.unfold(1, size, self.stride)
        return rearrange(windows, "b k ... size -> b k size ...")

    def up(self, units: Tensor) -> Tensor:
        if self.stride == 1:
            return units
        return repeat(units, "b k d -> b (k s) d", s=self.stride)[:, : self.n]

    def ends(self, device: torch.device) -> Tensor:
        return torch.arange(self.count, device=device)[None] * self.stride

    def latest_at(self, byte: Tensor) -> Tensor:
        return byte // self.stride

    def last(self, tokens: Tensor, count: int = 1) -> Tensor:
        return tokens[:, tokens.shape[1] - count :]


@dataclass(frozen=True, eq=False)
class Step:
    """The units that end at a single byte in generation: none, or one in all rows or in some of them.

    A level computes the rows that are due, and keeps what it had in the others. Recorded steps need fixed shapes, so
    there it computes all rows, and `mask` says which of the results to keep.
    """

    runs: bool
    chain: int = 0
    """the chain of its token (see `LevelConfig.chains`); a number, because it selects a ring of keys"""
    index: int | Tensor = 0
    """the token's index in its chain: a number; a tensor (1) in recorded steps, because it differs each time a step is
    replayed; or (m), if it differs from row to row"""
    rows: Tensor | None = None
    """the rows that are due (m), or None for all"""
    mask: Tensor | None = None
    """in which rows to keep the results, if all rows are computed: (b) bool"""

    n = 1
    count = 1
    real = None
    before = 0

    def down(self, x: Tensor) -> Tensor:
        return self.take(x[:, -1:])

    def windows(self, x: Tensor, size: int) -> Tensor:
        return self.take(x[:, x.shape[1] - size :]).unsqueeze(1)

    def up(self, units: Tensor) -> Tensor:
        return units

    def last(self, tokens: Tensor, count: int = 1) -> Tensor:
        return tokens[:, tokens.shape[1] - count :]

    def take(self, values: Tensor) -> Tensor:
        return values if self.rows is None else values[self.rows]

    def put(self, old: Tensor | None, new: Tensor) -> Tensor:
        if old is None:
            return new
        if self.mask is not None:
            return torch.where(self.mask.reshape(-1, *[1] * (new.dim() - 1)), new, old)
        return new if self.rows is None else old.index_copy(0, self.rows, new.to(old.dtype))


def align(tokens: Tensor, source: Units, target: Units) -> Tensor:
    """Read one level's units at the unit ends of another level over the same n bytes: (b k d) -> (b j d).

    Equals `target.down(source.up(tokens))`, without going through all n bytes. In a step of generation there is a
    single token, the latest, and it comes back as it is.
    """
    if not isinstance(source, TextUnits) or source == target:
        return tokens
    assert isinstance(target, TextUnits)
    if isinstance(source, StrideUnits) and isinstance(target, StrideUnits):
        if source.stride % target.stride == 0:
            repeated = repeat(tokens, "b k d -> b (k r) d", r=source.stride // target.stride)
            return repeated[:, : target.count]
        if target.stride % source.stride == 0:
            return tokens[:, :: target.stride // source.stride]
    ends = target.ends(tokens.device).expand(len(tokens), -1)
    return pick(tokens, source.latest_at(ends))


def coarser(one: Units, other: Units) -> Units:
    """The one with fewer units."""
    return one if one.count <= other.count else other


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Entries of each row of x (b n …) by their index (b k): (b k …)."""
    first_of_row = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (first_of_row + index).flatten()).unflatten(0, index.shape)
