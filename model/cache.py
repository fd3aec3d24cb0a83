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
    """Rotated keys and values of the last `window` outputs of each chain, a ring of slots: (2 b h chains window d).

    Output k lies in slot ⌊k/chains⌋ modulo the window; attention does not care for the order of its keys. Begins with
    what the first n outputs, keys and values (2 b h n d), leave behind.
    """

    def __init__(self, kv: Tensor, window: int, chains: int):
        self.window, self.chains, self.count = window, chains, kv.shape[-2]  # count: outputs seen
        kept = torch.arange(max(0, self.count - window * chains), self.count, device=kv.device)
        self.ring = kv.new_zeros(*kv.shape[:3], chains, window, kv.shape[-1])
        self.ring[..., kept % chains, kept // chains % window, :] = kv[..., kept, :]

    def append(self, kv: Tensor) -> Tensor:
        """Keep one more output (2 b h 1 d); returns all keys and values that it may see (2 b h j d)."""
        age, chain = divmod(self.count, self.chains)
        self.count += 1
        self.ring[..., chain, age % self.window, :] = kv[..., 0, :]
        return self.ring[..., chain, : age + 1, :]
