"""Replacements for operations of PyTorch, for compiled steps: they are faster for a single byte on a CPU."""

import torch
from torch import Tensor

FEW_KEYS = 512  # up to here attention of one query is faster as loops; with 2,048 keys they take twice as long


def is_shared(row: Tensor) -> bool:
    """Whether all threads together compute a product of one row faster than a library, which does so on one."""
    return len(row) == 1 and torch.get_num_threads() > 1


def one_row_product(a: Tensor, b: Tensor) -> Tensor:
    """A product of one row as a sum, which compiles for all threads."""
    return (a.unsqueeze(-1) * b).sum(dim=1) if is_shared(a) else NotImplemented


def one_row_product_with_bias(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The same, with a bias."""
    return bias + one_row_product(a, b) if is_shared(a) else NotImplemented


def one_query_attention(q: Tensor, k: Tensor, v: Tensor, *args, attn_mask: Tensor | None = None, **kwargs) -> tuple:
    """Attention of one query as it is defined, which compiles to loops. The library suits many queries or keys."""
    is_plain = q.shape[-2] == 1 and k.shape[1] == q.shape[1] and not args and not kwargs
    if not is_plain or k.shape[-2] > FEW_KEYS:
        return NotImplemented
    scores = (q * q.shape[-1] ** -0.5 * k).sum(dim=-1)  # (b h j)
    if attn_mask is not None:
        scores = scores + attn_mask[..., 0, :]
    out = (scores.softmax(dim=-1).unsqueeze(-1) * v).sum(dim=-2, keepdim=True)
    return out, scores.logsumexp(dim=-1, keepdim=True)


def sum_of_few_rows(table: Tensor, rows: Tensor, first: Tensor, *args) -> tuple:
    """The sum of as many rows of a table for each byte, as `Tables` reads them, which compiles to a loop."""
    sums = table[rows.unflatten(0, (len(first), -1))].sum(dim=1)
    return sums, first, first, first  # the others are for a gradient


# Operations of PyTorch, and what is faster than them where a step is compiled.
REPLACED = {
    torch.ops.aten.mm.default: one_row_product,
    torch.ops.aten.addmm.default: one_row_product_with_bias,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default: one_query_attention,
    torch.ops.aten._embedding_bag_forward_only.default: sum_of_few_rows,
    torch.ops.aten._embedding_bag.default: sum_of_few_rows,
}
