"""What makes the model hierarchical: compress bytes into a level's tokens, and merge the levels back."""

from math import ceil

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from model.attend import Attend
from model.config import LevelConfig


class Compress(nn.Module):
    """Bytes' embeddings (b n d_in) to a level's first tokens (b ⌈n/s⌉ d), by the bytes ks - c + 1 … ks for token k.

    Every position t ≥ ks may read it. By convolution: of kernel c and stride s, a SiLU and a linear map, the first one
    written as one matrix product over chunks. By mean: of the chunk, and a linear map. By attention: `ChunkAttention`.
    """

    def __init__(self, dim_in: int, level: LevelConfig):
        super().__init__()
        self.compression, self.stride, self.type = level.compression, level.stride, level.compress_type
        inner = int(dim_in * level.compress_mult)
        if level.compression == 1:
            self.net = nn.Linear(dim_in, level.dim, bias=False) if dim_in != level.dim else nn.Identity()
        elif level.compress_type == "conv":
            hidden = nn.Linear(level.compression * dim_in, inner)
            self.net = nn.Sequential(hidden, nn.SiLU(), nn.Linear(inner, level.dim))
        elif level.compress_type == "mean":
            self.net = nn.Linear(dim_in, level.dim)
        else:
            self.net = ChunkAttention(dim_in, level)

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """`before`, (b at least c-1 d_in), are the embeddings before x; zeros at the beginning of a text."""
        if self.compression > 1:
            reach = self.compression - 1
            x = F.pad(x, (0, 0, reach, 0)) if before is None else torch.cat((before[:, -reach:], x), dim=1)
            x = rearrange(x.unfold(1, self.compression, self.stride), "b k d c -> b k c d")
            if self.type == "conv":
                x = rearrange(x, "b k c d -> b k (c d)")
            elif self.type == "mean":
                x = x.mean(dim=2)
        return self.net(x)


class ChunkAttention(nn.Module):
    """The last byte of each chunk asks all of its bytes: chunks (b k c d_in) -> (b k d)."""

    def __init__(self, dim_in: int, level: LevelConfig):
        super().__init__()
        inner = level.heads * level.dim_head
        self.heads = level.heads
        self.to_q = nn.Linear(dim_in, inner, bias=False)
        self.to_kv = nn.Linear(dim_in, 2 * inner, bias=False)
        self.place = nn.Parameter(torch.randn(level.compression, inner) * inner**-0.5)
        self.attend = Attend()
        self.to_token = nn.Linear(inner, level.dim)

    def forward(self, chunks: Tensor) -> Tensor:
        q = rearrange(self.to_q(chunks[:, :, -1]), "b k (h d) -> (b k) h 1 d", h=self.heads)
        k, v = self.to_kv(chunks).chunk(2, dim=-1)
        k, v = (rearrange(t, "b k c (h d) -> (b k) h c d", h=self.heads) for t in (k + self.place.to(k), v))
        out = rearrange(self.attend(q, k, v), "(b k) h 1 d -> b k (h d)", b=len(chunks))
        return self.to_token(out)


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

    def forward(
        self, tokens: list[Tensor | None], n: int, last: dict[int, tuple[Tensor, Tensor]] | None = None
    ) -> list[Tensor | None]:
        """`last` keeps each level's last projection, for the steps at which it has no token of its own (None)."""
        hidden = square = 0
        for i, t in enumerate(tokens):
            part = last[i] if t is None else self.project(i, t, n)
            if last is not None:
                last[i] = tuple(p[:, -1:] for p in part)
            stride = max(self.strides[i], self.stride)
            hidden = hidden + align(part[0], stride, self.stride, n)
            square = square + align(part[1], stride, self.stride, n)
        eps = torch.finfo(torch.float32).eps
        hidden = hidden * torch.rsqrt(square / sum(self.dims) + eps) + self.to_hidden.bias
        updates = self.to_out(F.silu(hidden)).split(self.dims_out, dim=-1)

        tokens = list(tokens)
        for i, update in zip(self.targets, updates, strict=True):
            if tokens[i] is not None:
                tokens[i] = tokens[i] + align(update, self.stride, self.strides[i], n)
        return tokens

    def project(self, i: int, t: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """A level's share of the hidden layer and of the squared norm, at its own rate or that of the merge."""
        if self.strides[i] < self.stride:
            t = align(t, self.strides[i], self.stride, n)
        gain, weight = self.norm.weight.split(self.dims)[i], self.to_hidden.weight.split(self.dims, dim=1)[i]
        return F.linear(t * gain, weight), t.float().square().sum(dim=-1, keepdim=True)
