"""Scaled dot-product attention: which keys a query sees, and which kernel computes it."""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# Every fused kernel first; MATH alone takes what the others refuse.
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
BLOCK = 64  # a window's queries go through the kernel in blocks of at least this many


class Attend(nn.Module):
    """softmax(q kᵀ / √d) v over the keys that each query may see (arXiv 1706.03762).

    Args:
        causal: a query sees its own key and those before it. With fewer queries than keys, the queries are the last
            ones of the sequence (as when decoding with a cache).
        use_flash_attn: PyTorch's fused kernels instead of the plain path that they are tested against.
        window_size: with `causal`, see only this many keys, one's own included.

    Shapes:
        q: (b h i d), k and v: (b h j d), or with fewer heads, each shared by as many neighbours of q.
        mask: (b j) bool, True where a key may be seen. Returns (b h i d).
        A query that sees no key at all gets zeros, and gives no gradient.

    Raises:
        ValueError: on a window without `causal`, or one below 1.
    """

    def __init__(self, causal: bool = False, use_flash_attn: bool = False, window_size: int | None = None):
        super().__init__()
        if window_size is not None and (window_size < 1 or not causal):
            raise ValueError(f"window_size: got {window_size} with causal={causal}, allowed: 1 or more, causal only")
        self.causal = causal
        self.use_flash_attn = use_flash_attn
        self.window_size = window_size

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        queries, keys = q.shape[-2], k.shape[-2]
        window = self.window_size if self.window_size is not None and self.window_size < keys else None

        if not self.use_flash_attn:
            return plain_attention(q, k, v, visible_keys(queries, keys, q.device, self.causal, window, mask))
        if window is not None and queries == keys:
            return windowed_attention(q, k, v, window, mask)
        if mask is None and window is None and self.causal and queries == keys:
            with sdpa_kernel(FUSED):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        causal = self.causal and queries > 1  # a single query is the last of all: it sees every key
        if causal or mask is not None or window is not None:
            mask = visible_keys(queries, keys, q.device, causal, window, mask)
        return fused_attention(q, k, v, mask)


def visible_keys(
    queries: int, keys: int, device, causal: bool = True, window: int | None = None, mask: Tensor | None = None
) -> Tensor | None:
    """Which of the keys each of the last `queries` positions may see: bool, broadcastable to (b 1 i j); None = all."""
    visible = None if mask is None else rearrange(mask, "b j -> b 1 1 j")
    if causal or window is not None:
        query = rearrange(torch.arange(keys - queries, keys, device=device), "i -> i 1")
        key = torch.arange(keys, device=device)
        seen = key <= query
        if window is not None:
            seen = seen & (key > query - window)
        visible = seen if visible is None else visible & seen
    return visible


def plain_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Attention as it is written on paper, softmax in at least float32."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    scores = einsum(q, k, "b h i d, b h j d -> b h i j") * q.shape[-1] ** -0.5
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if visible is not None:
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)
    if visible is not None:
        weights = weights.masked_fill(~visible, 0.0)  # a row that sees nothing would be uniform
    return einsum(weights.to(v.dtype), v, "b h i j, b h j d -> b h i d")


def fused_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """`plain_attention` through PyTorch's kernels, which leave rows that see nothing undefined."""
    gqa = q.shape[1] != k.shape[1]
    if visible is None:
        with sdpa_kernel(FUSED):
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=gqa)
    blind = ~visible.any(dim=-1, keepdim=True)
    with sdpa_kernel(FUSED):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible | blind, enable_gqa=gqa)
    return out.masked_fill(blind, 0.0)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None) -> Tensor:
    """Causal attention over exactly `window` keys in time and memory that grow with n · window, never n².

    The queries of a block see the keys of their own block and the `window` keys before it, masked to the exact window.
    Blocks stand in the batch axis and everything else in the heads, so that one mask per block serves all of them.
    """
    batch, n, device = q.shape[0], q.shape[-2], q.device
    block = max(window, BLOCK)
    padding = -n % block
    q = rearrange(F.pad(q, (0, 0, 0, padding)), "b h (m i) d -> m (b h) i d", i=block)
    k, v = (F.pad(t, (0, 0, window, padding)).unfold(-2, window + block, block) for t in (k, v))
    k, v = (rearrange(t, "b h m d j -> m (b h) j d") for t in (k, v))

    # A key's index counts from `window` before its block. Block 0 has nothing there but padding.
    first = torch.arange(len(q), device=device).mul(block)
    exists = rearrange(first, "m -> m 1 1 1") + torch.arange(window + block, device=device) >= window
    query = rearrange(torch.arange(window, window + block, device=device), "i -> i 1")
    key = torch.arange(window + block, device=device)
    visible = exists & (key <= query) & (key > query - window)
    if mask is None:
        # every query sees itself, so that no row is blind
        with sdpa_kernel(FUSED):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=q.shape[1] != k.shape[1])
    else:
        heads = q.shape[1] // batch
        mask = F.pad(mask, (window, padding)).unfold(-1, window + block, block)
        visible = visible & mask.repeat_interleave(heads, dim=0).transpose(0, 1).unsqueeze(-2)
        out = fused_attention(q, k, v, visible)
    return rearrange(out, "m (b h) i d -> b h (m i) d", b=batch)[..., :n, :]
