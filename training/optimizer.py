"""AdamW, and its learning rate as a pure function of the step, so that there is nothing to save."""

from math import cos, pi

import torch
from torch import nn

from training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) with decay on the matrices of linear maps alone."""
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    groups = [
        {"params": [p for p in model.parameters() if id(p) in matrices], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if id(p) not in matrices], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Of the step after `step` finished ones: linear warm-up to the peak, then half a cosine down to the minimum."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    low, high = config.min_learning_rate, config.learning_rate
    return low + (high - low) * 0.5 * (1 + cos(pi * min(1.0, done)))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """For every group, before the step that uses it."""
    for group in optimizer.param_groups:
        group["lr"] = value
