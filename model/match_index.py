"""An index of a text's contexts: what generation keeps to look up one more byte without reading the text again.

Each context of each byte belongs to a bucket. The places in a bucket form a chain, from the latest backwards, as in
gzip (RFC 1951, section 4), and a context is looked up by following the chain of its bucket. That is plain Python: a few
steps for each context, where operations on tensors, which cannot stop early, would take thousands.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.matches import NON_NEGATIVE, MatchModel, letters, read_words
from model.ngrams import FACTOR, MIX

LETTERS = letters(torch.arange(256)).tolist()  # by byte: its letter in lower case, 0 for a gap


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
        """Add the next byte of each row, ids (b 1), and find which bytes followed its contexts.

        Args:
            model: the one that this index was made for.
            place: index of this byte in the text.

        Returns the same as the model's pass over all bytes so far, for this one: (b 1 contexts·per_context).
        """
        slots = model.max_distance
        slot = place % slots
        reach = max(0, place + 1 - slots)  # a context counts if it starts there or later
        longest_order = max(model.orders, default=0)
        views = (self.ids, self.hashed, self.starts, self.earlier, self.latest)
        texts, hashes, starts, earlier, latest = (memoryview(t.view(-1).numpy()) for t in views)

        all_words = self.words.tolist()
        all_found = []
        chains = 0  # where the chains of a row and context begin in the flattened tensors
        for row, (byte, words) in enumerate(zip(ids[:, 0].tolist(), all_words, strict=True)):
            text = row * slots
            texts[text + slot] = byte
            recent = [texts[text + (place - back) % slots] for back in range(longest_order)]
            contexts = ngrams_at(place, recent, model.orders)
            contexts += words_at(place, byte, words, model.word_counts)
            found = []
            for hashed, start in contexts:
                # Follow the chain.
                bucket = chains + hashed % slots
                newest = candidate = latest[bucket]
                missing = model.per_context
                while missing and candidate >= reach:
                    its_slot = chains + candidate % slots
                    if hashes[its_slot] == hashed:
                        next_byte = texts[text + (candidate + 1) % slots]
                        found.append(1 + next_byte if starts[its_slot] >= reach else 0)
                        missing -= 1
                    candidate = earlier[its_slot]
                found += [0] * missing

                # Put this place in front of it.
                hashes[chains + slot] = hashed
                starts[chains + slot] = start
                earlier[chains + slot] = newest
                latest[bucket] = place
                chains += slots
            all_found.append(found)
        self.words.copy_(torch.tensor(all_words))
        return torch.tensor(all_found, dtype=torch.long, device=ids.device).view(len(ids), 1, -1)


def index_text(model: MatchModel, ids: Tensor) -> MatchIndex:
    """The index of ids (b n): the same as if they had been added one by one."""
    ids = ids.cpu()
    n = ids.shape[1]
    slots = model.max_distance
    words = read_words(ids, model.most_words)
    hashed, start = (t[..., -slots:] for t in model.contexts(ids))
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
        words=torch.stack((words.gap[..., -1], words.hashed[..., -1] & NON_NEGATIVE), dim=-1),
    )


def into_slots(t: Tensor, slots: int, n: int) -> Tensor:
    """The last entries of t (… m), of n in all, entry i in slot i modulo `slots`: (… slots)."""
    last = F.pad(t, (max(0, slots - t.shape[-1]), 0))[..., -slots:]
    return last.roll(n % slots, dims=-1)


def ngrams_at(place: int, recent: list[int], orders: tuple[int, ...]) -> list[tuple[int, int]]:
    """Hash and first byte of each n-gram that ends at a byte, as `matches.ngram_contexts`.

    Args:
        recent: this byte and those before it, the latest first.
    """
    contexts = []
    hashed = recent[0] if recent else 0
    for order, earlier in enumerate(recent[1:], start=2):
        hashed = (hashed * FACTOR + earlier + order) & NON_NEGATIVE
        if order in orders:
            contexts.append((hashed, place - order + 1))
    return contexts


def words_at(place: int, byte: int, words: list[list[int]], counts: tuple[int, ...]) -> list[tuple[int, int]]:
    """Hash and first byte of each context of words that ends at a byte, as `matches.word_contexts`.

    Args:
        words: gap and hash of the word so far and of whole words before it, at the byte before; changed to this byte's.
    """
    letter = LETTERS[byte] if byte < len(LETTERS) else byte
    if letter:
        words[0][1] = (words[0][1] * FACTOR + letter) & NON_NEGATIVE
    else:
        if words[0][0] < place - 1:  # this gap ends a word
            words.insert(0, [place, 0])
            words.pop()
        words[0] = [place, 0]

    contexts = []
    hashed = words[0][1] if letter else (-byte - 1) & NON_NEGATIVE
    for count, (gap, word) in enumerate(words):
        if count > 0:
            hashed = (hashed * MIX + word) & NON_NEGATIVE
        if count in counts:
            contexts.append((hashed, gap))
    return contexts
