"""Which row of a table stands for each n-gram of bytes: a hash, so that no vocabulary is needed."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

BITS = (1 << 31) - 1  # hashes stay within 31 bits, so that products with FACTOR fit into 64
FACTOR, MIX = 1_000_003, 0x9E3779B1  # a prime, and 2³² over the golden ratio (Knuth, volume 3, 6.4)


def ngram_rows(ids: Tensor, orders: tuple[int, ...], rows: int) -> Iterator[Tensor]:
    """For each of `orders`, the row below `rows` of the n-gram that ends at each of ids (b n): int64 (b n).

    Bytes before the first are taken as zeros. Row t depends on bytes t - order + 1 … t alone. Distinct n-grams may
    share a row, as in BLT (arXiv 2412.09871).
    """
    hashed = ids.long()
    for order in range(2, max(orders, default=1) + 1):
        byte = F.pad(ids, (order - 1, 0))[:, : ids.shape[1]]
        hashed = (hashed * FACTOR + byte + order) & BITS
        if order in orders:
            mixed = ((hashed ^ hashed >> 15) * MIX) & BITS
            yield (mixed ^ mixed >> 16) % rows
