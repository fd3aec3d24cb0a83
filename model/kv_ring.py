"""The keys and values that generation keeps: a ring buffer of the last `window` tokens."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from model.segments import Step, Units


@dataclass
class KVRing:
    """Keys and values of the last `window` tokens of one chain; token i is stored in slot i modulo window.

    A new token overwrites the oldest one. The order of the slots does not matter to attention, because keys are stored
    after their rotation. The simple version: append to a list, and drop its first element once it has more than
    `window` of them.
    """

    kv: Tensor
    """keys and values, (b 2 h window d); slots that were never written hold zeros"""

    def update(self, k: Tensor, v: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store the token of each row that runs, k and v (m h 1 d).

        Returns keys and values of these rows (m h j d), and a mask of those that exist, (1 j) or (m j), or None if all
        j do. With the index as a tensor, j is always the whole window.
        """
        kv = torch.stack((k, v), dim=1)
        window = self.kv.shape[-2]
        if not isinstance(step.index, Tensor):
            self.kv[..., step.index % window, :] = kv[..., 0, :]
            keys, values = self.kv[..., : step.index + 1, :].unbind(dim=1)
            return keys, values, None

        slot = step.index % window
        written = torch.arange(window, device=kv.device) <= step.index[:, None]
        if step.rows is None and step.mask is None:
            self.kv.index_copy_(-2, slot, kv)
            keys, values = self.kv.unbind(dim=1)
        else:
            keys, values = self.update_rows(kv[..., 0, :], slot, step).unbind(dim=1)
        return keys, values, written

    def update_rows(self, kv: Tensor, slot: Tensor, step: Step) -> Tensor:
        """Store kv (m 2 h d) in a slot of each row (m), and return the rings of these rows."""
        if step.rows is not None:
            self.kv[step.rows, :, :, slot] = kv.to(self.kv.dtype)
            return self.kv[step.rows]
        rows = torch.arange(len(kv), device=kv.device)
        self.kv[rows, :, :, slot] = step.put(self.kv[rows, :, :, slot], kv)
        return self.kv


def kept_in_order(rings: dict[int, KVRing], units: Units) -> tuple[Tensor, Tensor | None]:
    """Keys and values of the last tokens before some units, oldest first, and which of them exist.

    Returns (b 2 h j d), and None if all exist, or else bool (b j).
    """
    window = rings[0].kv.shape[-2]
    if isinstance(units.before, Tensor):
        token = units.before[:, None] + torch.arange(-window, 0, device=units.before.device)
        return entries_of_rows(rings[0].kv, token % window), token >= 0

    tokens_of_chain = units.before // len(rings)
    token = torch.arange(max(0, tokens_of_chain - window), tokens_of_chain, device=rings[0].kv.device)
    kept = [rings[chain].kv[..., token % window, :] for chain in range(len(rings))]
    return rearrange(kept, "chain b kv h j d -> b kv h (j chain) d"), None


def fill_rings(k: Tensor, v: Tensor, kept: int, window: int, chains: int, units: Units) -> dict[int, KVRing]:
    """The ring of each chain after a pass over some units: k and v (b h kept+k d).

    Token t belongs to chain t % chains, and has the index t // chains there.

    Args:
        kept: how many of them are of tokens before these units.
    """
    kv = torch.stack((k, v), dim=1)
    if isinstance(units.before, Tensor):
        assert units.real is not None
        return {0: KVRing(latest_of_rows(kv, kept - units.before, units.before + units.real.sum(dim=1), window))}

    first = units.before - kept
    places = torch.arange(kv.shape[-2], device=kv.device)
    rings = {}
    for chain in range(chains):
        place = places[chain::chains][-window:]
        ring = kv.new_zeros(*kv.shape[:3], window, kv.shape[-1])
        ring[..., (first + place) // chains % window, :] = kv[..., place, :]
        rings[chain] = KVRing(ring)
    return rings


def latest_of_rows(kv: Tensor, first_place: Tensor, count: Tensor, window: int) -> Tensor:
    """The ring of each row (b 2 h window d): slot s holds the latest token t with t % window = s.

    Args:
        kv: those of the last tokens, and perhaps of some that are not real, (b 2 h j d).
        first_place: where in them token 0 is, or would be, (b).
        count: tokens so far, (b).
    """
    slot = torch.arange(window, device=kv.device)
    last = count[:, None] - 1
    token = last - (last - slot) % window  # (b window), negative where there is none
    place = (token + first_place[:, None]).clamp(min=0)
    return entries_of_rows(kv, place) * (token >= 0)[:, None, None, :, None]


def entries_of_rows(kv: Tensor, place: Tensor) -> Tensor:
    """Entries of each row of kv (b 2 h j d) by their place (b i): (b 2 h i d)."""
    return kv.gather(-2, place[:, None, None, :, None].expand(-1, *kv.shape[1:3], -1, kv.shape[-1]))
