"""How levels exchange what they know: something of all of them is added to the levels that are merged into."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import LevelConfig
from model.generation.cache import MergeCache, keep_latest
from model.norm import RMSNorm
from model.segments import Units, align, coarser
from model.typed import TypedModuleDict

LevelUnits = dict[int, Units]
Tokens = dict[int, Tensor]


class Merge(nn.Module):
    """Adds to each target level a function of all levels: tokens by level (b k d) -> the same.

    The simple version brings every level to the units of the finest target, called `common`:

        x = torch.cat([align(tokens[i], units[i], common) for i in sources], dim=-1)   # (b k d), d = sum of widths
        updates = to_out(silu(to_hidden(norm(x)))).split(target_dims, dim=-1)          # an RMSNorm of all levels
        for i, update in zip(targets, updates):
            tokens[i] = tokens[i] + align(update, common, units[i])

    There a coarse level's tokens are repeated, and the first product computes the same numbers for each repetition. But
    linear maps and sums of squares can be split by level:

        to_hidden(norm(x)) = bias + scale · Σ_i W_i (g_i · x_i),   scale = 1 / sqrt(Σ_i |x_i|² / d + eps)

    where W_i and g_i are the columns of `to_hidden` and the weights of `norm` that belong to level i. So each level is
    projected at its own rate, and only the results are repeated and added. (A level finer than `common` is brought to
    it first, which drops tokens.)
    """

    def __init__(self, levels: tuple[LevelConfig, ...], sources: tuple[int, ...], targets: tuple[int, ...]):
        super().__init__()
        self.sources = sources
        self.targets = targets
        self.dims = [levels[i].dim for i in sources]
        self.target_dims = [levels[i].dim for i in targets]
        self.common = min(targets, key=lambda i: levels[i].stride)

        dim_in = sum(self.dims)
        dim_out = sum(self.target_dims)
        self.eps = torch.finfo(torch.float32).eps
        self.norm = nn.RMSNorm(dim_in, eps=self.eps)
        self.to_hidden = nn.Linear(dim_in, 2 * dim_out)
        self.to_out = nn.Linear(2 * dim_out, dim_out)

    def forward(self, tokens: Tokens, units: LevelUnits, cache: MergeCache | None = None) -> Tokens:
        """In generation, `tokens` holds the levels that run at this byte, the cache what is known of the others."""
        common = units[self.common]

        # Each level's part of the first product and of the norm, at its own rate or the common one if that is coarser.
        norm_weights = self.norm.weight.split(self.dims)
        weights = self.to_hidden.weight.split(self.dims, dim=1)
        hidden = self.to_hidden.weight.new_zeros(())
        sum_of_squares = self.to_hidden.weight.new_zeros(())
        for i, norm_weight, weight in zip(self.sources, norm_weights, weights, strict=True):
            rate = coarser(units[i], common)
            if i in tokens:
                x = align(tokens[i], units[i], rate)
                projected = F.linear(x * norm_weight, weight)
                squares = x.float().square().sum(dim=-1, keepdim=True)
                if cache is not None:
                    projected = keep_latest(cache.projected, i, projected, rate)
                    squares = keep_latest(cache.sums_of_squares, i, squares, rate)
            else:
                assert cache is not None
                projected, squares = cache.projected[i], cache.sums_of_squares[i]
            hidden = hidden + align(projected, rate, common)
            sum_of_squares = sum_of_squares + align(squares, rate, common)

        # The norm's division and the bias, and the rest of the two-layer network.
        scale = torch.rsqrt(sum_of_squares / sum(self.dims) + self.eps)
        hidden = torch.addcmul(self.to_hidden.bias.type_as(hidden), hidden, scale.type_as(hidden))
        updates = self.to_out(F.silu(hidden)).split(self.target_dims, dim=-1)

        merged = dict(tokens)
        for i, update in zip(self.targets, updates, strict=True):
            if i in tokens:
                merged[i] = tokens[i] + units[i].take(align(update, common, units[i]))
        return merged


class LinearMerge(nn.Module):
    """Adds to each target level a linear map of every other level: tokens by level (b k d) -> the same.

    tokens[t] + Σ_i align(W_ti norm(tokens[i]), units[i], units[t]), over i ≠ t. Each product is computed at the rate of
    the level that it reads, so what a coarse level tells a finer one costs next to nothing.
    """

    def __init__(self, levels: tuple[LevelConfig, ...], sources: tuple[int, ...], targets: tuple[int, ...]):
        super().__init__()
        self.readers = {i: [t for t in targets if t != i] for i in sources if targets != (i,)}
        self.reader_dims = {i: [levels[t].dim for t in readers] for i, readers in self.readers.items()}
        self.norms = TypedModuleDict({str(i): RMSNorm(levels[i].dim) for i in self.readers})
        self.to_out = TypedModuleDict(
            {str(i): nn.Linear(levels[i].dim, sum(dims), bias=False) for i, dims in self.reader_dims.items()}
        )

    def forward(self, tokens: Tokens, units: LevelUnits, cache: MergeCache | None = None) -> Tokens:
        """In generation, `tokens` holds the levels that run at this byte, the cache what is known of the others."""
        merged = dict(tokens)
        for i, readers in self.readers.items():
            if i in tokens:
                projected = self.to_out[str(i)](self.norms[str(i)](tokens[i]))
                if cache is not None:
                    projected = keep_latest(cache.projected, i, projected, units[i])
            else:
                assert cache is not None
                projected = cache.projected[i]
            for t, part in zip(readers, projected.split(self.reader_dims[i], dim=-1), strict=True):
                if t in tokens:
                    merged[t] = merged[t] + units[t].take(align(part, units[i], units[t]))
        return merged


# How levels meet, by `ModelConfig.merge_type`.
MERGES: dict[str, type[Merge] | type[LinearMerge]] = {"network": Merge, "linear": LinearMerge}
