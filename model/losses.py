"""Auxiliary losses: each is a module of one level, which exists only if its weight is not 0."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.config import LevelConfig, ModelConfig
from model.segments import Units
from model.typed import TypedModuleDict


class Losses(NamedTuple):
    """The parts of a loss, as detached scalars without their weights.

    Auxiliary losses are summed over levels, or None if no level has them. `by_level` has each part of such a sum, under
    a name such as "next_latent/4x".
    """

    cross_entropy: Tensor
    """nats per byte"""
    reconstruction: Tensor | None = None
    """nats per byte"""
    prophet: Tensor | None = None
    """nats per byte"""
    next_latent: Tensor | None = None
    """no unit"""
    quantizer: Tensor | None = None
    """nats per code"""
    by_level: dict[str, Tensor] = {}  # noqa: RUF012, never changed in place


class AuxiliaryLoss(nn.Module):
    """A scalar loss of one level's outputs.

    `forward` takes the level's normed outputs (b k d) and its units, the bytes (b n), the labels (b n), which are the
    bytes one later, and the embeddings of the bytes (b n d_in), without n-grams and matches.
    """

    def __init__(self, level: LevelConfig, weight: float):
        super().__init__()
        self.level = level
        self.loss_weight = weight

    def forward(self, outputs: Tensor, units: Units, ids: Tensor, labels: Tensor, byte_embeddings: Tensor) -> Tensor:
        raise NotImplementedError


def bytes_behind(ids: Tensor, size: int, units: Units) -> Tensor:
    """The bytes up to the end of each unit: ids (b n) -> (b k size), -1 before the first byte and for no real unit."""
    return real_only(units.windows(F.pad(ids, (size - 1, 0), value=-1), size), units)


def bytes_ahead(labels: Tensor, size: int, units: Units) -> Tensor:
    """The bytes after the end of each unit: labels (b n) -> (b k size), -1 after the last byte and for no real unit."""
    windows = units.windows(F.pad(labels, (0, size - 1), value=-1), size)
    return real_only(windows, units)


def real_only(windows: Tensor, units: Units) -> Tensor:
    """Windows (b k size) with -1 for units that are not real."""
    return windows if units.real is None else windows.where(units.real[..., None], -1)


class ByteLoss(AuxiliaryLoss):
    """Cross-entropy of c bytes read from each output: those it compressed (reconstruction) or the next (prophet)."""

    def __init__(self, level: LevelConfig, weight: float, num_tokens: int, dim_in: int, ahead: bool):
        super().__init__(level, weight)
        self.ahead = ahead
        self.to_logits = nn.Linear(level.dim, level.compression * num_tokens, bias=False)

    def forward(self, outputs: Tensor, units: Units, ids: Tensor, labels: Tensor, byte_embeddings: Tensor) -> Tensor:
        size = self.level.compression
        targets = bytes_ahead(labels, size, units) if self.ahead else bytes_behind(ids, size, units)
        targets = rearrange(targets, "b k c -> (b k c)")
        logits = rearrange(self.to_logits(outputs), "b k (c v) -> (b k c) v", c=self.level.compression)
        return F.cross_entropy(logits.float(), targets, ignore_index=-1)


class NextLatent(AuxiliaryLoss):
    """A level predicts its own next outputs (arXiv 2511.05963).

    Each step predicts one output ahead, from the current one and a summary of the bytes in between, the mean of their
    embeddings. Targets and summaries are detached. Of several rollouts, each continues from the prediction of the one
    before, and counts less the larger the error accumulated before it.
    """

    def __init__(self, level: LevelConfig, weight: float, num_tokens: int, dim_in: int, rollouts: int = 1):
        super().__init__(level, weight)
        self.rollouts = rollouts
        dim = level.dim
        self.summarize = nn.Linear(dim_in, dim) if dim_in != dim else nn.Identity()
        self.hidden = nn.Sequential(
            nn.LayerNorm(2 * dim),
            nn.Linear(2 * dim, dim),
            nn.GELU(),
            nn.Linear(dim, dim),
            nn.GELU(),
        )
        self.to_out = nn.Linear(dim, dim)

    def forward(self, outputs: Tensor, units: Units, ids: Tensor, labels: Tensor, byte_embeddings: Tensor) -> Tensor:
        count = outputs.shape[1] - self.rollouts
        if count < 1:
            return outputs.sum() * 0.0  # the sequence is too short; the sum keeps the graph

        summaries = self.summarize(self.mean_of_bytes_behind(ids, byte_embeddings.detach(), units))
        latent = outputs[:, :count]
        loss = outputs.new_zeros(())
        accumulated_error = outputs.new_zeros(())
        for step in range(1, self.rollouts + 1):
            ahead = slice(step, step + count)
            latent = latent + self.to_out(self.hidden(torch.cat((latent, summaries[:, ahead]), dim=-1)))
            error = self.error(latent.float(), outputs[:, ahead].detach().float())
            weighted = error * torch.exp(-accumulated_error)
            loss = loss + mean_of_real(weighted, None if units.real is None else units.real[:, ahead]) / self.rollouts
            accumulated_error = accumulated_error + error.detach()
        return loss

    def mean_of_bytes_behind(self, ids: Tensor, x: Tensor, units: Units) -> Tensor:
        """Mean of the embeddings x (b n d_in) of the bytes that each output compressed: (b k d_in)."""
        size = self.level.compression
        behind = units.windows(F.pad(x, (0, 0, size - 1, 0)), size)
        exist = (bytes_behind(ids, size, units) >= 0).sum(dim=-1, keepdim=True)
        return behind.sum(dim=2) / exist.clamp(min=1)

    @staticmethod
    def error(latent: Tensor, target: Tensor) -> Tensor:
        """A tenth mean squared error, nine tenths cosine distance: (b k d) -> (b k)."""
        squared = F.mse_loss(latent, target, reduction="none").mean(dim=-1)
        return 0.1 * squared + 0.9 * (1 - F.cosine_similarity(latent, target, dim=-1))


def mean_of_real(values: Tensor, real: Tensor | None) -> Tensor:
    """The mean of values (b k) over the units that are real; 0 if there are none."""
    return values.mean() if real is None else (values * real).sum() / real.sum().clamp(min=1)


class Quantizer(AuxiliaryLoss):
    """A level predicts the code of the c bytes ahead in a random codebook (BEST-RQ, arXiv 2202.01855).

    The codebook never learns. Chunks that the end of the sequence cuts off do not count.
    """

    CODES = 256
    CODE_DIM = 16

    projection: Tensor
    codebook: Tensor

    def __init__(self, level: LevelConfig, weight: float, num_tokens: int, dim_in: int):
        super().__init__(level, weight)
        self.register_buffer("projection", torch.randn(level.compression, num_tokens, self.CODE_DIM))
        self.register_buffer("codebook", F.normalize(torch.randn(self.CODES, self.CODE_DIM), dim=-1))
        self.to_logits = nn.Linear(level.dim, self.CODES, bias=False)

    def forward(self, outputs: Tensor, units: Units, ids: Tensor, labels: Tensor, byte_embeddings: Tensor) -> Tensor:
        ahead = bytes_ahead(labels, self.level.compression, units)
        cut_off = (ahead < 0).any(dim=-1)
        codes = rearrange(self.codes(ahead.clamp(min=0)).masked_fill(cut_off, -1), "b k -> (b k)")
        logits = rearrange(self.to_logits(outputs), "b k v -> (b k) v")
        total = F.cross_entropy(logits.float(), codes, ignore_index=-1, reduction="sum")
        return total / (codes >= 0).sum().clamp(min=1)

    def codes(self, chunks: Tensor) -> Tensor:
        """The nearest code of each chunk of bytes (b k c): (b k). Each byte adds a random vector of its place."""
        places = torch.arange(chunks.shape[-1], device=chunks.device)
        projected = self.projection[places, chunks].sum(dim=-2)
        return (projected @ self.codebook.T).argmax(dim=-1)


# The builder of each loss, by its name in `Losses`: builder(level, weight, num_tokens, dim_in) -> AuxiliaryLoss. The
# weight of each is a setting of `ModelConfig`, named in `LOSS_WEIGHTS` of model/config.py.
BUILDERS: dict[str, Callable[..., AuxiliaryLoss]] = {
    "reconstruction": partial(ByteLoss, ahead=False),
    "prophet": partial(ByteLoss, ahead=True),
    "next_latent": NextLatent,
    "quantizer": Quantizer,
}
FOR_EVERY_LEVEL = {"next_latent"}  # the others say nothing new about a level that compresses nothing


def has_loss(level: LevelConfig, name: str) -> bool:
    """Whether a level has a loss of this name."""
    return level.loss_weights[name] > 0 and (level.compression > 1 or name in FOR_EVERY_LEVEL)


def has_losses(level: LevelConfig) -> bool:
    """Whether a level has any of the losses."""
    return any(has_loss(level, name) for name in BUILDERS)


def build_losses(config: ModelConfig) -> "TypedModuleDict[TypedModuleDict[AuxiliaryLoss]]":
    """The losses that have a weight, by name, then by level."""
    losses = {}
    for name, build in BUILDERS.items():
        options = {"rollouts": config.num_rollouts} if name == "next_latent" else {}
        modules = {}
        for i, level in enumerate(config.levels):
            if has_loss(level, name):
                modules[str(i)] = build(
                    level, level.loss_weights[name], config.num_tokens, config.embedding_dim, **options
                )
        if modules:
            losses[name] = TypedModuleDict(modules)
    return TypedModuleDict(losses)
