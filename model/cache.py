"""What generation remembers, so that no byte is ever computed twice: a cache for each level and layer.

The first call of a model with an empty cache is the prefill, an ordinary forward pass that leaves its state behind.
Each later call brings one byte, at which a level computes only when its stride comes round; in between, its last output
stands in, as it does in the full pass.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.config import LevelConfig


class KeyValues:
    """Rotated keys and values of the last `window` outputs of each chain: a ring of slots (b h window·chains d).

    Output k lies in slot k modulo the ring's size, a multiple of the chains, so that a chain is every so-manyth
    slot. Attention does not care for the order of its keys.
    """

    def __init__(self, window: int, chains: int):
        self.window, self.chains = window, chains
        self.size = window * chains
        self.count = 0  # outputs seen
        self.ring: tuple[Tensor, Tensor] | None = None

    def fill(self, k: Tensor, v: Tensor) -> None:
        """Keep what the first n outputs leave behind: k and v are (b h n d)."""
        self.count = k.shape[-2]
        kept = torch.arange(max(0, self.count - self.size), self.count, device=k.device)
        self.ring = tuple(t.new_zeros(*t.shape[:2], self.size, t.shape[-1]) for t in (k, v))
        for ring, t in zip(self.ring, (k, v), strict=True):
            ring[:, :, kept % self.size] = t[:, :, kept]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep one more output (b h 1 d); returns all keys and values that it may see."""
        slot, chain = self.count % self.size, self.count % self.chains
        seen = min(self.count // self.chains + 1, self.window)
        self.count += 1
        for ring, t in zip(self.ring, (k, v), strict=True):
            ring[:, :, slot : slot + 1] = t
        keys, values = (ring[:, :, chain :: self.chains][:, :, :seen] for ring in self.ring)
        return keys, values


@dataclass
class BlockCache:
    """One layer of one level: its keys and values, and the tails of its two token shifts."""

    keys: KeyValues
    before_attn: Tensor | None = None
    before_ff: Tensor | None = None


@dataclass
class LevelCache:
    """One level: its layers, and where xpos counts from."""

    blocks: dict[int, BlockCache]  # by layer
    origin: int = 0


@dataclass
class Cache:
    """State of a model after `length` bytes of each row of a batch; made by `Cache.empty(model.config)`."""

    levels: list[LevelCache]
    merges: list[dict[int, tuple[Tensor, Tensor]]]  # each layer's last projection of each level
    logits: dict[int, Tensor] = field(default_factory=dict)  # each predicting level's last share
    before: Tensor | None = None  # embeddings of the last bytes, as far back as a compression reaches
    length: int = 0

    @classmethod
    def empty(cls, levels: tuple[LevelConfig, ...], layers: int) -> "Cache":
        """Nothing seen yet."""
        states = [
            LevelCache({layer: BlockCache(KeyValues(level.window, level.chains)) for layer in level.layers})
            for level in levels
        ]
        return cls(states, merges=[{} for _ in range(layers)])
