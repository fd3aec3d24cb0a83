"""Scaled dot-product attention, and the backends that can compute it.

Every backend has one signature and computes the same function; `plain` is the definition. A new one is a function and a
line in `BACKENDS` (CONTRIBUTING.md).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import Tensor, nn

from utils.errors import Mistake, UserError

# backend(q, k, v, causal, window, mask) -> out, with the shapes of `Attend`: q (b h i d), k, v (b h j d), mask (b j).
# It must handle fewer heads in k and v, fewer queries than keys (the queries are the last), and queries that see no key
# (zeros). If it cannot handle other shapes than causal ones with as many queries as keys, it belongs in `BLOCKWISE`.
Backend = Callable[[Tensor, Tensor, Tensor, bool, int | None, Tensor | None], Tensor]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, mask: Tensor | None) -> Tensor:
    """Attention as it is defined: all scores, a mask, a softmax (arXiv 1706.03762)."""
    return masked_attention(softmax_attention, q, k, v, causal, window, mask)


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, mask: Tensor | None) -> Tensor:
    """PyTorch's fused kernels, whichever of them fits."""
    queries, keys = q.shape[-2], k.shape[-2]
    no_window = window is None or window >= keys
    if causal and no_window and mask is None and 1 < queries == keys:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return masked_attention(fused_attention, q, k, v, causal, window, mask)


def block_local_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, mask: Tensor | None
) -> Tensor:
    """Causal attention over a window, in time and memory that grow with n · window instead of n².

    The simple version is `plain_attention` with a window of w keys. Here the sequence is cut into blocks of at least w
    queries, so the w keys before a block all belong to the block before it. A block attends to those and its own keys,
    and one mask makes the window exact within them. Shapes become (block, batch · heads, tokens, d), so that one mask
    for each block serves all of its heads.

    Always causal, with as many queries as keys; `Attend` sees to that.
    """
    batch, heads, n, _ = q.shape
    window = n if window is None else min(window, n)
    block = max(window, 64)  # smaller blocks leave the kernel too little work
    padding = -n % block

    # Cut into m blocks, and put the `window` keys before a block in front of its own.
    q, k, v = (rearrange(F.pad(t, (0, 0, 0, padding)), "b h (m i) d -> m (b h) i d", i=block) for t in (q, k, v))
    k, v = (torch.cat((last_of_previous_block(t, window), t), dim=-2) for t in (k, v))

    # Query i of a block is key window + i of its keys, and sees the `window` keys up to itself.
    visible = torch.ones(block, window + block, dtype=torch.bool, device=q.device).tril(window).triu(1)
    visible = repeat(visible, "i j -> m 1 i j", m=len(q)).clone()
    visible[0, ..., :window] = False  # the first block has only padding before it

    attention = fused_attention if q.dtype.itemsize > 2 else softmax_attention  # measured; see benchmarks/LOG.md
    if mask is None:
        out = attention(q, k, v, visible)  # every query sees itself, so no row is fully masked
    else:
        mask = F.pad(mask, (window, padding)).unfold(-1, window + block, block)
        mask = repeat(mask, "b m j -> m (b h) 1 j", h=heads)
        out = zero_fully_masked_rows(attention, q, k, v, visible & mask)
    return rearrange(out, "m (b h) i d -> b h (m i) d", b=batch)[..., :n, :]


def last_of_previous_block(t: Tensor, count: int) -> Tensor:
    """For each block of t (m h i d), the last `count` tokens of the block before it, zeros for the first block."""
    return F.pad(t[:-1, :, -count:], (0, 0, 0, 0, 0, 0, 1, 0))


def flex_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, mask: Tensor | None) -> Tensor:
    """Flex attention (arXiv 2412.05496), compiled: it skips blocks of keys that no query of a block can see.

    Always causal, with as many queries as keys; `Attend` sees to that.
    """
    from model.flex import compiled_flex_attention, window_blocks  # the import takes a second

    n = k.shape[-2]
    blocks = window_blocks(n, n if window is None else min(window, n), q.device)
    return compiled_flex_attention(q, k, v, blocks, mask)


BACKENDS: dict[str, Backend] = {
    "plain": plain_attention,
    "sdpa": sdpa_attention,
    "block_local": block_local_attention,
    "flex": flex_attention,
}
# These cut the sequence into blocks: causal attention alone, with as many queries as keys. SDPA computes the rest.
BLOCKWISE = ("block_local", "flex")


