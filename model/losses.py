"""Losses beside the next byte's cross-entropy, each a module of one level that exists only if its weight is not 0."""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.config import LevelConfig, ModelConfig


class Losses(NamedTuple):
    """Detached scalars, unweighted, summed over levels, or None; `by_level` has each one's part, "next_latent/4x"."""

    cross_entropy: Tensor
    reconstruction: Tensor | None = None
    prophet: Tensor | None = None
    next_latent: Tensor | None = None
    quantizer: Tensor | None = None
    by_level: dict[str, Tensor] = {}  # noqa: RUF012, of a named tuple, which is given one


def chunks(ids: Tensor, level: LevelConfig, ahead: bool) -> Tensor:
    """Of bytes (b n), the c behind each output, ks - c + 1 … ks, or, of the bytes one later, the c ahead of it,
    ks + 1 … ks + c: (b ⌈n/s⌉ c), with -1 where there is none."""
    others = level.compression - 1
    return F.pad(ids, (0, others) if ahead else (others, 0), value=-1).unfold(1, level.compression, level.stride)


class Chunks(nn.Module):
    """Cross-entropy of c bytes read off each output: those behind it (reconstruction), or ahead (prophet)."""

    def __init__(self, level: LevelConfig, num_tokens: int, dim_in: int, ahead: bool):
        super().__init__()
        self.level, self.ahead = level, ahead
        self.to_logits = nn.Linear(level.dim, level.compression * num_tokens, bias=False)

    def forward(self, embeds: Tensor, ids: Tensor, labels: Tensor, x: Tensor) -> Tensor:
        targets = rearrange(chunks(labels if self.ahead else ids, self.level, self.ahead), "b k c -> (b k c)")
        logits = rearrange(self.to_logits(embeds), "b k (c v) -> (b k c) v", c=self.level.compression)
        return F.cross_entropy(logits.float(), targets, ignore_index=-1)


class NextLatent(nn.Module):
    """A level predicts its own next outputs from the current one and summaries of the bytes between (arXiv 2511.05963).
    A summary is the mean of the embeddings behind an output, detached, as are the targets. Each of `rollouts` steps
    goes on from what the step before predicted, and counts for less the more those before it erred.
    """

    def __init__(self, level: LevelConfig, num_tokens: int, dim_in: int, rollouts: int = 1):
        super().__init__()
        self.level, self.rollouts, dim = level, rollouts, level.dim
        self.summarize = nn.Linear(dim_in, dim) if dim_in != dim else nn.Identity()
        first, second = nn.Linear(2 * dim, dim), nn.Linear(dim, dim)
        self.hidden = nn.Sequential(nn.LayerNorm(2 * dim), first, nn.GELU(), second, nn.GELU())
        self.to_out = nn.Linear(dim, dim)

    def forward(self, embeds: Tensor, ids: Tensor, labels: Tensor, x: Tensor) -> Tensor:
        c, outputs = self.level.compression, embeds.shape[1] - self.rollouts
        if outputs < 1:
            return embeds.sum() * 0.0
        behind = F.pad(x.detach(), (0, 0, c - 1, 0)).unfold(1, c, self.level.stride)
        exist = (chunks(ids, self.level, ahead=False) >= 0).sum(dim=-1, keepdim=True)
        summaries = self.summarize(behind.sum(dim=-1) / exist)
        latent, loss, erred = embeds[:, :outputs], embeds.new_zeros(()), embeds.new_zeros(())
        for step in range(1, self.rollouts + 1):
            ahead = slice(step, step + outputs)
            latent = latent + self.to_out(self.hidden(torch.cat((latent, summaries[:, ahead]), dim=-1)))
            target = embeds[:, ahead].detach().float()
            square = F.mse_loss(latent.float(), target, reduction="none").mean(dim=-1)
            error = 0.1 * square + 0.9 * (1 - F.cosine_similarity(latent.float(), target, dim=-1))
            loss = loss + (error * torch.exp(-erred)).mean() / self.rollouts
            erred = erred + error.detach()
        return loss


class Quantizer(nn.Module):
    """A level predicts the code of the c bytes ahead, in a codebook of random projections that never learns (BEST-RQ,
    arXiv 2202.01855). Chunks that the sequence cuts off do not count."""

    CODES, CODE_DIM = 256, 16

    def __init__(self, level: LevelConfig, num_tokens: int, dim_in: int):
        super().__init__()
        self.level = level
        self.register_buffer("projection", torch.randn(level.compression, num_tokens, self.CODE_DIM))
        self.register_buffer("codebook", F.normalize(torch.randn(self.CODES, self.CODE_DIM), dim=-1))
        self.to_logits = nn.Linear(level.dim, self.CODES, bias=False)

    def forward(self, embeds: Tensor, ids: Tensor, labels: Tensor, x: Tensor) -> Tensor:
        ahead = chunks(labels, self.level, ahead=True)
        projected = self.projection[torch.arange(ahead.shape[-1], device=ahead.device), ahead.clamp(min=0)].sum(dim=-2)
        nearest = (projected @ self.codebook.T).argmax(dim=-1).masked_fill((ahead < 0).any(dim=-1), -1)
        logits, codes = rearrange(self.to_logits(embeds), "b k v -> (b k) v"), rearrange(nearest, "b k -> (b k)")
        total = F.cross_entropy(logits.float(), codes, ignore_index=-1, reduction="sum")
        return total / (codes >= 0).sum().clamp(min=1)


def build_losses(config: ModelConfig, dim_in: int) -> nn.ModuleDict:
    """Modules by name and level, where they have a weight; NextLatent alone says something about a level of 1x."""
    builders = {
        "reconstruction": ("recon_loss_weight", partial(Chunks, ahead=False)),
        "prophet": ("prophet_loss_weight", partial(Chunks, ahead=True)),
        "next_latent": ("next_latent_loss_weight", partial(NextLatent, rollouts=config.num_rollouts)),
        "quantizer": ("quantizer_loss_weight", Quantizer),
    }
    losses = {}
    for name, (argument, build) in builders.items():
        for i, level in enumerate(config.levels):
            if getattr(level, argument) > 0 and (level.compression > 1 or name == "next_latent"):
                module = build(level, config.num_tokens, dim_in)
                module.loss_weight = getattr(level, argument)
                losses.setdefault(name, nn.ModuleDict())[str(i)] = module
    return nn.ModuleDict(losses)
