"""Losses beside the next byte's cross-entropy."""

from typing import NamedTuple

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.config import LevelConfig


class Losses(NamedTuple):
    """Detached scalars, unweighted, in nats; None where a loss has no weight."""

    cross_entropy: Tensor
    reconstruction: Tensor | None = None


class Reconstruction(nn.Module):
    """How badly a level's outputs (b ⌈n/s⌉ d) give back the c bytes behind each of them: mean nats a byte, a scalar.

    Output k answers for bytes ks - c + 1 … ks of ids (b n); those before the first byte do not exist and do not count.
    """

    def __init__(self, level: LevelConfig, num_tokens: int):
        super().__init__()
        self.compression, self.stride = level.compression, level.stride
        self.to_logits = nn.Linear(level.dim, level.compression * num_tokens, bias=False)

    def forward(self, embeds: Tensor, ids: Tensor) -> Tensor:
        chunks = F.pad(ids, (self.compression - 1, 0), value=-1).unfold(1, self.compression, self.stride)
        logits = rearrange(self.to_logits(embeds), "b k (c v) -> (b k c) v", c=self.compression)
        return F.cross_entropy(logits.float(), rearrange(chunks, "b k c -> (b k c)"), ignore_index=-1)
