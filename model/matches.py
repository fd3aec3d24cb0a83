"""A match model: which byte followed the same context the last times it occurred.

Compressors such as lpaq have a match model (https://mattmahoney.net/dc/#lpaq), also with whole words as contexts
(https://mattmahoney.net/dc/dce.html). In transformers, the n-gram heads of arXiv 2401.12973 are close to it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.ngrams import FACTOR, MIX, ngram_hashes
from model.words import is_letter

NON_NEGATIVE = (1 << 63) - 1  # keeps 63 bits of a hash
INVERSE = pow(FACTOR, -1, 1 << 64) - (1 << 64)  # FACTOR · INVERSE = 1 in 64-bit integers, which wrap around


class Context(NamedTuple):
    """The context of each byte: int64 (b n), or (b context n) for several contexts."""

    hashed: Tensor
    """from 0 to NON_NEGATIVE"""
    start: Tensor
    """the first byte that it depends on, below 0 if there are not enough bytes"""


class Words(NamedTuple):
    """The word so far at each byte, then the whole words before it, from the latest backwards.

    Words are runs of ASCII letters, in either case, and bytes from 128 up. Any other byte is a gap.
    """

    hashed: Tensor
    """Σ letter_i · FACTOR^(m-i) over the m letters of the word, 0 where there is none; int64 (b 1+count n)"""
    gap: Tensor
    """the gap before the word, as if byte -1 were one; int64 (b 1+count n)"""


class MatchModel(nn.Module):
    """For each byte, 1 + the byte that followed the latest earlier occurrences of its contexts.

    Bytes (b n) to int64 (b n contexts·per_context), 0 where there was no such occurrence. The occurrences of one
    context are neighbours, the latest first. In generation a `MatchIndex` finds the same.

    The simple version, for one context and byte t: go back from t - 1 to the first byte within `max_distance`, and
    whenever the context that ends there equals the one that ends at t, take the byte after it.

    Args:
        orders: lengths of the contexts, in bytes, the current byte included.
        word_counts: whole words before the current word that belong to a context.
        per_context: how many earlier occurrences are looked up.
        max_distance: an earlier context counts if all of it is within this many bytes.
    """

    def __init__(self, orders: tuple[int, ...], word_counts: tuple[int, ...], per_context: int, max_distance: int):
        super().__init__()
        self.orders = orders
        self.word_counts = word_counts
        self.per_context = per_context
        self.max_distance = max_distance
        self.arrays = tuple(np.array(values, dtype=np.int64) for values in (orders, word_counts))  # for Numba
        self.most_words = max(word_counts, default=0)

    def forward(self, ids: Tensor) -> Tensor:
        """The bytes that followed, for each of ids (b n)."""
        hashed, start = self.contexts(ids)
        next_byte = F.pad(1 + ids[:, 1:], (0, 1)).unsqueeze(1).expand_as(start)

        # A stable sort brings equal contexts together in the order of the text, so the k-th earlier occurrence of one
        # is k places before it in the sorted list.
        hashed, place = hashed.sort(dim=-1, stable=True)
        start = start.gather(-1, place)
        next_byte = next_byte.gather(-1, place)
        reach = (place + 1 - self.max_distance).clamp(min=0)
        is_whole = start >= reach  # a context that is longer than `max_distance` has no earlier occurrence
        found = []
        for k in range(1, self.per_context + 1):
            is_equal = hashed[..., k:] == hashed[..., :-k]
            is_near = start[..., :-k] >= reach[..., k:]
            followed_by = next_byte[..., :-k] * (is_equal & is_near & is_whole[..., k:])
            found.append(torch.zeros_like(place).scatter_(-1, place[..., k:], followed_by))  # back to the text's order
        return rearrange(found, "occurrence b context n -> b n (context occurrence)")

    def contexts(self, ids: Tensor) -> Context:
        """All contexts of each of ids (b n): (b context n)."""
        words = read_words(ids, self.most_words)
        contexts = [*ngram_contexts(ids, self.orders), *word_contexts(ids, words, self.word_counts)]
        if not contexts:
            none = ids.new_zeros(len(ids), 0, ids.shape[1])
            return Context(none, none)
        hashed, start = zip(*contexts, strict=True)
        return Context(torch.stack(hashed, dim=1) & NON_NEGATIVE, torch.stack(start, dim=1))


def ngram_contexts(ids: Tensor, orders: tuple[int, ...]) -> Iterator[Context]:
    """For each of `orders`, the n-gram that ends at each of ids (b n)."""
    place = torch.arange(ids.shape[1], device=ids.device)
    for order, hashed in zip(orders, ngram_hashes(ids, orders), strict=True):
        yield Context(hashed, (place - order + 1).expand_as(hashed))


def word_contexts(ids: Tensor, words: Words, word_counts: tuple[int, ...]) -> Iterator[Context]:
    """For each of `word_counts`, the context of each of ids (b n): its word so far, and as many whole words before it.

    At a gap, that byte takes the place of the current word. For the whole words before it, the bytes between words make
    no difference. A context starts at the gap before its first word, or at -1 if there are fewer words.
    """
    place = torch.arange(ids.shape[1], device=ids.device)
    is_gap = words.gap[:, 0] == place
    hashed = torch.where(is_gap, -ids - 1, words.hashed[:, 0])
    for count in range(max(word_counts, default=-1) + 1):
        if count > 0:
            hashed = hashed * MIX + words.hashed[:, count]
        if count in word_counts:
            yield Context(hashed, words.gap[:, count])


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
    return Words(torch.stack(hashed, dim=1), torch.stack(gaps, dim=1))


def letters(ids: Tensor) -> Tensor:
    """The bytes of words, in lower case, and 0 for gaps, of ids (b n)."""
    lower = torch.where((ids >= ord("A")) & (ids <= ord("Z")), ids + 32, ids)
    return lower * is_letter(ids)


def gather_or(t: Tensor, index: Tensor, default: int) -> Tensor:
    """Values of t (… n) at index (… m), or the default where the index is negative."""
    return torch.where(index >= 0, t.gather(-1, index.clamp(min=0)), default)
