"""One layer of one level: token shift and attention, token shift and feed-forward."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attention
from model.config import LevelConfig, ModelConfig
from model.generation.cache import BlockCache, prepend_history
from model.norm import RMSNorm
from model.segments import Units


class Block(nn.Module):
    """x + attention(shift(x)), then x + feed_forward(shift(x)), both pre-norm: (b k d) -> (b k d).

    Args:
        attends: whether it has attention, or the feed-forward alone.
    """

    def __init__(self, level: LevelConfig, config: ModelConfig, attends: bool):
        super().__init__()
        self.chains = level.chains
        self.attn = Attention(level, config) if attends else None
        self.ff = FeedForward(level.dim, max(1, int(level.dim * level.ff_mult)))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, cos_sin: Tensor | None, cache: BlockCache | None = None, units: Units | None = None
    ) -> Tensor:
        """`cos_sin` is the rotary table of the tokens x, which attention needs; a cache needs their units."""
        if self.attn is not None:
            assert cos_sin is not None
            shifted = self.shift(x, cache, units, "attention_shift")
            x = x + self.dropout(self.attn(shifted, cos_sin, cache, units))

        shifted = self.shift(x, cache, units, "feedforward_shift")
        return x + self.dropout(self.ff(shifted))

    def shift(self, x: Tensor, cache: BlockCache | None, units: Units | None, name: str) -> Tensor:
        """Token shift after the tokens in the cache, if there is one, where it keeps the last ones under this name."""
        if cache is None:
            return token_shift(x, self.chains)[0]
        assert units is not None
        kept = getattr(cache, name)
        shifted, halves = token_shift(x, self.chains, None if kept is None else units.take(kept))
        setattr(cache, name, units.put(kept, units.last(halves, self.chains)))
        return shifted


class FeedForward(nn.Module):
    """linear(GELU(linear(RMSNorm(x)))): (b k d) -> (b k d)."""

    def __init__(self, dim: int, dim_hidden: int):
        super().__init__()
        self.norm = RMSNorm(dim)
        self.to_hidden = nn.Linear(dim, dim_hidden, bias=False)
        self.to_out = nn.Linear(dim_hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.to_hidden(self.norm(x))
        return self.to_out(F.gelu(hidden))


def token_shift(x: Tensor, chains: int, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Take half of each token's channels from the token before it in the same chain (RWKV, arXiv 2305.13048).

    Args:
        x: (b n d).
        past: the second halves of the `chains` tokens before x, (b chains d/2); None before the first token.

    Returns the shifted tokens (b n d), and all second halves, those of the past first (b chains+n d/2).
    """
    own, shifted = x.chunk(2, dim=-1)
    halves = prepend_history(shifted, chains, past)
    return torch.cat((own, halves[:, : x.shape[1]]), dim=-1), halves
