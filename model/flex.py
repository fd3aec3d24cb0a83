"""Causal windows through flex attention (arXiv 2412.05496), which skips blocks of keys outside the window."""

from functools import lru_cache
from math import ceil

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.attention import flex_attention as flex

BLOCK = 128  # tokens; flex attention's own block size


def blocked_attention(q: Tensor, k: Tensor, v: Tensor, blocks: flex.BlockMask, mask: Tensor | None) -> Tensor:
    """Attention within the blocks of `window_blocks`; shapes are those of `Attend`."""
    hide_masked = None if mask is None else lambda score, b, h, i, j: torch.where(mask[b, j], score, -torch.inf)
    return flex.flex_attention(q, k, v, hide_masked, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1])


# Compiled at its first call. Not behind a cached function, of which Dynamo warns when it compiles a block around it.
compiled_flex_attention = torch.compile(blocked_attention)


@torch.compiler.disable  # Inductor takes a block mask as an input, and fails where it sees one made
@lru_cache(maxsize=32)
@torch.inference_mode(False)  # what generation makes may be used in training next
def window_blocks(n: int, window: int, device: torch.device) -> flex.BlockMask:
    """Which blocks of keys each block of queries can see, for n tokens and a window; cached for later steps.

    Takes n² / 128² small integers. The simple version, `create_block_mask`, builds all n² pairs first.
    """
    row = torch.arange(ceil(n / BLOCK), device=device, dtype=torch.int32)
    first_key = (BLOCK * row - window + 1).clamp(min=0)
    first_block = rearrange(first_key // BLOCK, "i -> 1 1 i")
    blocks = (rearrange(first_block, "1 1 i -> 1 1 i 1") + row).clamp(max=len(row) - 1)
    return flex.BlockMask.from_kv_blocks(
        row - first_block + 1,
        blocks,
        seq_lengths=(n, n),
        mask_mod=lambda b, h, i, j: (j <= i) & (j > i - window),
    )
