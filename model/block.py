"""One layer of one level: token shift and attention, token shift and feed-forward, pre-norm and residual."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.attend import Attend
from model.config import LevelConfig
from model.rotary import rotate


def token_shift(x: Tensor) -> Tensor:
    """Take the second half of the channels from the token before: (b n d) -> (b n d) (RWKV, arXiv 2305.13048)."""
    here, before = x.chunk(2, dim=-1)
    return torch.cat((here, F.pad(before, (0, 0, 1, -1))), dim=-1)


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions over x (b n d) -> (b n d)."""

    def __init__(self, level: LevelConfig, use_flash_attn: bool):
        super().__init__()
        inner = level.heads * level.dim_head
        self.heads = level.heads
        self.norm = nn.RMSNorm(level.dim)
        self.to_qkv = nn.Linear(level.dim, 3 * inner, bias=False)
        self.attend = Attend(causal=True, use_flash_attn=use_flash_attn, window_size=level.window)
        self.to_out = nn.Linear(inner, level.dim, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        qkv = self.to_qkv(self.norm(x))
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        q_table, k_table = rotary
        out = self.attend(rotate(q, q_table), rotate(k, k_table), v)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


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
    """One layer of one level over x (b n d) -> (b n d), where n may be any length.

    A level whose stride is below its compression attends axially: tokens of the same residue modulo c/s form a chain,
    and chains do not see one another.
    """

    def __init__(self, level: LevelConfig, use_flash_attn: bool = True, dropout: float = 0.0):
        super().__init__()
        self.chains = level.chains
        self.attn = Attention(level, use_flash_attn) if level.window > 0 else None
        self.ff = FeedForward(level)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        n = x.shape[1]
        if self.chains > 1:
            x = F.pad(x, (0, 0, 0, -n % self.chains))
            x = rearrange(x, "b (n chain) d -> (b chain) n d", chain=self.chains)
        if self.attn is not None:
            x = x + self.dropout(self.attn(token_shift(x), rotary))
        x = x + self.dropout(self.ff(token_shift(x)))
        if self.chains > 1:
            x = rearrange(x, "(b chain) n d -> b (n chain) d", chain=self.chains)[:, :n]
        return x
