"""What generation remembers, so that no byte is ever computed twice.

The first pass with an empty cache is the prefill, an ordinary forward pass that leaves its state behind. Each later one
brings one byte, at which a level computes only when its stride comes round; in between, its last output stands in.
"""

from collections.abc import Hashable

import torch
import torch.nn.functional as F
from torch import Tensor


class Cache(dict):
    """State after `length` bytes of each row of a batch: each module of the model keeps its own, under itself."""

    length = 0


def after_past(t: Tensor, reach: int, cache: Cache | None, key: Hashable) -> Tensor:
    """Tokens t (b n d) behind the `reach` tokens before them, zeros before the first one: (b reach+n d)."""
    past = cache.get(key) if cache is not None else None
    t = F.pad(t, (0, 0, reach, 0)) if past is None else torch.cat((past, t), dim=1)
    if cache is not None:
        cache[key] = t[:, t.shape[1] - reach :]
    return t


class KeyValues:
    """Rotated keys and values of the last `window` outputs of each chain: a ring of slots (b h window·chains d).

    Output k lies in slot k modulo the ring's size, a multiple of the chains, so that a chain is every so-manyth slot.
    Attention does not care for the order of its keys. Begins with what the first n outputs leave behind (b h n d).
    """

    def __init__(self, k: Tensor, v: Tensor, window: int, chains: int):
        self.window, self.chains, self.size = window, chains, window * chains
        self.count = k.shape[-2]  # outputs seen
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
            ring[:, :, slot] = t[:, :, 0]
        return tuple(ring[:, :, chain :: self.chains][:, :, :seen] for ring in self.ring)
