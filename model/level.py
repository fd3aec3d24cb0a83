"""A level of the hierarchy: how it cuts the bytes into units, makes a token of each, and runs its blocks."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.block import Block
from model.compress import Compress
from model.config import LevelConfig, ModelConfig
from model.generation.cache import BlockCache, Cache, LevelCache, prepend_history
from model.rotary import XPOS_SCALE_BASE, Rotary
from model.segments import Step, StrideUnits, Units
from model.typed import TypedModuleDict
from model.words import WordEnds


class Level(nn.Module):
    """One level: how it makes tokens of bytes, and a block in each layer that it takes part in."""

    def __init__(self, level: LevelConfig, config: ModelConfig):
        super().__init__()
        self.segments = level.segments
        self.chains = level.chains
        self.layers = level.layers
        self.attends = len(level.attention_layers) > 0
        self.reads_states = level.reads_states
        self.compress = Compress(config.dim_of_bytes if level.reads_states else config.embedding_dim, level)
        self.norm_in = nn.LayerNorm(level.dim)
        self.rotary = Rotary(level.heads, level.kv_heads, level.dim_head, config.rotary_xpos)
        self.blocks = TypedModuleDict(
            {str(layer): Block(level, config, attends=layer in level.attention_layers) for layer in level.layers}
        )

    def cut(self, ids: Tensor, cache: Cache, level_cache: LevelCache) -> Units:
        """The units of ids (b n) after those in the cache, if it has any."""
        if cache.is_empty or ids.shape[1] > 1:
            return self.cut_several(ids, cache.length, level_cache)

        if isinstance(self.segments, WordEnds):
            if level_cache.unit is not None:  # a recorded step
                mask = level_cache.ends_unit if len(ids) > 1 else None  # a single row is due whenever the level runs
                return Step(level_cache.runs, index=level_cache.unit, mask=mask)
            assert level_cache.words is not None
            return step_of_rows(self.segments.step(ids[:, 0], level_cache.words, cache.length), ids.device)

        runs = self.segments.ends_unit(cache.length)
        chain = int(self.segments.unit(cache.length)) % self.chains
        return Step(runs, chain, self.segments.unit(cache.offset) // self.chains)

    def cut_several(self, ids: Tensor, place: int, level_cache: LevelCache) -> Units:
        """The units of ids (b n), the first of which is at `place` in the text, a multiple of the rule's period."""
        units = self.segments.cut(ids)
        if isinstance(units, StrideUnits):
            return replace(units, before=place // units.stride)
        before = torch.zeros(len(ids), dtype=torch.long) if level_cache.words is None else level_cache.words[:, 3]
        level_cache.words = units.state.cpu() + F.pad(before[:, None], (3, 0))
        return replace(units, before=before.to(ids.device))

    def states_to_compress(self, states: Tensor, level_cache: LevelCache | None) -> Tensor:
        """States of the last bytes (b n d), after those of the bytes before them that a token may need."""
        history = self.compress.history
        states = prepend_history(states, history, None if level_cache is None else level_cache.recent_states)
        if level_cache is not None:
            level_cache.recent_states = states[:, states.shape[1] - history :]
        return states

    def compress_bytes(self, features: Tensor, units: Units) -> Tensor:
        """The token of each unit (b k d), of the bytes' embeddings or states."""
        tokens = self.compress(features, units)
        return self.norm_in(tokens.to(features.dtype))  # autocast must not lower the precision of the residual stream

    def rotary_table(self, units: Units, level_cache: LevelCache | None) -> Tensor:
        """Cosines and sines of the positions of tokens in their chains."""
        device = self.rotary.inverse_frequency.device
        if isinstance(units, Step):
            index = as_column(units.index, device)
        else:
            index = (as_column(units.before, device) + torch.arange(units.count, device=device)) // self.chains
        if not self.rotary.xpos:
            return self.rotary(index)

        middle = int(index.max()) - units.count // 2 // self.chains  # xPos scales are closest to 1 around their origin
        if level_cache is None:
            return self.rotary(index, middle)
        if not level_cache.blocks:  # the first pass
            level_cache.xpos_origin = middle
        self.move_xpos_origin(middle, level_cache)
        return self.rotary(index, level_cache.xpos_origin)

    def move_xpos_origin(self, index: int, level_cache: LevelCache) -> None:
        """Rescale the keys in the cache when the current token is far from the origin, before xPos scales overflow.

        The smallest scale is 0.28 for 512 tokens. After 8 times 512 tokens it is 5e-5, well within float32.
        """
        distance = index - level_cache.xpos_origin
        if distance <= 8 * XPOS_SCALE_BASE:
            return
        for block in level_cache.blocks.values():
            for ring in block.rings.values():
                keys, _ = ring.kv.unbind(dim=1)
                keys.mul_(self.rotary.rescale_factor(distance))
        level_cache.xpos_origin = index

    def run_layer(
        self,
        layer: int,
        tokens: Tensor,
        cos_sin: Tensor | None,
        level_cache: LevelCache | None,
        units: Units,
    ) -> Tensor:
        """Its block of this layer, or nothing if it skips the layer: (b k d) -> (b k d)."""
        if str(layer) not in self.blocks:
            return tokens
        block_cache = None if level_cache is None else level_cache.blocks.setdefault(layer, BlockCache())
        return self.blocks[str(layer)](tokens, cos_sin, block_cache, None if block_cache is None else units)


def as_column(number: int | Tensor, device: torch.device) -> Tensor:
    """A number, or one for each row (b), as a tensor (1 1) or (b 1)."""
    if isinstance(number, Tensor):
        return number.to(device)[:, None]
    return torch.full((1, 1), number, device=device)  # not a copy of a tensor on the CPU, which a GPU would wait for


def step_of_rows(units: list[int | None], device: torch.device) -> Step:
    """The step in which these units end, one for each row or None."""
    due = {row: unit for row, unit in enumerate(units) if unit is not None}
    if not due:
        return Step(runs=False)
    if len(set(units)) == 1:  # in all rows the same, as in a batch of one
        return Step(runs=True, index=due[0])
    rows, index = (torch.tensor(list(values), device=device) for values in (due.keys(), due.values()))
    return Step(runs=True, index=index, rows=rows)
