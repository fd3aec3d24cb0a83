"""AdamW, or Muon with AdamW, and a learning rate that is a pure function of the step, so that there is none to save."""

from collections import defaultdict
from math import cos, pi

import torch
from torch import Tensor, nn

from training.config import TrainConfig


class Muon(torch.optim.Muon):
    """Muon (arXiv 2502.16982) with updates as large as AdamW's, so that one learning rate fits both.

    It is PyTorch's, but for matrices of one shape at once: a GPU takes longer to begin with each of the many small
    products of one matrix than to compute them.
    """

    def __init__(self, params, lr: float):
        super().__init__(params, lr=lr, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in (p for p in group["params"] if p.grad is not None):
                alike[p.shape].append(p)
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            for shape, params in alike.items():
                grads = [p.grad for p in params]
                buffers = [self.state[p]["momentum_buffer"] for p in params]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                towards = torch._foreach_lerp(grads, buffers, group["momentum"])  # Nesterov's momentum
                update = orthogonal(torch.stack(towards), group["ns_coefficients"], group["ns_steps"], group["eps"])
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                torch._foreach_add_(params, list(update.to(params[0].dtype).unbind()), alpha=-rate)


def orthogonal(t: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """About the nearest matrices with orthonormal rows or columns to those of t (k m n), by Newton and Schulz: bfloat16
    (k m n), from https://kellerjordan.github.io/posts/muon/."""
    a, b, c = coefficients
    tall = t.shape[1] > t.shape[2]
    x = t.to(torch.bfloat16)
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Muon (arXiv 2502.16982) for some parameters and AdamW for the others, stepped and saved as one optimizer.

    Args:
        groups: parameter groups of `torch.optim.Optimizer`, of which those with `muon=True` hold 2-D matrices only.
    """

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float]):
        muon, others = ([group for group in groups if group["muon"] == flag] for flag in (True, False))
        self.parts = {
            True: Muon(muon, lr=lr),
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
