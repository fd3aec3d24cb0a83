"""Steps of generation that can be recorded: nothing in them depends on Python, and no tensor changes its place.

Recordings need tensors whose shapes and addresses never change. So a cache becomes static:

- positions are tensors
- a ring has all of its slots from the start, and those that are not yet written are masked out
- each new value is copied into the tensor that held the old one
"""

from collections.abc import Callable

import torch
from torch import Tensor

from model.generation.cache import Cache, tensor_slots
from model.segments import FixedStride
from model.transformer import HierarchicalTransformer


class Recording:
    """The recorded steps of a cache, and what looks up its next byte: they belong to its tensors alone."""

    def __init__(self, model: HierarchicalTransformer, cache: Cache):
        self.steps: dict[tuple, Callable[[Tensor], Tensor] | None] = {}
        self.add_to_matches: Callable[[Tensor, int], None] | None = None
        if cache.matches is not None:
            self.add_to_matches = cache.matches.make_static(model.embedding.match_model)


def read_next_bytes(model: HierarchicalTransformer, ids: Tensor, cache: Cache) -> None:
    """Find out what depends on the bytes themselves, ids (b 1), before the step: a recording cannot look at them.

    That is which levels run, and what the match model finds.
    """
    if cache.recording.add_to_matches is not None:
        cache.recording.add_to_matches(ids, cache.length)

    for level, level_cache in zip(model.config.levels, cache.levels.values(), strict=True):
        if isinstance(level.segments, FixedStride):
            level_cache.runs = level.segments.ends_unit(cache.length)
            continue
        assert level_cache.words is not None and level_cache.ends_unit is not None and level_cache.unit is not None
        units = level.segments.step(ids[:, 0], level_cache.words, cache.length)
        ends_unit = [unit is not None for unit in units]
        level_cache.runs = any(ends_unit)
        level_cache.ends_unit.copy_(torch.tensor(ends_unit))
        level_cache.unit.copy_(torch.tensor([unit or 0 for unit in units]))


def make_static(model: HierarchicalTransformer, cache: Cache) -> None:
    """Prepare a cache for a recording: positions become tensors, and none of its tensors is a view."""
    device = model.to_logits.weight.device
    cache.position = torch.tensor([cache.length], device=device)
    model.embedding.index_matches(cache)
    if cache.matches is not None:
        rows, contexts, _ = cache.matches.hashed.shape
        matches = contexts * model.embedding.match_model.per_context
        cache.matches.found = torch.zeros(rows, 1, matches, dtype=torch.long, device=device)
    for level_cache in cache.levels.values():
        if level_cache.words is not None:
            level_cache.ends_unit = torch.zeros(len(level_cache.words), dtype=torch.bool, device=device)
            level_cache.unit = torch.zeros(len(level_cache.words), dtype=torch.long, device=device)
    for holder, key in tensor_slots(cache):
        holder[key] = holder[key].contiguous()
    cache.recording = Recording(model, cache)


def static_step(forward: Callable, ids: Tensor, cache: Cache) -> Tensor:
    """Logits (b 1 v) of one more byte of each row (b 1). Every tensor of the cache keeps its address."""
    before = [holder[key] for holder, key in tensor_slots(cache)]
    logits = forward(ids, cache=cache)
    for old, (holder, key) in zip(before, tensor_slots(cache), strict=True):
        new = holder[key]
        if old is not new:
            old.copy_(new)
            holder[key] = old
    return logits
