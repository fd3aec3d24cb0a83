"""What the bytes just seen say of the next one, by lookup: a row of a table for each n-gram, and where it stood before.

N-grams go by a hash, so that neither needs a vocabulary.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BITS = (1 << 31) - 1  # of a hash make a row, so that products with MIX fit into 64
FACTOR, MIX = 1_000_003, 0x9E3779B1  # a prime, and 2³² over the golden ratio (Knuth, volume 3, 6.4)


def ngram_hashes(ids: Tensor, orders: tuple[int, ...]) -> Iterator[Tensor]:
    """For each of `orders`, which increase from 2, a hash of the n-gram that ends at each of ids (b n): int64 (b n).

    Bytes before the first are taken as zeros. Hash t depends on bytes t - order + 1 … t alone. It wraps around at 64
    bits, so that of n-grams up to three bytes no two share one, and of longer ones hardly any two of a text.
    """
    hashed = ids.long()
    for order in range(2, max(orders, default=1) + 1):
        byte = F.pad(ids, (order - 1, 0))[:, : ids.shape[1]]
        hashed = hashed * FACTOR + byte + order
        if order in orders:
            yield hashed


def ngram_rows(ids: Tensor, orders: tuple[int, ...], rows: int, last: int) -> Iterator[Tensor]:
    """For each of `orders`, the row below `rows` of the n-gram that ends at each of the `last` of ids (b n): int64
    (b last).

    Distinct n-grams may share a row, as in BLT (arXiv 2412.09871).
    """
    for hashed in ngram_hashes(ids[:, -last - max(orders, default=1) :], orders):
        hashed = hashed & BITS
        mixed = ((hashed ^ hashed >> 15) * MIX) & BITS
        yield ((mixed ^ mixed >> 16) % rows)[:, -last:]


def ngram_matches(ids: Tensor, orders: tuple[int, ...], reach: int, last: int) -> Iterator[Tensor]:
    """For each of `orders`, what followed where the n-gram that ends at each of the `last` of ids (b n) last stood
    before, as 1 + the byte: int64 (b last), 0 where it did not stand before.

    All of it lies within the last `reach` bytes, which alone count. It is the match model of compressors such as lpaq
    (https://mattmahoney.net/dc/#lpaq), or an n-gram head (arXiv 2401.12973) that looks at its latest match.
    """
    if not orders:
        return  # before the bytes are compared for nothing
    before = matches_of_last if last == 1 else matches_of_all
    for order, index in zip(orders, before(ids, orders), strict=True):
        place = torch.arange(ids.shape[1] - index.shape[1], ids.shape[1], device=ids.device)
        known = (index >= order - 1) & (place - index <= reach - order)
        yield torch.where(known, 1 + ids.gather(1, (index + 1).clamp(max=ids.shape[1] - 1)), 0)[:, -last:]


def matches_of_all(ids: Tensor, orders: tuple[int, ...]) -> Iterator[Tensor]:
    """For each of `orders`, where the n-gram that ends at each of ids (b n) last ended before: (b n), or below 0."""
    for hashed in ngram_hashes(ids, orders):
        ordered, index = hashed.sort(dim=1, stable=True)
        before = torch.where(ordered[:, 1:] == ordered[:, :-1], index[:, :-1], -1)
        yield torch.empty_like(index).scatter_(1, index, F.pad(before, (1, 0), value=-1))  # back in time's order


def matches_of_last(ids: Tensor, orders: tuple[int, ...]) -> Iterator[Tensor]:
    """The same of the last of ids alone, (b 1), without a sort: by how many bytes before each place are the same."""
    longest = max(orders, default=1)
    behind = F.pad(ids, (longest - 1, 0), value=-1).unfold(1, longest, 1)  # (b n longest)
    alike = (behind[:, :-1] == behind[:, -1:]).flip(-1).cumprod(dim=-1).sum(dim=-1)
    place = torch.arange(1, ids.shape[1], device=ids.device)
    for order in orders:
        yield F.pad((alike >= order) * place, (1, 0)).amax(dim=1, keepdim=True) - 1
