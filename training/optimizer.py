"""AdamW, or Muon with AdamW, and a learning rate that is a pure function of the step, so that there is none to save."""

from math import cos, pi

import torch
from torch import nn

from training.config import TrainConfig


class MuonAdamW(torch.optim.Optimizer):
    """Muon (arXiv 2502.16982) for some parameters and AdamW for the others, stepped and saved as one optimizer.

    Args:
        groups: parameter groups of `torch.optim.Optimizer`, of which those with `muon=True` hold 2-D matrices only.
    """

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float]):
        muon, others = ([group for group in groups if group["muon"] == flag] for flag in (True, False))
        # Updates of Muon as large as AdamW's, so that one learning rate fits both.
        self.parts = {
            True: torch.optim.Muon(muon, lr=lr, adjust_lr_fn="match_rms_adamw"),
            False: torch.optim.AdamW(others, lr=lr, betas=betas, fused=True),
        }
        super().__init__([group for part in self.parts.values() for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for flag, part in self.parts.items():  # a loaded state or a sharded model brings other dicts and parameters
            part.state, part.param_groups = self.state, [group for group in self.param_groups if group["muon"] == flag]
            part.step()
        return loss


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The configured optimizer; the matrices of linear maps have weight decay, nothing else has."""
    matrices = {name + ".weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    hidden = {name for name in matrices if name.startswith(("levels.", "merges."))}  # Muon is not for logits

    def group(names: set[str], **options) -> dict:
        return {"params": [p for name, p in model.named_parameters() if name in names], **options}

    rest = {name for name, _ in model.named_parameters()} - matrices
    decay = {"weight_decay": config.weight_decay}
    if config.optimizer == "muon":
        groups = [group(hidden, **decay), group(matrices - hidden, **decay), group(rest, weight_decay=0.0)]
        groups = [one | {"muon": i == 0} for i, one in enumerate(groups) if one["params"]]
        return MuonAdamW(groups, lr=config.learning_rate, betas=config.betas)
    groups = [group(matrices, **decay), group(rest, weight_decay=0.0)]
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
