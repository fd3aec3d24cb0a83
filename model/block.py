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
            past = None if cache is None else cache.attention_shift
            shifted, last = token_shift(x, self.chains, past, units)
            if cache is not None:
                cache.attention_shift = last
            x = x + self.dropout(self.attn(shifted, cos_sin, cache, units))

        past = None if cache is None else cache.feedforward_shift
        shifted, last = token_shift(x, self.chains, past, units)
        if cache is not None:
            cache.feedforward_shift = last
        return x + self.dropout(self.ff(shifted))


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


def token_shift(
    x: Tensor, chains: int, past: Tensor | None = None, units: Units | None = None
) -> tuple[Tensor, Tensor]:
    """Take half of each token's channels from the token before it in the same chain (RWKV, arXiv 2305.13048).

    Args:
        x: (b n d).
        past: the second halves of the `chains` tokens before x, (b chains d/2); None before the first token.
        units: those of x, if not every row has a token for each of them.

    Returns the shifted tokens (b n d), and the past of the next call.
    """
    own, shifted = x.chunk(2, dim=-1)
    before = past if past is None or units is None else units.take(past)
    halves = prepend_history(shifted, chains, before)
    last = halves[:, halves.shape[1] - chains :] if units is None else units.put(past, units.last(halves, chains))
    return torch.cat((own, halves[:, : x.shape[1]]), dim=-1), last
