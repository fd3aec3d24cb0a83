"""Scaled dot-product attention: which keys a query sees, and which kernel computes it."""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import Tensor, nn


class Attend(nn.Module):
    """softmax(q kᵀ / √d) v over the keys that each query may see (arXiv 1706.03762), or zeros where it sees none.

    Args:
        causal: a query sees its own key and those before it; fewer queries than keys are the last of the sequence.
        use_flash_attn: PyTorch's fused kernels, where they are faster than the plain path that they are tested against.
        window_size: with `causal`, see only this many keys, one's own included; less than 1 is a ValueError.
    Shapes:
        q: (b h i d), k and v: (b h j d), or with fewer heads, each shared by as many neighbours of q.
        mask: (b j) bool, True where a key may be seen. Returns (b h i d).
    """

    def __init__(self, causal: bool = False, use_flash_attn: bool = False, window_size: int | None = None):
        super().__init__()
        if window_size is not None and (window_size < 1 or not causal):
            raise ValueError(f"window_size: got {window_size} with causal={causal}, allowed: 1 or more, causal only")
        self.causal, self.use_flash_attn, self.window_size = causal, use_flash_attn, window_size

    def kernel(self, queries: int, keys: int, dim_head: int, device: str, dtype: torch.dtype) -> str:
        """What computes so many queries over so many keys: plain, sdpa, flex or block-local (benchmarks/LOG.md)."""
        if not self.use_flash_attn:
            return "plain"
        if self.window_size is not None and self.window_size < keys == queries:
            return "flex" if device == "cuda" and dim_head >= 16 else "block-local"  # flex's least width
        slow = queries == 1 if device == "cuda" else device == "cpu" and dtype.itemsize == 2 and 1 < queries <= 512
        return "plain" if slow else "sdpa"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        queries, keys = q.shape[-2], k.shape[-2]
        past, window = keys - queries, min(self.window_size or keys, keys)
        kernel = self.kernel(queries, keys, q.shape[-1], q.device.type, q.dtype)
        if kernel == "flex":
            from model.flex import compiled, flex_attention, window_blocks  # takes a second

            return compiled(flex_attention)(q, k, v, window_blocks(keys, window, q.device), mask)
        if kernel == "block-local":
            return block_local_attention(q, k, v, window, mask)
        if kernel == "sdpa" and self.causal and 1 < queries == keys and mask is None:
            return sdpa(q, k, v, is_causal=True)
        visible = None if mask is None else rearrange(mask, "b j -> b 1 1 j")
        if self.causal and (queries > 1 or window < keys):  # a single query, the last, sees every key
            seen = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(past).triu(past - window + 1)
            visible = seen if visible is None else visible & seen
        attention = plain_attention if kernel == "plain" else sdpa
        return attention(q, k, v) if visible is None else masked(attention, q, k, v, visible)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
    """Attention as it is written on paper. PyTorch's softmax sums in float32 at least."""
    k, v = (t if t.shape[1] == q.shape[1] else t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    scores = einsum(q * q.shape[-1] ** -0.5, k, "b h i d, b h j d -> b h i j")
    if visible is not None:  # added, as the gradient of a sum is free
        scores = scores + torch.zeros_like(visible, dtype=scores.dtype).masked_fill_(~visible, -torch.inf)
    return einsum(scores.softmax(dim=-1), v, "b h i j, b h j d -> b h i d")


def sdpa(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """PyTorch's kernels, whichever of them fits."""
    return F.scaled_dot_product_attention(q, k, v, visible, 0.0, is_causal, enable_gqa=q.shape[1] != k.shape[1])


def masked(attention, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Attention with zeros for the rows that see nothing, for which a softmax is not defined."""
    blind = ~visible.any(dim=-1, keepdim=True)
    return attention(q, k, v, visible | blind).masked_fill(blind, 0.0)


def block_local_attention(q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None) -> Tensor:
    """Causal attention over exactly `window` keys in time and memory that grow with n · window, never n²: a block of
    queries sees its own keys and the `window` before them, masked to the exact window. Blocks stand in the batch axis
    and everything else in the heads, so that one mask per block serves all of them."""
    batch, heads, n, _ = q.shape
    block = max(window, 64)  # smaller ones leave SDPA too little to do
    padding = -n % block
    q, k, v = (rearrange(F.pad(t, (0, 0, 0, padding)), "b h (m i) d -> m (b h) i d", i=block) for t in (q, k, v))
    k, v = (torch.cat((F.pad(t[:-1, :, -window:], (0, 0, 0, 0, 0, 0, 1, 0)), t), dim=-2) for t in (k, v))
    visible = torch.ones(block, window + block, dtype=torch.bool, device=q.device).tril(window).triu(1)
    visible = repeat(visible, "i j -> m 1 i j", m=len(q)).clone()
    visible[0, ..., :window] = False  # nothing but padding comes before the first block
    attention = sdpa if q.dtype.itemsize > 2 else plain_attention  # faster in bfloat16 (benchmarks/LOG.md)
    if mask is None:
        out = attention(q, k, v, visible)  # every query sees itself, so that no row is blind
    else:
        mask = repeat(F.pad(mask, (window, padding)).unfold(-1, window + block, block), "b m j -> m (b h) 1 j", h=heads)
        out = masked(attention, q, k, v, visible & mask)
    return rearrange(out, "m (b h) i d -> b h (m i) d", b=batch)[..., :n, :]
