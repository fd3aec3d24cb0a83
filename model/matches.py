"""A match model: which byte followed the same context the last times it occurred.

Compressors such as lpaq have a match model (https://mattmahoney.net/dc/#lpaq), also with whole words as contexts
(https://mattmahoney.net/dc/dce.html). In transformers, the n-gram heads of arXiv 2401.12973 are close to it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.ngrams import FACTOR, MIX, ngram_hashes
from model.words import is_letter

INVERSE = pow(FACTOR, -1, 1 << 64) - (1 << 64)  # FACTOR · INVERSE = 1 in 64-bit integers, which wrap around


class Context(NamedTuple):
    """The context of each byte: (b n), or (b context n) for several contexts."""

    hashed: Tensor
    length: Tensor
    """bytes from the first that it depends on to the current one"""


@dataclass
class Words:
    """The word so far at each byte, then the whole words before it, from the latest backwards.

    Words are runs of ASCII letters, in either case, and bytes from 128 up. Any other byte is a gap.
    """

    hashed: Tensor
    """Σ letter_i · FACTOR^(m-i) over the m letters of the word, 0 where there is none; int64 (b 1+count n)"""
    length: Tensor
    """bytes from the gap before the word to this byte, as if byte -1 were a gap; int64 (b 1+count n)"""

    def append(self, ids: Tensor) -> None:
        """Move on by one byte of each row (b 1), with n = 1. The result is the last column of `read_words`."""
        letter = letters(ids).unsqueeze(1)
        is_gap = letter == 0

        # At a gap, the word before it becomes the first whole word.
        ends_word = is_gap & (self.length[:, :1] > 1)
        hashed = torch.where(ends_word, F.pad(self.hashed, (0, 0, 1, -1)), self.hashed)
        length = torch.where(ends_word, F.pad(self.length, (0, 0, 1, -1)), self.length)

        word_so_far = hashed[:, :1] * FACTOR + letter
        length_so_far = length[:, :1].masked_fill(is_gap, 0)
        self.hashed = torch.cat((word_so_far, hashed[:, 1:]), dim=1)
        self.length = torch.cat((length_so_far, length[:, 1:]), dim=1) + 1


@dataclass
class MatchCache:
    """What a match model keeps of the last bytes. Byte i is in slot i modulo `max_distance`, the number of slots."""

    ids: Tensor
    """the bytes, (b slots)"""
    equal_bytes: Tensor
    """how many bytes up to this one equal those up to the latest one, at most the longest order; (b slots)"""
    word_hashes: Tensor
    """hashes of the contexts of words, int32 (b contexts slots)"""
    word_lengths: Tensor
    """their lengths, at most `max_distance`, (b contexts slots)"""
    words: Words
    """at the latest byte"""


class MatchModel(nn.Module):
    """For each byte, 1 + the byte that followed the latest earlier occurrences of its contexts.

    Bytes (b n) to int64 (b n contexts·per_context), 0 where there was no such occurrence. The occurrences of one
    context are neighbours, the latest first. `step` finds the same in generation, from what `prefill` keeps.

    The simple version, for one context and byte t: go back from t - 1 to the first byte within `max_distance`, and
    whenever the context that ends there equals the one that ends at t, take the byte after it.

    Args:
        orders: lengths of the contexts, in bytes, the current byte included.
        word_counts: whole words before the current word that belong to a context.
        per_context: how many earlier occurrences are looked up.
        max_distance: an earlier context counts if all of it is within this many bytes.
        num_tokens: size of the vocabulary.
    """

    order_column: Tensor

    def __init__(
        self,
        orders: tuple[int, ...],
        word_counts: tuple[int, ...],
        per_context: int,
        max_distance: int,
        num_tokens: int = 256,
    ):
        super().__init__()
        self.orders = orders
        self.word_counts = word_counts
        self.per_context = per_context
        self.max_distance = max_distance

        self.longest_order = max(orders, default=0)
        self.most_words = max(word_counts, default=0)
        self.id_dtype = smallest_dtype(num_tokens - 1)
        self.length_dtype = smallest_dtype(max_distance)
        self.count_dtype = smallest_dtype(self.longest_order + 1)
        self.register_buffer("order_column", torch.tensor(orders, dtype=torch.int32).unsqueeze(1), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """The bytes that followed, for each of ids (b n)."""
        words = read_words(ids, self.most_words)
        contexts = [*ngram_contexts(ids, self.orders), *word_contexts(ids, words, self.word_counts)]
        hashed, length = stack_contexts(contexts, ids)

        # A context that would start before the first byte has no match.
        place = torch.arange(ids.shape[1], device=ids.device)
        length = length.where(length <= place + 1, self.max_distance)
        next_byte = F.pad(1 + ids[:, 1:], (0, 1)).unsqueeze(1).expand_as(length)

        # A stable sort brings equal contexts together in the order of the text, so the k-th earlier occurrence of one
        # is k places before it in the sorted list.
        hashed, place = hashed.sort(dim=-1, stable=True)
        length = length.gather(-1, place)
        next_byte = next_byte.gather(-1, place)
        found = []
        for k in range(1, self.per_context + 1):
            is_equal = hashed[..., k:] == hashed[..., :-k]
            is_near = place[..., k:] - place[..., :-k] + length[..., :-k] <= self.max_distance
            followed_by = next_byte[..., :-k] * (is_equal & is_near)
            found.append(torch.zeros_like(place).scatter_(-1, place[..., k:], followed_by))  # back to the text's order
        return rearrange(found, "occurrence b context n -> b n (context occurrence)")

    def prefill(self, ids: Tensor) -> MatchCache:
        """What `step` needs after a first pass over ids (b n)."""
        words = read_words(ids, self.most_words)
        contexts = stack_contexts(word_contexts(ids, words, self.word_counts), ids)
        lengths = contexts.length.clamp(max=self.max_distance).to(self.length_dtype)
        cache = MatchCache(
            ids=into_slots(ids.to(self.id_dtype), self.max_distance),
            equal_bytes=ids.new_zeros(len(ids), self.max_distance, dtype=self.count_dtype),
            word_hashes=into_slots(contexts.hashed.int(), self.max_distance),
            word_lengths=into_slots(lengths, self.max_distance, default=self.max_distance),
            words=Words(words.hashed[..., -1:].clone(), words.length[..., -1:].clone()),
        )
        for t in range(max(0, ids.shape[1] - self.longest_order), ids.shape[1]):
            self.extend_equal_bytes(cache, ids[:, t : t + 1])
        return cache

    def step(self, ids: Tensor, cache: MatchCache, index: int | Tensor) -> Tensor:
        """The bytes that followed, for one more byte of each row (b 1): the last column of a pass over all bytes.

        No context is hashed again: those of words are extended, those of bytes are compared.

        Args:
            index: the index of this byte in the text, as a tensor (1) if steps are recorded.
        """
        is_recorded = isinstance(index, Tensor)
        index = torch.as_tensor(index, device=ids.device).view(1)
        slot = index % self.max_distance

        # Write what is kept of this byte in place of the oldest one.
        cache.words.append(ids)
        contexts = stack_contexts(word_contexts(ids, cache.words, self.word_counts), ids)
        hashed = contexts.hashed.int()
        length = contexts.length.clamp(max=self.max_distance).to(self.length_dtype)
        cache.ids.index_copy_(-1, slot, ids.to(self.id_dtype))
        cache.word_hashes.index_copy_(-1, slot, hashed)
        cache.word_lengths.index_copy_(-1, slot, length)
        self.extend_equal_bytes(cache, ids)

        # Find the latest equal contexts. The recency of a slot is 0 for this byte, and largest for the byte before it.
        recency = torch.arange(self.max_distance, dtype=torch.int32, device=ids.device) - slot.int()
        recency = torch.where(recency < 0, recency + self.max_distance, recency)
        find = self.latest_of_all if is_recorded else self.latest_of_equal
        latest = find(cache, hashed, recency)
        distance = self.max_distance - latest.long()

        # Keep those all of which is within reach. A distance of `max_distance` stands for none, and is not.
        slots = (slot - distance) % self.max_distance
        ngram_lengths = self.order_column.expand(len(ids), -1, self.per_context)
        word_lengths = cache.word_lengths.gather(-1, slots[:, len(self.orders) :])
        reach = (index + 1).clamp(max=self.max_distance)
        is_near = distance + torch.cat((ngram_lengths, word_lengths), dim=1) <= reach

        next_byte = cache.ids.gather(-1, ((slots + 1) % self.max_distance).flatten(1))
        return ((1 + next_byte.long()) * is_near.flatten(1)).unsqueeze(1)

    def latest_of_all(self, cache: MatchCache, hashed: Tensor, recency: Tensor) -> Tensor:
        """The largest recencies of slots with an equal context, 0 for lack of more: (b contexts per_context).

        Args:
            hashed: of this byte's contexts of words, (b contexts 1).
            recency: of each slot.
        """
        equal_ngrams = cache.equal_bytes.int().unsqueeze(1) >= self.order_column
        equal_words = cache.word_hashes == hashed
        return torch.cat([latest_of(each, recency, self.per_context) for each in (equal_ngrams, equal_words)], dim=1)

    def latest_of_equal(self, cache: MatchCache, hashed: Tensor, recency: Tensor) -> Tensor:
        """The same, from the few slots that are equal. A recorded step cannot know their number."""
        found = [recency.new_zeros(len(hashed), 0, self.per_context)]
        if self.orders:
            row, slot = (cache.equal_bytes >= self.orders[0]).nonzero(as_tuple=True)
            is_equal = cache.equal_bytes[row, slot] >= self.order_column
            values = (recency[slot] * is_equal).mT  # (candidates orders)
            found.append(largest_of_rows(values, row, len(hashed), self.per_context))
        if self.word_counts:
            row, context, slot = (cache.word_hashes == hashed).nonzero(as_tuple=True)
            group = row * len(self.word_counts) + context
            largest = largest_of_rows(recency[slot][:, None], group, hashed[..., 0].numel(), self.per_context)
            found.append(largest.view(len(hashed), -1, self.per_context))
        return torch.cat(found, dim=1)

    def extend_equal_bytes(self, cache: MatchCache, ids: Tensor) -> None:
        """Count up to one more byte of each row (b 1): one more than before it where the byte is equal, else 0.

        Slots are a ring, so the count for the oldest byte continues that of the latest one. That does no harm, because
        no context that ends at the oldest byte is within reach.
        """
        before = torch.cat((cache.equal_bytes[:, -1:], cache.equal_bytes[:, :-1]), dim=1)
        is_equal = cache.ids == ids.to(self.id_dtype)
        cache.equal_bytes = torch.where(is_equal, (before + 1).clamp(max=self.longest_order), 0)


def latest_of(is_equal: Tensor, recency: Tensor, count: int) -> Tensor:
    """The largest `count` of recency (slots) where is_equal (b contexts slots), 0 for lack of more: (b contexts count).

    Equals `topk`, which is slower for such small counts.
    """
    candidates = recency * is_equal
    latest = [candidates.amax(dim=-1, keepdim=True)]
    for _ in range(1, count):
        candidates = candidates * (candidates < latest[-1])
        latest.append(candidates.amax(dim=-1, keepdim=True))
    return torch.cat(latest, dim=-1)


def largest_of_rows(values: Tensor, row: Tensor, rows: int, count: int) -> Tensor:
    """The largest `count` of values (m columns) in each row and column, which differ: (rows columns count).

    Args:
        row: the row of each of the m values, (m).
        rows: how many rows there are. In a row without so many values there are zeros.
    """
    index = row[:, None].expand_as(values)
    largest = []
    for _ in range(count):
        latest = values.new_zeros(rows, values.shape[1]).scatter_reduce_(0, index, values, "amax")
        largest.append(latest)
        values = values * (values < latest[row])
    return torch.stack(largest, dim=-1)


def smallest_dtype(largest: int) -> torch.dtype:
    """The smallest type of whole numbers that holds 0 to `largest`."""
    return next(t for t in (torch.uint8, torch.int16, torch.int32, torch.int64) if largest <= torch.iinfo(t).max)


def into_slots(t: Tensor, slots: int, default: int = 0) -> Tensor:
    """The last entries of t (… n), entry i in slot i modulo `slots`; the default where there is none: (… slots)."""
    n = t.shape[-1]
    last = F.pad(t, (max(0, slots - n), 0), value=default)[..., -slots:]
    return last.roll(n % slots, dims=-1)


def gather_or(t: Tensor, index: Tensor, default: int) -> Tensor:
    """Values of t (… n) at index (… m), or the default where the index is negative."""
    return torch.where(index >= 0, t.gather(-1, index.clamp(min=0)), default)


def stack_contexts(contexts: Iterable[Context], ids: Tensor) -> Context:
    """Contexts of each of ids (b n), if any, as one of (b context n)."""
    contexts = list(contexts)
    if not contexts:
        none = ids.new_zeros(len(ids), 0, ids.shape[1])
        return Context(none, none)
    hashed, length = zip(*contexts, strict=True)
    return Context(torch.stack(hashed, dim=1), torch.stack(length, dim=1))


def ngram_contexts(ids: Tensor, orders: tuple[int, ...]) -> Iterator[Context]:
    """For each of `orders`, the n-gram that ends at each of ids (b n)."""
    for order, hashed in zip(orders, ngram_hashes(ids, orders), strict=True):
        yield Context(hashed, torch.full_like(ids, order))


def word_contexts(ids: Tensor, words: Words, word_counts: tuple[int, ...]) -> Iterator[Context]:
    """For each of `word_counts`, the context of each of ids (b n): its word so far, and as many whole words before it.

    At a gap, that byte takes the place of the current word. For the whole words before it, the bytes between words make
    no difference. A context starts at the gap before its first word, or at -1 if there are fewer words. Hashes are of
    32 bits, which are kept for each byte.
    """
    is_gap = words.length[:, 0] == 1
    hashed = torch.where(is_gap, -ids - 1, words.hashed[:, 0])
    for count in range(max(word_counts, default=-1) + 1):
        if count > 0:
            hashed = hashed * MIX + words.hashed[:, count]
        if count in word_counts:
            yield Context(hashed.int(), words.length[:, count])


def read_words(ids: Tensor, count: int) -> Words:
    """The word so far at each of ids (b n), and `count` whole words before it.

    The simple version of a word's hash goes through its letters: hash = hash · FACTOR + letter. Here one cumulative sum
    over the text gives it at every byte. The letter at place p has the factor INVERSE^(p+1) there. Subtract the sum up
    to the gap before the word, and multiply by FACTOR^(p+1) at place p: a word then has the same hash wherever it is.
    """
    letter = letters(ids)
    in_word = letter > 0
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    latest_gap = torch.where(in_word, -1, place).cummax(dim=1).values
    latest_letter = torch.where(in_word, place, -1).cummax(dim=1).values

    # The word so far. powers[p] is FACTOR^(p + 1).
    powers = torch.full_like(place, FACTOR).cumprod(dim=1)
    inverse_powers = torch.full_like(place, INVERSE).cumprod(dim=1)
    sums = (letter * inverse_powers).cumsum(dim=1)
    word_so_far = (sums - gather_or(sums, latest_gap, default=0)) * powers

    # Then one whole word after another, from the current one backwards.
    hashed = [word_so_far]
    gaps = [latest_gap]
    for _ in range(count):
        word_end = gather_or(latest_letter, gaps[-1], default=-1)
        hashed.append(gather_or(word_so_far, word_end, default=0))
        gaps.append(gather_or(latest_gap, word_end, default=-1))
    length = place.unsqueeze(1) - torch.stack(gaps, dim=1) + 1
    return Words(torch.stack(hashed, dim=1), length)


def letters(ids: Tensor) -> Tensor:
    """The bytes of words, in lower case, and 0 for gaps, of ids (b n)."""
    lower = torch.where((ids >= ord("A")) & (ids <= ord("Z")), ids + 32, ids)
    return lower * is_letter(ids)
