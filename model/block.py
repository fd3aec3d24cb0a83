"""One layer of one level: token shift and attention, token shift and feed-forward, pre-norm and residual."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.attend import Attend
from model.cache import Cache, KeyValues, after_past
from model.config import LevelConfig, ModelConfig
from model.rotary import rotate


class TokenShift(nn.Module):
    """The second half of x's channels (b n d) from the token before in the same chain (RWKV, arXiv 2305.13048)."""

    def __init__(self, chains: int):
        super().__init__()
        self.chains = chains

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        here, before = x.chunk(2, dim=-1)
        return torch.cat((here, after_past(before, self.chains, cache, self)[:, : x.shape[1]]), dim=-1)


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions over x (b n d) -> (b n d), where n may be any length.

    A level whose stride is below its compression attends axially: tokens of the same residue modulo c/s form a chain,
    and chains do not see one another.
    """

    def __init__(self, level: LevelConfig, use_flash_attn: bool, qk_norm: bool):
        super().__init__()
        self.heads, self.kv_heads, self.window, self.chains = level.heads, level.kv_heads, level.window, level.chains
        turned = level.heads + level.kv_heads
        self.norm = nn.RMSNorm(level.dim)
        self.to_qkv = nn.Linear(level.dim, (turned + level.kv_heads) * level.dim_head, bias=False)
        self.qk_gain = nn.Parameter(torch.ones(turned, 1, level.dim_head)) if qk_norm else None
        self.attend = Attend(causal=True, use_flash_attn=use_flash_attn, window_size=level.window)
        self.to_out = nn.Linear(level.heads * level.dim_head, level.dim, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, cache: Cache | None = None) -> Tensor:
        qkv = rearrange(self.to_qkv(self.norm(x)), "b n (h d) -> b h n d", h=self.heads + 2 * self.kv_heads)
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        if self.qk_gain is not None:
            qk = (F.rms_norm(qk.float(), qk.shape[-1:]) * self.qk_gain).type_as(qk)
        q, k = rotate(qk, rotary).split((self.heads, self.kv_heads), dim=1)
        if cache is not None and self in cache:
            out = self.attend(q, *cache[self].append(k, v))
        else:
            out = self.attend_chains(q, k, v)
            if cache is not None:
                cache[self] = KeyValues(k, v, self.window, self.chains)
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
    """One layer of one level over x (b n d) -> (b n d); a window of 0 leaves the attention out."""

    def __init__(self, level: LevelConfig, config: ModelConfig):
        super().__init__()
        self.attn = Attention(level, config.use_flash_attn, config.qk_norm) if level.window > 0 else None
        self.ff = FeedForward(level)
        self.shifts = nn.ModuleList(TokenShift(level.chains) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: Tensor, cache: Cache | None = None) -> Tensor:
        if self.attn is not None:
            x = x + self.dropout(self.attn(self.shifts[0](x, cache), rotary, cache))
        return x + self.dropout(self.ff(self.shifts[1](x, cache)))
