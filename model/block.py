"""One layer of one level: token shift and attention, token shift and feed-forward, pre-norm and residual."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.attend import Attend
from model.cache import BlockCache, KeyValues
from model.config import LevelConfig, ModelConfig
from model.rotary import rotate


def token_shift(x: Tensor, chains: int = 1, tail: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Take the second half of the channels from the token before in the same chain (RWKV, arXiv 2305.13048).

    Returns x (b n d) shifted, and the tail (b chains d/2) that the tokens to come will take theirs from. Without the
    tail of earlier tokens, the first ones take zeros.
    """
    here, before = x.chunk(2, dim=-1)
    if tail is None:
        tail = before.new_zeros(len(x), chains, before.shape[-1])
    before = torch.cat((tail, before), dim=1)
    n = x.shape[1]
    return torch.cat((here, before[:, :n]), dim=-1), before[:, n:]


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions over x (b n d) -> (b n d), where n may be any length.

    A level whose stride is below its compression attends axially: tokens of the same residue modulo c/s form a chain,
    and chains do not see one another.
    """

    def __init__(self, level: LevelConfig, use_flash_attn: bool, qk_norm: bool):
        super().__init__()
        inner = level.heads * level.dim_head
        self.heads = (level.heads, level.kv_heads, level.kv_heads)
        self.chains = level.chains
        self.norm = nn.RMSNorm(level.dim)
        self.to_qkv = nn.Linear(level.dim, sum(self.heads) * level.dim_head, bias=False)
        self.norm_q, self.norm_k = (nn.RMSNorm(level.dim_head) if qk_norm else None for _ in range(2))
        self.attend = Attend(causal=True, use_flash_attn=use_flash_attn, window_size=level.window)
        self.to_out = nn.Linear(inner, level.dim, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: KeyValues | None = None) -> Tensor:
        qkv = rearrange(self.to_qkv(self.norm(x)), "b n (h d) -> b h n d", h=sum(self.heads))
        q, k, v = qkv.split(self.heads, dim=1)
        if self.norm_q is not None:
            q, k = (norm(t.to(norm.weight)).type_as(t) for norm, t in ((self.norm_q, q), (self.norm_k, k)))
        q_table, k_table = rotary
        q, k = rotate(q, q_table), rotate(k, k_table)
        if cache is not None and cache.count:
            out = self.attend(q, *cache.append(k, v))
        else:
            if cache is not None:
                cache.fill(k, v)
            out = self.attend_chains(q, k, v)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))

    def attend_chains(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention within each chain: q, k, v (b h n d) -> (b h n d)."""
        if self.chains == 1:
            return self.attend(q, k, v)
        n = q.shape[-2]
        padded = (F.pad(t, (0, 0, 0, -n % self.chains)) for t in (q, k, v))
        q, k, v = (rearrange(t, "b h (n chain) d -> (b chain) h n d", chain=self.chains) for t in padded)
        out = rearrange(self.attend(q, k, v), "(b chain) h n d -> b h (n chain) d", chain=self.chains)
        return out[:, :, :n]


class FeedForward(nn.Module):
    """Two linear maps with a GELU between: x (b n d) -> (b n d)."""

    def __init__(self, level: LevelConfig):
        super().__init__()
        inner = int(level.dim * level.ff_mult)
        self.norm = nn.RMSNorm(level.dim)
        self.to_hidden = nn.Linear(level.dim, inner, bias=False)
        self.to_out = nn.Linear(inner, level.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(F.gelu(self.to_hidden(self.norm(x))))


class Block(nn.Module):
    """One layer of one level over x (b n d) -> (b n d)."""

    def __init__(self, level: LevelConfig, config: ModelConfig):
        super().__init__()
        self.chains = level.chains
        self.attn = Attention(level, config.use_flash_attn, config.qk_norm) if level.window > 0 else None
        self.ff = FeedForward(level)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: BlockCache | None = None) -> Tensor:
        before = cache or BlockCache(keys=None)
        if self.attn is not None:
            shifted, before.before_attn = token_shift(x, self.chains, before.before_attn)
            x = x + self.dropout(self.attn(shifted, rotary, before.keys))
        shifted, before.before_ff = token_shift(x, self.chains, before.before_ff)
        return x + self.dropout(self.ff(shifted))
