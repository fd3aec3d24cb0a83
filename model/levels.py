"""What makes the model hierarchical: compress bytes into a level's tokens, and merge the levels back."""

from math import ceil

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from model.attend import Attend
from model.block import Cache
from model.config import LevelConfig


class Compress(nn.Module):
    """Bytes' embeddings to a level's first tokens, token k (from 0) by the bytes ks - c + 1 … ks: (b ⌈n/s⌉ d).
    By convolution of kernel c and stride s, written as one matrix product over chunks, a SiLU and a linear map; by the
    mean of a chunk and a linear map; or by `ChunkAttention`.
    """

    def __init__(self, dim_in: int, level: LevelConfig):
        super().__init__()
        self.compression, self.stride, self.type = level.compression, level.stride, level.compress_type
        inner = max(1, int(dim_in * level.compress_mult))
        if level.compression == 1:
            self.net = nn.Linear(dim_in, level.dim, bias=False) if dim_in != level.dim else nn.Identity()
        elif level.compress_type == "conv":
            first, last = nn.Linear(level.compression * dim_in, inner), nn.Linear(inner, level.dim)
            self.net = nn.Sequential(first, nn.SiLU(), last)
        else:
            self.net = nn.Linear(dim_in, level.dim) if level.compress_type == "mean" else ChunkAttention(dim_in, level)

    def forward(self, x: Tensor, n: int) -> Tensor:
        """The last n of the embeddings x (b at least c-1+n d_in) are compressed, the others are the past of them."""
        x = x[:, x.shape[1] - n - self.compression + 1 :]
        if self.compression == 1:
            return self.net(x)
        chunks = x.unfold(1, self.compression, self.stride)
        if self.type == "mean":
            return self.net(chunks.mean(dim=-1))
        return self.net(rearrange(chunks, "b k d c -> b k (c d)" if self.type == "conv" else "b k d c -> b k c d"))


class ChunkAttention(nn.Module):
    """The last byte of each chunk asks all of its bytes: chunks (b k c d_in) -> (b k d)."""

    def __init__(self, dim_in: int, level: LevelConfig):
        super().__init__()
        self.heads, inner = level.heads, level.heads * level.dim_head
        self.to_q = nn.Linear(dim_in, inner, bias=False)
        self.to_kv = nn.Linear(dim_in, 2 * inner, bias=False)
        self.place = nn.Parameter(torch.randn(level.compression, inner) * inner**-0.5)
        self.attend = Attend()
        self.to_token = nn.Linear(inner, level.dim)

    def forward(self, chunks: Tensor) -> Tensor:
        q = rearrange(self.to_q(chunks[:, :, -1]), "b k (h d) -> (b k) h 1 d", h=self.heads)
        k, v = self.to_kv(chunks).chunk(2, dim=-1)
        k, v = (rearrange(t, "b k c (h d) -> (b k) h c d", h=self.heads) for t in (k + self.place.to(k), v))
        return self.to_token(rearrange(self.attend(q, k, v), "(b k) h 1 d -> b k (h d)", b=len(chunks)))


def align(t: Tensor, stride: int, to: int, n: int) -> Tensor:
    """Bring a level's tokens (b ⌈n/stride⌉ d) to another stride over the same n bytes: (b ⌈n/to⌉ d). Position t reads
    output ⌊t/stride⌋. Strides are powers of two, so one always divides the other."""
    if stride > to:
        return repeat(t, "b k d -> b (k r) d", r=stride // to)[:, : ceil(n / to)]
    return t[:, :: to // stride]


class Merge(nn.Module):
    """What all levels say together, added to those in `targets`: tokens (b ⌈n/s⌉ d) by level -> the same.
    Computes linear(SiLU(linear(RMSNorm(concatenation of all levels, aligned)))). The first linear map is applied to
    each level at its own rate and summed after alignment: the same, without a coarse level's work for every byte.
    """

    def __init__(self, levels: tuple[LevelConfig, ...], targets: tuple[int, ...]):
        super().__init__()
        self.strides, self.dims = [level.stride for level in levels], [level.dim for level in levels]
        self.targets, self.dims_out = targets, [self.dims[i] for i in targets]
        self.stride = min(self.strides[i] for i in targets)
        self.norm = nn.RMSNorm(sum(self.dims), eps=torch.finfo(torch.float32).eps)
        self.to_hidden = nn.Linear(sum(self.dims), 2 * sum(self.dims_out))
        self.to_out = nn.Linear(2 * sum(self.dims_out), sum(self.dims_out))

    def forward(self, tokens: dict[int, Tensor], n: int, cache: Cache | None = None) -> dict[int, Tensor]:
        gains, weights = self.norm.weight.split(self.dims), self.to_hidden.weight.split(self.dims, dim=1)
        hidden = square = gains[0].new_zeros(())
        for i, stride in enumerate(self.strides):
            rate = max(stride, self.stride)
            if cache and i not in tokens:  # its stride does not come round
                part = cache[self, i]
            else:
                t = align(tokens[i], stride, rate, n)
                part = F.linear(t * gains[i], weights[i]), t.float().square().sum(dim=-1, keepdim=True)
            if cache is not None:
                cache[self, i] = tuple(p[:, -1:] for p in part)
            hidden, square = (w + align(p, rate, self.stride, n) for w, p in zip((hidden, square), part, strict=True))
        scale = torch.rsqrt(square / sum(self.dims) + self.norm.eps)
        hidden = torch.addcmul(self.to_hidden.bias.type_as(hidden), hidden, scale.type_as(hidden))
        updates = zip(self.targets, self.to_out(F.silu(hidden)).split(self.dims_out, dim=-1), strict=True)
        return tokens | {i: tokens[i] + align(u, self.stride, self.strides[i], n) for i, u in updates if i in tokens}
