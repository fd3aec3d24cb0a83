"""Optimizers by name: AdamW, or Muon with AdamW."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.config import TrainConfig
from training.speed import cpu_has_fast_bf16


class Muon(torch.optim.Muon):
    """Muon (arXiv 2502.16982), with updates as large as AdamW's, so that one learning rate fits both.

    PyTorch's, except that matrices of the same shape are orthogonalised together, and on a CPU in the precision that it
    is faster in. A GPU takes longer to launch the many small products of a single matrix than to compute them. A CPU
    with nothing newer than AVX2 takes longer for products in bfloat16 than for the rest of a step.
    """

    def __init__(self, params: list[dict], lr: float):
        super().__init__(params, lr=lr, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            for p in trained:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            for params in by_shape(trained):
                self.update(params, group)

    def update(self, params: list[Tensor], group: dict) -> None:
        """Step matrices of one shape."""
        # Nesterov's momentum
        grads = [p.grad for p in params if p.grad is not None]
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        directions = list(torch._foreach_lerp(grads, buffers, group["momentum"]))

        # all of them orthogonalised at once
        updates = orthogonalise(directions, group)

        # weight decay, then the update, scaled to the root mean square of AdamW's
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        rate = group["lr"] * 0.2 * max(params[0].shape) ** 0.5
        torch._foreach_add_(params, updates, alpha=-rate)


def by_shape(matrices: list[Tensor]) -> list[list[Tensor]]:
    """Lists of matrices of the same shape."""
    same_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for matrix in matrices:
        same_shape[matrix.shape].append(matrix)
    return list(same_shape.values())


def orthogonalise(matrices: list[Tensor], group: dict) -> list[Tensor]:
    """`orthogonal` of matrices of one shape (m n), by the settings of a parameter group of Muon, in their own dtype."""
    stacked = torch.stack(matrices).to(product_dtype(matrices[0].device))
    result = orthogonal(stacked, group["ns_coefficients"], group["ns_steps"], group["eps"])
    return list(result.to(matrices[0].dtype).unbind())


def product_dtype(device: torch.device) -> torch.dtype:
    """The precision of Muon's products on a device: bfloat16, or float32 on a CPU that is faster in it."""
    return torch.bfloat16 if device.type != "cpu" or cpu_has_fast_bf16() else torch.float32


def orthogonal(t: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Roughly the nearest semi-orthogonal matrix to each of t (k m n), by Newton-Schulz iterations in its dtype.

    From https://kellerjordan.github.io/posts/muon/. Singular values end near 1, not at 1, which is enough for Muon.
    """
    tall = t.shape[1] > t.shape[2]
    x = t.mT if tall else t  # the products below are smaller for wide matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)

    # Bfloat16 is too coarse for the iterations on x xᵀ: errors in its smallest eigenvalues grow 12-fold in each.
    very_wide = x.shape[2] >= 2 * x.shape[1]
    if very_wide and x.dtype != torch.bfloat16:
        x = iterate_on_gram(x, coefficients, steps)
    else:
        x = iterate(x, coefficients, steps)
    return x.mT if tall else x


def iterate(x: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Newton-Schulz iterations x ← (a + b g + c g²) x, where g is the Gram matrix x xᵀ, on each of x (k m n)."""
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def iterate_on_gram(x: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """The same as `iterate` with two products of x in all, not two in each iteration: faster where n ≥ 1.5 m.

    Where `iterate` computes x ← q x, the Gram matrix becomes q g q, so it needs no product of x. The factors q of all
    iterations are multiplied with one another, and with x at the end.
    """
    a, b, c = coefficients
    gram = x @ x.mT
    polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # q is a + polynomial

    scale, product = a, polynomial  # of all factors so far the product is scale + product
    for _ in range(steps - 1):
        right = torch.baddbmm(gram, gram, polynomial, beta=a)
        gram = torch.baddbmm(right, polynomial, right, beta=a)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        product = torch.baddbmm(a * product + scale * polynomial, polynomial, product)
        scale *= a
    return torch.baddbmm(x, product, x, beta=scale)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for some parameters and AdamW for the others, stepped and saved as one optimizer.

    Args:
        groups: parameter groups of `torch.optim.Optimizer`. Those with `muon=True` hold 2-D matrices only.
    """

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float]):
        muon_groups = [group for group in groups if group["muon"]]
        adamw_groups = [group for group in groups if not group["muon"]]
        self.parts = {
            True: Muon(muon_groups, lr=lr),
            False: torch.optim.AdamW(adamw_groups, lr=lr, betas=betas, fused=True),
        }
        super().__init__([group for part in self.parts.values() for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for is_muon, part in self.parts.items():
            # A loaded checkpoint or a sharded model replaces state and groups, so the parts take them at each step.
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["muon"] == is_muon]
            part.step()
        return loss


@dataclass
class ParamGroups:
    """All trained parameters of a model, each in one of three groups."""

    hidden: list[nn.Parameter]
    """matrices of linear maps in levels and merges, which Muon is for"""
    linear: list[nn.Parameter]
    """matrices of other linear maps: those to logits, and of losses"""
    rest: list[nn.Parameter]
    """embeddings, norms, biases and all other parameters that are no linear map; they have no weight decay"""


def param_groups(model: nn.Module) -> ParamGroups:
    """Sort a model's parameters by the module that they belong to."""
    hidden_parts = [getattr(model, name) for name in ("levels", "merges") if hasattr(model, name)]  # peers lack them
    hidden_weights = {weight for part in hidden_parts for weight in linear_weights(part)}
    all_weights = linear_weights(model)

    groups = ParamGroups([], [], [])
    for parameter in model.parameters():
        if parameter in hidden_weights:
            groups.hidden.append(parameter)
        elif parameter in all_weights:
            groups.linear.append(parameter)
        else:
            groups.rest.append(parameter)
    return groups


def linear_weights(module: nn.Module) -> set[Tensor]:
    """The matrices of all linear maps in a module."""
    return {child.weight for child in module.modules() if isinstance(child, nn.Linear)}


def adamw(groups: ParamGroups, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101)."""
    decayed = {"params": groups.hidden + groups.linear, "weight_decay": config.weight_decay}
    rest = {"params": groups.rest, "weight_decay": 0.0}
    return torch.optim.AdamW([decayed, rest], lr=config.learning_rate, betas=config.betas, fused=True)


def muon(groups: ParamGroups, config: TrainConfig) -> torch.optim.Optimizer:
    """Muon for hidden matrices, AdamW for the rest (arXiv 2502.16982)."""
    options = [
        {"params": groups.hidden, "weight_decay": config.weight_decay, "muon": True},
        {"params": groups.linear, "weight_decay": config.weight_decay, "muon": False},
        {"params": groups.rest, "weight_decay": 0.0, "muon": False},
    ]
    options = [group for group in options if group["params"]]
    return MuonAdamW(options, lr=config.learning_rate, betas=config.betas)


# A new optimizer is a function, a line here and its name in `TrainConfig.optimizer`.
OPTIMIZERS: dict[str, Callable[[ParamGroups, TrainConfig], torch.optim.Optimizer]] = {"adamw": adamw, "muon": muon}


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The configured optimizer for a model's parameters."""
    return OPTIMIZERS[config.optimizer](param_groups(model), config)
