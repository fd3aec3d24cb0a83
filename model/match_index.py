"""An index of a text's contexts: what generation keeps to look up one more byte without reading the text again.

Each context of each byte belongs to a bucket. The places in a bucket form a chain, from the latest backwards, as in
gzip (RFC 1951, section 4), and a context is looked up by following the chain of its bucket (model/match_loops.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.matches import NON_NEGATIVE, MatchModel, letters, read_words
from model.ngrams import FACTOR, MIX

HASHING = (FACTOR, MIX, letters(torch.arange(256)).numpy())  # what hashes are made of, for the loops


@dataclass
class MatchIndex:
    """The last bytes of each row, and where their contexts are. On the CPU. Byte i is in slot i modulo `slots`."""

    ids: Tensor
    """the bytes, int32 (b slots)"""
    hashed: Tensor
    """hashes of the contexts that end there, int64 (b context slots)"""
    starts: Tensor
    """first bytes of these contexts, int32 (b context slots)"""
    earlier: Tensor
    """the place before it in the same bucket, -1 if there is none, int32 (b context slots)"""
    latest: Tensor
    """the latest place in each bucket, -1 in empty ones, int32 (b context buckets)"""
    words: Tensor
    """gaps and hashes of the word so far and of whole words before it (see `matches.Words`), int64 (b 1+count 2)"""
    found: Tensor | None = None
    """in recorded steps: what was found for the next byte, on the model's device, (b 1 matches)"""

    def add(self, model: MatchModel, ids: Tensor, place: int) -> Tensor:
        """Add the next bytes of each row, ids (b n), and find which bytes followed their contexts.

        Args:
            model: the one that this index was made for.
            place: index of the first of these bytes in the text.

        Returns the same as the model's pass over all bytes so far, for these: (b n contexts·per_context).
        """
        from model.match_loops import add_text  # compiled when it is first needed

        new = ids.cpu().t().contiguous()  # (n b); einops takes longer than the loops do for one byte
        found = np.zeros((*new.shape, self.hashed.shape[1], model.per_context), dtype=np.int64)
        add_text(new.numpy(), place, *self.arrays(model), found)
        return torch.from_numpy(found).flatten(2).transpose(0, 1).to(ids.device)  # (b n context·k)

    def arrays(self, model: MatchModel) -> tuple:
        """What the loops take: how contexts are hashed, those of a model, and views of the tensors."""
        tensors = (self.ids, self.hashed, self.starts, self.earlier, self.latest, self.words)
        return HASHING, *model.arrays, *(t.numpy() for t in tensors)

    def make_static(self, model: MatchModel) -> Callable[[Tensor, int], None]:
        """A function like `add` for the next byte of each row (b 1), which puts what it finds into `found`.

        It is several times as fast, and right as long as none of the tensors is replaced by another.
        """
        from model.match_loops import add_bytes

        target = self.found
        assert target is not None
        arrays = self.arrays(model)
        found = target.cpu()  # itself, if it is there
        found_array = found.view(len(found), -1, model.per_context).numpy()

        def add(ids: Tensor, place: int) -> None:
            add_bytes(ids.cpu().numpy()[:, 0], place, *arrays, found_array)
            if target is not found:
                target.copy_(found)

        return add

    def latest_bytes(self, length: int) -> Tensor:
        """The bytes that it holds of a text of `length` bytes so far, oldest first: int64 (b n)."""
        slots = self.ids.shape[1]
        place = torch.arange(max(0, length - slots), length)
        return self.ids[:, place % slots].long()


def index_text(model: MatchModel, ids: Tensor, first: int = 0) -> MatchIndex:
    """The index of ids (b n): the same as if they had been added one by one.

    Args:
        first: place of the first of them in the text. If it is not 0, there are at least `max_distance` of them.
    """
    ids = ids.cpu()
    n = first + ids.shape[1]
    slots = model.max_distance
    words = read_words(ids, model.most_words)
    hashed, start = (t[..., -slots:] for t in model.contexts(ids))
    start = start + first
    place = torch.arange(n - hashed.shape[-1], n).expand_as(hashed)

    # A stable sort brings the places of a bucket together, in the order of the text.
    bucket = hashed % slots
    by_bucket, order = bucket.sort(dim=-1, stable=True)
    before = F.pad(place.gather(-1, order)[..., :-1], (1, 0))
    is_first = F.pad(by_bucket[..., 1:] != by_bucket[..., :-1], (1, 0), value=True)
    earlier = torch.zeros_like(place).scatter_(-1, order, before.masked_fill(is_first, -1))
    empty = place.new_full((*hashed.shape[:2], slots), -1)
    latest = empty.scatter_reduce_(-1, bucket, place, "amax")

    return MatchIndex(
        ids=into_slots(ids, slots, n).int(),
        hashed=into_slots(hashed, slots, n),
        starts=into_slots(start, slots, n).int(),
        earlier=into_slots(earlier, slots, n).int(),
        latest=latest.int(),
        words=torch.stack((words.gap[..., -1] + first, words.hashed[..., -1] & NON_NEGATIVE), dim=-1),
    )


def into_slots(t: Tensor, slots: int, n: int) -> Tensor:
    """The last entries of t (… m), of n in all, entry i in slot i modulo `slots`: (… slots)."""
    last = F.pad(t, (max(0, slots - t.shape[-1]), 0))[..., -slots:]
    return last.roll(n % slots, dims=-1)
