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
    """Rotated keys and values of the last `window` outputs of each chain, a ring of slots: (b h chains window d).

    Output k lies in slot ⌊k/chains⌋ modulo the window; attention does not care for the order of its keys. Begins with
    what the first n outputs (b h n d) leave behind.
    """

    def __init__(self, k: Tensor, v: Tensor, window: int, chains: int):
        self.window, self.chains, self.count = window, chains, k.shape[-2]  # count: outputs seen
        kept = torch.arange(max(0, self.count - window * chains), self.count, device=k.device)
        self.rings = tuple(t.new_zeros(*t.shape[:2], chains, window, t.shape[-1]) for t in (k, v))
        for ring, t in zip(self.rings, (k, v), strict=True):
            ring[:, :, kept % chains, kept // chains % window] = t[:, :, kept]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep one more output (b h 1 d); returns all keys and values that it may see (b h j d)."""
        age, chain = divmod(self.count, self.chains)
        self.count += 1
        for ring, t in zip(self.rings, (k, v), strict=True):
            ring[:, :, chain, age % self.window] = t[:, :, 0]
        return tuple(ring[:, :, chain, : age + 1] for ring in self.rings)
