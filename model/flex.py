"""Windows through flex attention (arXiv 2412.05496), which skips the blocks of keys that a window does not reach."""

from collections.abc import Callable
from functools import cache, lru_cache
from math import ceil

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.attention import flex_attention as flex

compiled: Callable[[Callable], Callable] = cache(torch.compile)  # once for each function


def flex_attention(q: Tensor, k: Tensor, v: Tensor, blocks: flex.BlockMask, mask: Tensor | None) -> Tensor:
    """Attention within the blocks of `window_blocks`; shapes are those of `Attend`."""
    hide = None if mask is None else lambda score, b, h, i, j: torch.where(mask[b, j], score, -torch.inf)
    return flex.flex_attention(q, k, v, hide, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1])


@torch.compiler.disable  # inductor takes a block mask as an input, and stumbles where it sees it made
@lru_cache(maxsize=32)
def window_blocks(n: int, window: int, device: torch.device) -> flex.BlockMask:
    """Which blocks of keys each block of n queries reaches, kept for the steps to come; n² / 128² small integers."""
    row = torch.arange(ceil(n / 128), device=device, dtype=torch.int32)  # 128: flex attention's own size of a block
    low = rearrange((128 * row - window + 1).clamp(min=0) // 128, "i -> 1 1 i")
    keys = (rearrange(low, "1 1 i -> 1 1 i 1") + row).clamp(max=len(row) - 1)
    return flex.BlockMask.from_kv_blocks(
        row - low + 1, keys, seq_lengths=(n, n), mask_mod=lambda b, h, i, j: (j <= i) & (j > i - window)
    )