class Attend(nn.Module):
    """softmax(q kᵀ / √d) v over the keys that each query may see, or zeros for a query that sees none.

    Args:
        causal: a query sees its own key and those before it; fewer queries than keys are the last of the sequence.
        use_flash_attn: a shorter `backend="auto"`, otherwise "plain"; users of the reference know it by this name.
        window_size: with `causal`, see only this many keys, its own included.
        backend: one of `BACKENDS`, or "auto" for the fastest one of each shape and device; overrides `use_flash_attn`.

    Shapes:
        q (b h i d), k and v (b h j d), or with fewer heads, each shared by neighbouring heads of q.
        mask (b j) bool, True where a key may be seen. Returns (b h i d).

    Raises:
        UserError: a window below 1 or without `causal`, or an unknown backend.
    """

    def __init__(
        self,
        causal: bool = False,
        use_flash_attn: bool = False,
        window_size: int | None = None,
        backend: str | None = None,
    ):
        super().__init__()
        if window_size is not None and not causal:
            raise UserError("window_size needs causal=True")
        if window_size is not None and window_size < 1:
            raise UserError(Mistake("window_size", window_size, "1 or above"))
        if backend not in (None, "auto", *BACKENDS):
            raise UserError(Mistake("backend", backend, ", ".join(["auto", *BACKENDS])))
        self.causal = causal
        self.window_size = window_size
        self.backend = backend or ("auto" if use_flash_attn else "plain")

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        name = self.backend_for(q.shape[-2], k.shape[-2], q.shape[-1], q.device.type, q.dtype)
        return BACKENDS[name](q, k, v, self.causal, self.window_size, mask)

    def backend_for(self, queries: int, keys: int, dim_head: int, device: str, dtype: torch.dtype) -> str:
        """Name of the backend that computes attention of this shape.

        A forced blockwise backend leaves other shapes, such as a single query in generation, to SDPA, and a model that
        was trained with flex attention runs without a GPU. The choices of "auto" were measured (benchmarks/LOG.md).
        """
        one_query_per_key = self.causal and 1 < queries == keys
        if self.backend in BLOCKWISE and not one_query_per_key:
            return "sdpa"
        if self.backend == "flex" and device != "cuda":
            return "block_local"
        if self.backend != "auto":
            return self.backend

        if one_query_per_key and self.window_size is not None and self.window_size < keys:
            return "flex" if device == "cuda" and dim_head >= 16 else "block_local"  # flex needs 16 channels
        if device == "cuda" and queries == 1:
            return "plain"  # a fused kernel for one query starts more slowly
        if device == "cpu" and dtype.itemsize == 2 and 1 < queries <= 512:
            return "plain"  # the CPU's fused kernel is slow in 16 bits
        return "sdpa"


# -- parts that backends share


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
    """All scores at once. PyTorch's softmax sums in float32 at least."""
    shared_by = q.shape[1] // k.shape[1]
    if shared_by > 1:
        k, v = (t.repeat_interleave(shared_by, dim=1) for t in (k, v))
    scores = einsum(q * q.shape[-1] ** -0.5, k, "b h i d, b h j d -> b h i j")
    if visible is not None:
        bias = torch.zeros_like(visible, dtype=scores.dtype).masked_fill_(~visible, -torch.inf)
        scores = scores + bias  # rather than masked_fill, because a sum costs nothing in the backward pass
    return einsum(scores.softmax(dim=-1), v, "b h i j, b h j d -> b h i d")


def fused_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
    """PyTorch's fused kernel with an explicit mask."""
    return F.scaled_dot_product_attention(q, k, v, visible, enable_gqa=q.shape[1] != k.shape[1])


def masked_attention(
    attention: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    window: int | None,
    mask: Tensor | None,
) -> Tensor:
    """Attention under one mask (… i j) of what is visible: causal, window and key mask together."""
    queries, keys = q.shape[-2], k.shape[-2]
    visible = None if mask is None else rearrange(mask, "b j -> b 1 1 j")
    if causal and (queries > 1 or (window is not None and window < keys)):  # a single query, the last, sees every key
        in_reach = causal_window(queries, keys, window, q.device)
        visible = in_reach if visible is None else visible & in_reach

    if visible is None:
        return attention(q, k, v)
    if mask is None and queries <= keys:
        return attention(q, k, v, visible)  # every query sees its own key
    return zero_fully_masked_rows(attention, q, k, v, visible)


def causal_window(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Which of the last `window` keys up to its own each query sees: (i j) bool. The last query has the last key."""
    own = keys - queries  # key of the first query
    visible = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(own)
    return visible if window is None else visible.triu(own - window + 1)


def zero_fully_masked_rows(
    attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, visible: Tensor
) -> Tensor:
    """Attention with zeros for queries that see no key, for which a softmax is not defined."""
    fully_masked = ~visible.any(dim=-1, keepdim=True)
    return attention(q, k, v, visible | fully_masked).masked_fill(fully_masked, 0.0)
