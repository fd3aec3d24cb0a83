"""What the bytes just seen say of the next one, by lookup: a row of a table for each n-gram, which goes by a hash, so
that there is no vocabulary."""

from collections.abc import Iterator

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
