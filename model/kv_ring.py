"""The keys and values that generation keeps: a ring buffer of the last `window` tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KVRing:
    """Keys and values of the last `window` tokens of one chain; token i is stored in slot i modulo window.

    A new token overwrites the oldest one. The order of the slots does not matter to attention, because keys are stored
    after their rotation. The simple version: append to a list, and drop its first element once it has more than
    `window` of them.
    """

    kv: Tensor
    """keys and values, (b 2 h window d); slots that were never written hold zeros"""

    def update(self, k: Tensor, v: Tensor, index: int | Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store one token (b h 1 d) that has this index in its chain.

        Returns keys and values (b h j d), and a mask (1 j) of those that exist, or None if all j do. With the index as
        a tensor (1), j is always the whole window, because recorded steps need fixed shapes.
        """
        kv = torch.stack((k, v), dim=1)
        window = self.kv.shape[-2]
        if isinstance(index, Tensor):
            self.kv.index_copy_(-2, index % window, kv)
            keys, values = self.kv.unbind(dim=1)
            written = torch.arange(window, device=kv.device) <= index[:, None]
            return keys, values, written
        self.kv[..., index % window, :] = kv[..., 0, :]
        keys, values = self.kv[..., : index + 1, :].unbind(dim=1)
        return keys, values, None


def prefill_rings(k: Tensor, v: Tensor, window: int, chains: int) -> dict[int, KVRing]:
    """The ring of each chain after a first pass over n tokens: k and v (b h n d).

    Token t belongs to chain t % chains, and has the index t // chains there.
    """
    kv = torch.stack((k, v), dim=1)
    tokens_so_far = torch.arange(kv.shape[-2], device=kv.device)
    rings = {}
    for chain in range(chains):
        tokens = tokens_so_far[chain::chains][-window:]
        ring = kv.new_zeros(*kv.shape[:3], window, kv.shape[-1])
        ring[..., tokens // chains % window, :] = kv[..., tokens, :]
        rings[chain] = KVRing(ring)
    return rings
