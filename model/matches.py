"""What the bytes just seen say of the next one, by what followed the last times: a byte for each place looked up.

It is the match model of compressors such as lpaq (https://mattmahoney.net/dc/#lpaq), with whole words as contexts, too
(https://mattmahoney.net/dc/dce.html), or an n-gram head (arXiv 2401.12973) that looks at its latest matches.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from model.ngrams import FACTOR, MIX, ngram_hashes

INVERSE = pow(FACTOR, -1, 1 << 64) - (1 << 64)  # of the factor among 64-bit integers, which wrap around


def matches(
    ids: Tensor, orders: tuple[int, ...], words: tuple[int, ...], places: int, reach: int | Tensor, last: int
) -> Tensor:
    """What followed where the context of each of the `last` of ids (b n) stood before, as 1 + the byte, 0 where it did
    not: int64 (b last k), for each context in turn `places` of them, the latest first.

    Contexts are n-grams, for each of `orders`, and numbers of whole words before the present one, for
    each of `words`. All of one, and what parts it from what comes before it, lies within the last `reach` bytes, which
    alone count.
    """
    contexts = [*ngram_contexts(ids, orders), *word_contexts(ids, words)]
    if not contexts:
        return ids.new_zeros(len(ids), last, 0)
    hashed, first = (torch.stack(each, dim=1) for each in zip(*contexts, strict=True))  # (b contexts n)
    latest, n = (latest_of_last if last == 1 else latest_of_all), ids.shape[1]
    following = (1 + F.pad(ids[:, 1:], (0, 1))).unsqueeze(1).expand_as(hashed)
    edge = (torch.arange(n - last, n, device=ids.device) - reach).clamp(min=-1)  # the last byte out of reach
    found = []
    for index in (index[..., -last:] for index in latest(hashed, places)):
        within = at(first, index, -1) > edge
        found.append(at(following, index.where(within, -1), 0))
    return rearrange(found, "place b context n -> b n (context place)")


def at(t: Tensor, index: Tensor, otherwise: int) -> Tensor:
    """Values of t (… n) at index (… m), and another where it is below 0."""
    return torch.where(index >= 0, t.gather(-1, index.clamp(min=0)), otherwise)


def latest_of_all(hashed: Tensor, places: int) -> Iterator[Tensor]:
    """Where each of hashed (… n) last stood before, then the time before, and so on: (… n), below 0 if nowhere."""
    ordered, index = hashed.sort(dim=-1, stable=True)
    for k in range(1, places + 1):
        before = torch.where(ordered[..., k:] == ordered[..., :-k], index[..., :-k], -1)
        before = F.pad(before, (k, 0), value=-1)[..., : hashed.shape[-1]]
        yield torch.empty_like(index).scatter_(-1, index, before)  # back in time's order


def latest_of_last(hashed: Tensor, places: int) -> Iterator[Tensor]:
    """The same of the last of hashed alone, (… 1), without a sort."""
    alike = F.pad(hashed[..., :-1] == hashed[..., -1:], (1, 0)) * torch.arange(hashed.shape[-1], device=hashed.device)
    for _ in range(places):
        yield (best := alike.amax(dim=-1, keepdim=True)) - 1
        alike = alike.masked_fill(alike == best, 0)


def ngram_contexts(ids: Tensor, orders: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each of `orders`, a hash of the n-gram that ends at each of ids (b n), and its first place: two of (b n)."""
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    for order, hashed in zip(orders, ngram_hashes(ids, orders), strict=True):
        yield hashed, place - (order - 1)


def word_contexts(ids: Tensor, words: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each of `words`, a hash of the word up to each of ids (b n) and of so many before it, and the place of what
    comes before the first of them, below 0 if there are not so many: two of (b n).

    Words are runs of letters, in ASCII without case, and of bytes from 128. Between two of them the present one is the
    byte itself; what else parts words does not count.
    """
    if not words:
        return
    lower = torch.where((ids >= ord("A")) & (ids <= ord("Z")), ids + 32, ids).long()
    letter = (lower >= ord("a")) & (lower <= ord("z")) | (lower >= 128)
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    gap = torch.where(letter, -1, place).cummax(dim=1).values  # where the latest byte that is none, up to each
    end = torch.where(letter, place, -1).cummax(dim=1).values  # where the latest letter
    power, inverse = (torch.full_like(place, factor).cumprod(dim=1) for factor in (FACTOR, INVERSE))
    sums = (torch.where(letter, lower, 0) * power).cumsum(dim=1)
    spelled = (sums - at(sums, gap, 0)) * at(inverse, gap, 1)  # the same wherever the word stands
    hashed, first, word = torch.where(letter, spelled, -lower - 1), gap, place
    for count in range(max(words) + 1):
        if count > 0:
            word = at(end, first, -1)  # its last letter
            hashed, first = hashed * MIX + at(spelled, word, 0), at(gap, word, -1)
        if count in words:
            yield hashed, first
