"""Multi-head attention of one level: projections, rotary positions, chains, and the ring of keys in generation."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.attend import Attend
from model.config import LevelConfig, ModelConfig
from model.generation.cache import BlockCache
from model.kv_ring import fill_rings, kept_in_order
from model.norm import RMSNorm
from model.rotary import rotate
from model.segments import Step, Units


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions: (b k d) -> (b k d).

    If the level has several chains (see `LevelConfig.chains`), each of them attends to itself alone.
    """

    def __init__(self, level: LevelConfig, config: ModelConfig):
        super().__init__()
        self.heads = level.heads
        self.kv_heads = level.kv_heads
        self.chains = level.chains
        self.window = level.window

        rotated_heads = level.heads + level.kv_heads
        self.norm = RMSNorm(level.dim)
        self.to_qkv = nn.Linear(level.dim, (rotated_heads + level.kv_heads) * level.dim_head, bias=False)
        self.qk_norm_weight = nn.Parameter(torch.ones(rotated_heads, 1, level.dim_head)) if config.qk_norm else None
        self.attend = Attend(causal=True, window_size=level.window, backend=config.attention)
        self.to_out = nn.Linear(level.heads * level.dim_head, level.dim, bias=False)

    def forward(
        self, x: Tensor, cos_sin: Tensor, cache: BlockCache | None = None, units: Units | None = None
    ) -> Tensor:
        # Queries and keys stay in one tensor until both are normed and rotated.
        qkv = rearrange(self.to_qkv(self.norm(x)), "b n (h d) -> b h n d", h=self.heads + 2 * self.kv_heads)
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        if self.qk_norm_weight is not None:
            qk = (F.rms_norm(qk.float(), qk.shape[-1:]) * self.qk_norm_weight).type_as(qk)
        q, k = rotate(qk, cos_sin).split((self.heads, self.kv_heads), dim=1)

        if cache is not None and isinstance(units, Step):
            ring = cache.rings[units.chain]
            keys, values, mask = ring.update(k, v, units)
            out = self.attend(q, keys, values, mask)
        else:
            out = self.attend_several(q, k, v, cache, units)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))

    def attend_several(self, q: Tensor, k: Tensor, v: Tensor, cache: BlockCache | None, units: Units | None) -> Tensor:
        """Attention of a text's tokens, or of those after the tokens in a cache: q, k, v (b h n d) -> (b h n d)."""
        if cache is None or units is None:
            return self.attend_within_chains(q, k, v)

        if not cache.rings:
            cache.rings = fill_rings(k, v, 0, self.window, self.chains, units)
            return self.attend_within_chains(q, k, v)

        # What is kept comes first. Queries are padded to as many, and their outputs are dropped.
        kept, exists = kept_in_order(cache.rings, units)
        count, n = kept.shape[-2], k.shape[-2]
        k, v = torch.cat((kept, torch.stack((k, v), dim=1)), dim=-2).unbind(dim=1)
        mask = None if exists is None else F.pad(exists, (0, n), value=True)
        cache.rings = fill_rings(k, v, count, self.window, self.chains, units)
        return self.attend_within_chains(F.pad(q, (0, 0, count, 0)), k, v, mask)[..., count:, :]

    def attend_within_chains(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention in each chain: q, k, v (b h n d), and mask (b n), with a single chain alone -> (b h n d)."""
        if self.chains == 1:
            return self.attend(q, k, v, mask)
        n = q.shape[-2]
        # Padding comes last, so causal attention never sees it.
        padded = (F.pad(t, (0, 0, 0, -n % self.chains)) for t in (q, k, v))
        q, k, v = (rearrange(t, "b h (n chain) d -> (b chain) h n d", chain=self.chains) for t in padded)
        out = self.attend(q, k, v)
        return rearrange(out, "(b chain) h n d -> b h (n chain) d", chain=self.chains)[:, :, :n]
