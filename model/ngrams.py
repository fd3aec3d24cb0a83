"""Hashes of the n-grams that end at each byte: rows of hash tables, without a vocabulary."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

HASH_MASK = (1 << 31) - 1  # keeps 31 bits, so that a product with MIX fits into 64
FACTOR = 1_000_003  # a prime
MIX = 0x9E3779B1  # 2³² over the golden ratio (Knuth, The Art of Computer Programming, volume 3, 6.4)


def ngram_hashes(ids: Tensor, orders: tuple[int, ...]) -> Iterator[Tensor]:
    """For each of `orders`, a hash of the n-gram that ends at each of ids (b n): int64 (b n).

    Orders are sorted, the first at least 2. Bytes before the first count as zeros. Hash t depends on the bytes
    t - order + 1 … t alone. It wraps around at 64 bits: n-grams up to three bytes never collide, and longer ones hardly
    ever within a text.
    """
    hashed = ids.long()
    longest = max(orders, default=1)
    with_zeros = F.pad(hashed, (longest - 1, 0))
    for order in range(2, longest + 1):
        first = longest - order
        earlier = with_zeros[:, first : first + ids.shape[1]]  # the byte order - 1 places before each
        hashed = hashed * FACTOR + earlier + order
        if order in orders:
            yield hashed


def ngram_buckets(ids: Tensor, orders: tuple[int, ...], buckets: int, last: int) -> Tensor:
    """For each of `orders`, the table row of the n-gram that ends at each of the last bytes: int64 (b last orders).

    Distinct n-grams may share a row, as in BLT (arXiv 2412.09871).

    Args:
        ids: bytes (b n).
        buckets: rows of a table.
        last: how many bytes, from the end, get a row.
    """
    if not orders:
        return ids.new_zeros(len(ids), last, 0)
    recent = ids[:, -last - max(orders) :]
    hashed = torch.stack([each[:, -last:] for each in ngram_hashes(recent, orders)], dim=-1)
    # Mix the bits twice, since neighbouring hashes differ in few of them.
    hashed = hashed & HASH_MASK
    mixed = ((hashed ^ hashed >> 15) * MIX) & HASH_MASK
    mixed = mixed ^ mixed >> 16
    return mixed % buckets
