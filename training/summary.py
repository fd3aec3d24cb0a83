"""What will run, counted before it runs."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model import HierarchicalTransformer, ModelConfig


def count_parameters(model: HierarchicalTransformer) -> dict[str, int]:
    """Parameters of each part: the embedding, each level by its compression, merges and heads."""

    def size(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    parts = {"embedding": size(model.token_emb)}
    for level, module in zip(model.config.levels, model.levels, strict=True):
        parts[f"level {level.compression}x"] = size(module)
    parts["merge"] = size(model.merges)
    parts["output"] = size(model.norms) + size(model.to_logits) + size(model.losses)
    return parts


def flops_per_byte(config: ModelConfig) -> float:
    """Floating-point operations of one forward pass at full length, a byte; a training step takes three times as many.

    Counts matrix products and attention as the plain path would do them, on a model without storage.
    """
    with torch.device("meta"):
        model = HierarchicalTransformer(**config.to_dict())
        ids = torch.zeros(1, config.seq_len, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids)
    return counter.get_total_flops() / config.seq_len


def human(number: float) -> str:
    """1234567 as 1.23 M."""
    for unit in ("", " k", " M", " G"):
        if abs(number) < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"
