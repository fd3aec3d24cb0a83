"""What makes the model hierarchical: compress bytes into a level's tokens, and merge the levels back."""

from math import ceil

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from model.config import LevelConfig


class Compress(nn.Module):
    """Bytes' embeddings (b n d_in) to a level's first tokens (b ⌈n/s⌉ d).

    A causal convolution of kernel c and stride s, a SiLU and a linear map, the convolution written as one matrix
    product over chunks. Output k has seen bytes ks - c + 1 … ks, so every position t ≥ ks may read it.
    """

    def __init__(self, dim_in: int, level: LevelConfig):
        super().__init__()
        self.compression, self.stride = level.compression, level.stride
        if level.compression == 1:
            self.net = nn.Linear(dim_in, level.dim, bias=False) if dim_in != level.dim else nn.Identity()
            return
        inner = int(dim_in * level.compress_mult)
        self.net = nn.Sequential(nn.Linear(level.compression * dim_in, inner), nn.SiLU(), nn.Linear(inner, level.dim))

    def forward(self, x: Tensor) -> Tensor:
        if self.compression > 1:
            x = F.pad(x, (0, 0, self.compression - 1, 0)).unfold(1, self.compression, self.stride)
            x = rearrange(x, "b k d c -> b k (c d)")
        return self.net(x)


def align(t: Tensor, stride: int, to: int, n: int) -> Tensor:
    """Bring a level's tokens (b ⌈n/stride⌉ d) to another stride over the same n bytes: (b ⌈n/to⌉ d).

    Position t reads output ⌊t/stride⌋: upwards by repetition, downwards by taking every so-manyth. Strides are powers
    of two, so one always divides the other.
    """
    if stride > to:
        t = repeat(t, "b k d -> b (k r) d", r=stride // to)
        return t[:, : ceil(n / to)]
    return t[:, :: to // stride]


class Merge(nn.Module):
    """What all levels say together, for the levels in `targets`: tokens, one (b ⌈n/s⌉ d) a level, to the same list with
    the targets' updated.

    Computes linear(SiLU(linear(RMSNorm(concatenation of all levels, aligned)))) and adds each target's share of the
    result. The first linear map is applied to each level at its own rate and summed after alignment: the same result,
    without a coarse level's work done again for every byte that it is repeated to.
    """

    def __init__(self, levels: tuple[LevelConfig, ...], targets: tuple[int, ...]):
        super().__init__()
        self.strides = [level.stride for level in levels]
        self.dims = [level.dim for level in levels]
        self.targets = targets
        self.dims_out = [self.dims[i] for i in targets]
        self.stride = min(self.strides[i] for i in targets)
        self.norm = nn.RMSNorm(sum(self.dims))
        self.to_hidden = nn.Linear(sum(self.dims), 2 * sum(self.dims_out))
        self.to_out = nn.Linear(2 * sum(self.dims_out), sum(self.dims_out))

    def forward(self, tokens: list[Tensor], n: int) -> list[Tensor]:
        gains, weights = self.norm.weight.split(self.dims), self.to_hidden.weight.split(self.dims, dim=1)
        hidden = square = 0
        for t, stride, gain, weight in zip(tokens, self.strides, gains, weights, strict=True):
            if stride < self.stride:
                t, stride = align(t, stride, self.stride, n), self.stride
            hidden = hidden + align(F.linear(t * gain, weight), stride, self.stride, n)
            square = square + align(t.float().square().sum(dim=-1, keepdim=True), stride, self.stride, n)
        eps = torch.finfo(torch.float32).eps
        hidden = hidden * torch.rsqrt(square / sum(self.dims) + eps) + self.to_hidden.bias
        updates = self.to_out(F.silu(hidden)).split(self.dims_out, dim=-1)

        tokens = list(tokens)
        for i, update in zip(self.targets, updates, strict=True):
            tokens[i] = tokens[i] + align(update, self.stride, self.strides[i], n)
        return tokens
