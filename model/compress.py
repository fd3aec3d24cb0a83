"""How a level turns the bytes' embeddings into its first tokens."""

import torch
from einops import rearrange
from torch import Tensor, nn

from model.attend import Attend
from model.config import LevelConfig
from model.segments import Units


class Compress(nn.Module):
    """Features of bytes to a level's tokens. Token k is made of the c bytes up to the end of unit k.

    `compress_type` is one of: "conv", a causal convolution of kernel c, SiLU, and a linear map; "mean", the mean of the
    c bytes and a linear map; "attention", see `ChunkAttention`; "last", a linear map of the last byte alone. With c = 1
    it is a linear map, or the identity if the widths are equal. Before the first byte there are zeros, which the mean
    counts.

    Args:
        dim_in: width of the bytes' features.
    """

    def __init__(self, dim_in: int, level: LevelConfig):
        super().__init__()
        self.compression = level.compression
        self.history = 0 if level.compress_type == "last" else level.compression - 1  # bytes before the unit's last one
        self.compress_type = level.compress_type
        self.net = self._build(dim_in, level)

    def _build(self, dim_in: int, level: LevelConfig) -> nn.Module:
        if level.compression == 1:
            return nn.Identity() if dim_in == level.dim else nn.Linear(dim_in, level.dim, bias=False)
        if level.compress_type in ("mean", "last"):
            return nn.Linear(dim_in, level.dim)
        if level.compress_type == "attention":
            return ChunkAttention(dim_in, level)

        # A convolution over chunks that are cut out first is one matrix product.
        hidden = max(1, round(level.dim * level.compress_mult))
        return nn.Sequential(
            nn.Linear(level.compression * dim_in, hidden),
            nn.SiLU(),
            nn.Linear(hidden, level.dim),
        )

    def forward(self, x: Tensor, units: Units) -> Tensor:
        """The token of each unit (b k d).

        Args:
            x: features of the n bytes, after those of `history` bytes before them or more, (b n+… d_in).
        """
        x = x[:, x.shape[1] - units.n - self.history :]
        if self.history == 0:
            return self.net(units.down(x))

        chunks = units.windows(x, self.compression)  # (b k c d_in)
        if self.compress_type == "mean":
            return self.net(chunks.mean(dim=2))
        if self.compress_type == "attention":
            return self.net(chunks)
        return self.net(rearrange(chunks, "b k c d -> b k (c d)"))


class ChunkAttention(nn.Module):
    """The last byte of each chunk attends to all bytes of the chunk: (b k c d_in) -> (b k d)."""

    def __init__(self, dim_in: int, level: LevelConfig):
        super().__init__()
        self.heads = level.heads
        inner = level.heads * level.dim_head
        self.to_q = nn.Linear(dim_in, inner, bias=False)
        self.to_kv = nn.Linear(dim_in, 2 * inner, bias=False)
        self.position = nn.Parameter(torch.randn(level.compression, inner) * inner**-0.5)
        self.attend = Attend()
        self.to_token = nn.Linear(inner, level.dim)

    def forward(self, chunks: Tensor) -> Tensor:
        q = self.to_q(chunks[:, :, -1])
        k, v = self.to_kv(chunks).chunk(2, dim=-1)
        k = k + self.position.to(k)

        q = rearrange(q, "b k (h d) -> (b k) h 1 d", h=self.heads)
        k, v = (rearrange(t, "b k c (h d) -> (b k) h c d", h=self.heads) for t in (k, v))
        out = rearrange(self.attend(q, k, v), "(b k) h 1 d -> b k (h d)", b=len(chunks))
        return self.to_token(out)
