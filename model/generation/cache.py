"""The state of generation: everything that the model keeps between one byte and the next."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kv_ring import KVRing
from model.match_index import MatchIndex
from model.segments import Step, Units


@dataclass
class BlockCache:
    """What one block keeps. Token shifts keep the second half of the channels of the last tokens, one of each chain."""

    attention_shift: Tensor | None = None
    """(b chains d/2)"""
    feedforward_shift: Tensor | None = None
    """(b chains d/2)"""
    rings: dict[int, KVRing] = field(default_factory=dict)
    """keys and values, by chain"""


@dataclass
class LevelCache:
    """What one level keeps."""

    blocks: dict[int, BlockCache] = field(default_factory=dict)
    """by layer"""
    xpos_origin: int = 0
    """token at which the scale of xPos is 1"""
    words: Tensor | None = None
    """if units end at words: how far each row is, on the CPU (b 4), see `WordUnits.state`"""
    runs: bool = False
    """in recorded steps: whether a unit ends at the next byte, in any row"""
    ends_unit: Tensor | None = None
    """and in which rows, (b) bool"""
    unit: Tensor | None = None
    """and the index of this unit, (b)"""
    recent_states: Tensor | None = None
    """the last bytes' states that its next token may need, (b c-1 d), if it is made of states"""


@dataclass
class MergeCache:
    """What one merge keeps of each level, for the bytes at which the level does not run.

    A linear merge keeps only `projected`: the level's map to all its readers.
    """

    projected: dict[int, Tensor] = field(default_factory=dict)
    """the level's part of the first linear map, (b 1 hidden)"""
    sums_of_squares: dict[int, Tensor] = field(default_factory=dict)
    """its part of the RMSNorm, (b 1 1)"""


@dataclass
class Cache:
    """Generation cache: `logits = model(ids, cache=cache)`.

    The first call (prefill) takes any number of bytes a row, each later call one byte, or several if the bytes so far
    are a multiple of `ModelConfig.period`. A level runs only when one of its units ends; in between, its last output is
    reused. Logits are those of a full pass over all bytes so far.

    The contract: every tensor but `position` has the batch as its first dimension, for `expand`, and keeps its shape
    after the first call, for recorded steps.
    """

    length: int = 0
    """bytes read so far, in each row"""
    position: Tensor | None = None
    """the length as a tensor (1), once steps are recorded (model/generation/replay.py); else None"""
    recent_ids: Tensor | None = None
    """the last bytes, as many as n-grams need, zeros before the first, (b n)"""
    matches: MatchIndex | None = None
    to_index: Tensor | None = None
    """after several bytes at once: the last bytes, of which `matches` is yet to be made, (b n)"""
    recent_embeddings: Tensor | None = None
    """embeddings of the last bytes, as many as the compressions need, (b c-1 d)"""
    levels: dict[int, LevelCache] = field(default_factory=dict)
    merges: dict[int, MergeCache] = field(default_factory=dict)
    """by layer"""
    logits: dict[int, Tensor] = field(default_factory=dict)
    """each predicting level's part of the logits, (b 1 num_tokens)"""
    recording: Any = None
    """recorded steps, which belong to the tensors of this object alone (model/generation/replay.py)"""

    @property
    def is_empty(self) -> bool:
        """Whether no byte has been read."""
        return self.length == 0

    @property
    def offset(self) -> int | Tensor:
        """The length, as a tensor (1) if steps are recorded: what is computed from it may differ at each replay."""
        return self.length if self.position is None else self.position

    def advance(self, n: int) -> None:
        """Count n more bytes, and keep nothing but this state of them in memory."""
        self.length += n
        if self.position is not None:
            self.position = self.position + n
        if n > 1:
            self.copy_parts()

    def copy_parts(self) -> None:
        """Copy tensors that are parts of larger ones, which would otherwise stay in memory."""
        for holder, key in tensor_slots(self):
            t = holder[key]
            if t.untyped_storage().nbytes() > t.nbytes:
                holder[key] = t.clone(memory_format=torch.contiguous_format)

    def detach(self) -> "Cache":
        """The same state as a constant: gradients do not flow to the bytes that it has read."""
        return self._map(Tensor.detach)

    def copy(self) -> "Cache":
        """An independent copy: what is read through one of them does not change the other."""
        return self._map(Tensor.clone)

    def expand(self, rows: int) -> "Cache":
        """An independent copy with each row repeated `rows` times, to draw several samples of one prompt."""
        return self._map(lambda t: t.repeat_interleave(rows, dim=0))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Cache":
        position = None if self.position is None else self.position.clone()
        rows = replace(self, position=None, recording=None)
        return replace(map_tensors(rows, function), position=position)


def map_tensors(state: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A copy of nested dataclasses and dicts, with `function` applied to each tensor."""
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, dict):
        return {key: map_tensors(value, function) for key, value in state.items()}
    if is_dataclass(state) and not isinstance(state, type):
        return replace(state, **{each.name: map_tensors(getattr(state, each.name), function) for each in fields(state)})
    return state


def tensor_slots(state: Any) -> Iterator[tuple[dict, Any]]:
    """Where the tensors of nested dataclasses and dicts are stored: (dict, key) of each, in a fixed order."""
    values = state if isinstance(state, dict) else vars(state)
    for key, value in values.items():
        if isinstance(value, Tensor):
            yield values, key
        elif isinstance(value, dict) or is_dataclass(value):
            yield from tensor_slots(value)


def keep_latest(kept: dict[int, Tensor], i: int, new: Tensor, units: Units) -> Tensor:
    """Keep the latest of level i's values (b k d) in each row, for the bytes at which the level does not run.

    Returns the values: in a step of generation the latest of all rows (b 1 d), where `new` has the rows that run.
    """
    kept[i] = units.put(kept.get(i), units.last(new))
    return kept[i] if isinstance(units, Step) else new


def prepend_history(t: Tensor, size: int, past: Tensor | None) -> Tensor:
    """Tokens t (b n d) after the `size` tokens before them, zeros before the first one: (b size+n d)."""
    if past is None:
        return F.pad(t, (0, 0, size, 0))
    return torch.cat((past, t), dim=1)
