"""A match model: which byte followed the same context the last times it occurred.

Compressors such as lpaq have a match model (https://mattmahoney.net/dc/#lpaq), also with whole words as contexts
(https://mattmahoney.net/dc/dce.html). In transformers, the n-gram heads of arXiv 2401.12973 are close to it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from model.ngrams import FACTOR, MIX, ngram_hashes

INVERSE = pow(FACTOR, -1, 1 << 64) - (1 << 64)  # FACTOR · INVERSE = 1 in 64-bit integers, which wrap around


class Context(NamedTuple):
    """The context of each byte: a hash of it, and the index of the first byte that it depends on, both (b n)."""

    hashed: Tensor
    start: Tensor


def find_matches(
    ids: Tensor,
    orders: tuple[int, ...],
    word_counts: tuple[int, ...],
    per_context: int,
    max_distance: int | Tensor,
    last: int,
) -> Tensor:
    """For each of the last bytes of ids, 1 + the byte that followed the latest earlier occurrences of its contexts.

    Returns int64 (b last contexts·per_context), 0 where there was no such occurrence. The occurrences of one context
    are neighbours, the latest first.

    The simple version, for one context and byte t: go back from t - 1 to the first byte within `max_distance`, and
    whenever the context that ends there equals the one that ends at t, take the byte after it.

    Args:
        ids: bytes (b n).
        orders: lengths of the contexts, in bytes, the current byte included.
        word_counts: whole words before the current word that belong to a context.
        per_context: how many earlier occurrences are looked up.
        max_distance: an earlier context counts if all of it is within this many bytes.
        last: how many bytes, from the end, are looked up.
    """
    contexts = [*ngram_contexts(ids, orders), *word_contexts(ids, word_counts)]
    if not contexts:
        return ids.new_zeros(len(ids), last, 0)
    hashed = torch.stack([context.hashed for context in contexts], dim=1)  # (b contexts n)
    start = torch.stack([context.start for context in contexts], dim=1)

    n = ids.shape[1]
    next_byte = 1 + F.pad(ids[:, 1:], (0, 1))
    next_byte = next_byte.unsqueeze(1).expand_as(hashed)
    too_far = (torch.arange(n - last, n, device=ids.device) - max_distance).clamp(min=-1)  # the last byte out of reach

    earlier_occurrences = occurrences_of_last if last == 1 else occurrences_of_all
    found = []
    for index in earlier_occurrences(hashed, per_context):
        index = index[..., -last:]
        within_reach = gather_or(start, index, default=-1) > too_far
        index = index.where(within_reach, -1)
        found.append(gather_or(next_byte, index, default=0))
    return rearrange(found, "occurrence b context n -> b n (context occurrence)")


def gather_or(t: Tensor, index: Tensor, default: int) -> Tensor:
    """Values of t (… n) at index (… m), or the default where the index is negative."""
    return torch.where(index >= 0, t.gather(-1, index.clamp(min=0)), default)


def occurrences_of_all(hashed: Tensor, count: int) -> Iterator[Tensor]:
    """Index of the latest earlier occurrence of each of hashed (… n), then of the one before it, and so on.

    Each result is (… n), negative where there is none. A stable sort brings equal hashes together in their order, so
    the k-th earlier occurrence of an entry is k places before it in the sorted list.
    """
    ordered, index = hashed.sort(dim=-1, stable=True)
    for k in range(1, count + 1):
        earlier = torch.where(ordered[..., k:] == ordered[..., :-k], index[..., :-k], -1)
        earlier = F.pad(earlier, (k, 0), value=-1)[..., : hashed.shape[-1]]
        yield torch.empty_like(index).scatter_(-1, index, earlier)  # from sorted order back to the text's


def occurrences_of_last(hashed: Tensor, count: int) -> Iterator[Tensor]:
    """The same for the last entry alone, (… 1), without a sort."""
    is_equal = hashed[..., :-1] == hashed[..., -1:]
    one_based = torch.arange(1, hashed.shape[-1], device=hashed.device)
    occurrences = F.pad(is_equal * one_based, (1, 0))  # 1 + the index of each occurrence, else 0
    for _ in range(count):
        latest = occurrences.amax(dim=-1, keepdim=True)
        yield latest - 1
        occurrences = occurrences.masked_fill(occurrences == latest, 0)


def ngram_contexts(ids: Tensor, orders: tuple[int, ...]) -> Iterator[Context]:
    """For each of `orders`, the n-gram that ends at each of ids (b n)."""
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    for order, hashed in zip(orders, ngram_hashes(ids, orders), strict=True):
        yield Context(hashed, place - (order - 1))


def word_contexts(ids: Tensor, word_counts: tuple[int, ...]) -> Iterator[Context]:
    """For each of `word_counts`, the context of each of ids (b n): its word so far, and as many whole words before it.

    Words are runs of ASCII letters, in either case, and bytes from 128 up. Any other byte is a gap. At a gap, that byte
    takes the place of the current word. For the whole words before it, the bytes between words make no difference. A
    context starts at the gap before its first word, or at -1 if there are fewer words.

    The hash of a word is the polynomial Σ letter_i · FACTOR^i over its letters, i from 1. The simple version computes
    it word by word. Here one cumulative sum over the text gives it at every byte. The letter at place p has the factor
    FACTOR^(p + 1) there. Subtract the sum up to the gap before the word, at place g, and divide by FACTOR^(g + 1): a
    word then has the same hash wherever it is. Division is a product with the inverse, as integers wrap around.
    """
    if not word_counts:
        return

    # Lower-case letters, and for each byte the latest gap and the latest letter up to it.
    lower = torch.where((ids >= ord("A")) & (ids <= ord("Z")), ids + 32, ids).long()
    is_letter = (lower >= ord("a")) & (lower <= ord("z")) | (lower >= 128)
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    latest_gap = torch.where(is_letter, -1, place).cummax(dim=1).values
    latest_letter = torch.where(is_letter, place, -1).cummax(dim=1).values

    # The hash of the word so far. powers[p] is FACTOR^(p + 1).
    powers = torch.full_like(place, FACTOR).cumprod(dim=1)
    inverse_powers = torch.full_like(place, INVERSE).cumprod(dim=1)
    sums = (torch.where(is_letter, lower, 0) * powers).cumsum(dim=1)
    since_gap = sums - gather_or(sums, latest_gap, default=0)
    word_hash = since_gap * gather_or(inverse_powers, latest_gap, default=1)

    # Then one whole word after another is added, from the current one backwards.
    hashed = torch.where(is_letter, word_hash, -lower - 1)
    gap = latest_gap
    for count in range(max(word_counts) + 1):
        if count > 0:
            previous_word_end = gather_or(latest_letter, gap, default=-1)
            hashed = hashed * MIX + gather_or(word_hash, previous_word_end, default=0)
            gap = gather_or(latest_gap, previous_word_end, default=-1)
        if count in word_counts:
            yield Context(hashed, gap)
