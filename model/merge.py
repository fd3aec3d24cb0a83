"""How levels exchange what they know: all of them together are added to the levels that are merged into."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import LevelConfig
from model.generation.cache import MergeCache
from model.segments import align, coarser


class Merge(nn.Module):
    """Adds to each target level a function of all levels: tokens by level (b k d) -> the same.

    The simple version brings every level to the units of the finest target, called `common`:

        x = torch.cat([align(tokens[i], segments[i], common, n) for i in levels], dim=-1)   # (b k d), d = sum of widths
        updates = to_out(silu(to_hidden(norm(x)))).split(target_dims, dim=-1)               # an RMSNorm of all levels
        for i, update in zip(targets, updates):
            tokens[i] = tokens[i] + align(update, common, segments[i], n)

    There a coarse level's tokens are repeated, and the first product computes the same numbers for each repetition. But
    linear maps and sums of squares can be split by level:

        to_hidden(norm(x)) = bias + scale · Σ_i W_i (g_i · x_i),   scale = 1 / sqrt(Σ_i |x_i|² / d + eps)

    where W_i and g_i are the columns of `to_hidden` and the weights of `norm` that belong to level i. So each level is
    projected at its own rate, and only the results are repeated and added. (A level finer than `common` is brought to
    it first, which drops tokens.)
    """

    def __init__(self, levels: tuple[LevelConfig, ...], targets: tuple[int, ...]):
        super().__init__()
        self.segments = [level.segments for level in levels]
        self.dims = [level.dim for level in levels]
        self.targets = targets
        self.target_dims = [self.dims[i] for i in targets]
        self.common = min((self.segments[i] for i in targets), key=lambda segments: segments.stride)

        dim_in = sum(self.dims)
        dim_out = sum(self.target_dims)
        self.eps = torch.finfo(torch.float32).eps
        self.norm = nn.RMSNorm(dim_in, eps=self.eps)
        self.to_hidden = nn.Linear(dim_in, 2 * dim_out)
        self.to_out = nn.Linear(2 * dim_out, dim_out)

    def forward(self, tokens: dict[int, Tensor], n: int, cache: MergeCache | None = None) -> dict[int, Tensor]:
        """Merge over n bytes. In generation, `tokens` holds the levels that run at this byte, the cache the others."""
        # Each level's part of the first product and of the norm, at its own rate or the common one if that is coarser.
        norm_weights = self.norm.weight.split(self.dims)
        weights = self.to_hidden.weight.split(self.dims, dim=1)
        hidden = self.to_hidden.weight.new_zeros(())
        sum_of_squares = self.to_hidden.weight.new_zeros(())
        for i, segments in enumerate(self.segments):
            rate = coarser(segments, self.common)
            if i in tokens:
                x = align(tokens[i], segments, rate, n)
                projected = F.linear(x * norm_weights[i], weights[i])
                squares = x.float().square().sum(dim=-1, keepdim=True)
            else:
                assert cache is not None
                projected, squares = cache.projected[i], cache.sums_of_squares[i]
            if cache is not None:
                cache.projected[i] = projected[:, -1:]
                cache.sums_of_squares[i] = squares[:, -1:]
            hidden = hidden + align(projected, rate, self.common, n)
            sum_of_squares = sum_of_squares + align(squares, rate, self.common, n)

        # The norm's division and the bias, and the rest of the two-layer network.
        scale = torch.rsqrt(sum_of_squares / sum(self.dims) + self.eps)
        hidden = torch.addcmul(self.to_hidden.bias.type_as(hidden), hidden, scale.type_as(hidden))
        updates = self.to_out(F.silu(hidden)).split(self.target_dims, dim=-1)

        merged = dict(tokens)
        for i, update in zip(self.targets, updates, strict=True):
            if i in tokens:
                merged[i] = tokens[i] + align(update, self.common, self.segments[i], n)
        return merged
