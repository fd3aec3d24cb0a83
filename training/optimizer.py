"""Optimizers by name: AdamW, or Muon with AdamW, and RMSprop for tables of which a step reads few rows."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from model.tables import HashTables
from training.config import TrainConfig
from training.precisions import DTYPES

TABLE_RATE = 3  # the rate of tables, as a multiple of the learning rate (benchmarks/LOG.md)
SMALLEST = torch.finfo(torch.float32).tiny


class Muon(torch.optim.Muon):
    """Muon (arXiv 2502.16982), with updates as large as AdamW's, so that one learning rate fits both.

    PyTorch's, except that matrices of the same shape are orthogonalised together, and in bfloat16 or float32. A GPU
    takes longer to launch the many small products of a single matrix than to compute them. A CPU with nothing newer
    than AVX2 takes longer for products in bfloat16 than for the rest of a step.
    """

    def __init__(self, params: list[dict], lr: float, dtype: torch.dtype = torch.bfloat16):
        super().__init__(params, lr=lr, adjust_lr_fn="match_rms_adamw")
        self.dtype = dtype

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
        updates = orthogonalise(directions, self.dtype, group)

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


def orthogonalise(matrices: list[Tensor], dtype: torch.dtype, group: dict) -> list[Tensor]:
    """`orthogonal` of matrices of one shape (m n), in a dtype, by the settings of a parameter group of Muon."""
    stacked = torch.stack(matrices).to(dtype)
    result = orthogonal(stacked, group["ns_coefficients"], group["ns_steps"], group["eps"])
    return list(result.to(matrices[0].dtype).unbind())


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


class RowwiseRMSprop(torch.optim.Optimizer):
    """Moves the rows of tables by their gradients, each divided by the running root mean square of its row.

    A row changes in the steps that read it, and in no other: most n-grams are rare, and AdamW would move their rows on
    for many steps after a single one that read them. One number is kept for each row, as in FBGEMM's optimizers of
    tables (https://docs.pytorch.org/FBGEMM/). The simple version, for a row with the gradient g:

        s = mean(g²) in the first step that reads the row, and then s + (1 - beta) · (mean(g²) - s)
        row = row - rate · TABLE_RATE · g / √s

    Gradients may be sparse or dense, with the same result.
    """

    def __init__(self, params: list[dict], lr: float, beta: float):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                if "mean_square" not in self.state[table]:
                    self.state[table]["mean_square"] = torch.zeros_like(table[:, :1])
                self.update(table, table.grad, self.state[table]["mean_square"], group)

    def update(self, table: Tensor, grad: Tensor, mean_square: Tensor, group: dict) -> None:
        """Step one table (rows d) by its gradient, and its `mean_square` (rows 1)."""
        rate = group["lr"] * TABLE_RATE
        if not grad.is_sparse:
            steps, averages = row_steps(grad, mean_square, group["beta"])
            table.sub_(steps, alpha=rate)
            mean_square.copy_(averages)
            return

        rows, grads = distinct_rows(grad)
        steps, averages = row_steps(grads, mean_square.index_select(0, rows), group["beta"])
        table.index_add_(0, rows, steps, alpha=-rate)
        mean_square.index_copy_(0, rows, averages)


def row_steps(grads: Tensor, mean_square: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The steps of rows with these gradients (rows d), at a rate of 1, and their new `mean_square` (rows 1)."""
    square = grads.square().mean(dim=1, keepdim=True)
    averages = torch.where(mean_square == 0, square, mean_square.lerp(square, 1 - beta))
    averages = torch.where(square == 0, mean_square, averages)  # rows that were not read
    return grads * averages.clamp(min=SMALLEST).rsqrt(), averages


def distinct_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (m) that a sparse gradient names, each once, and their gradients (m d).

    That of a single pass names each once, which PyTorch does not know, and would take longer to sum than the step does.
    """
    is_distinct = bool((grad._indices()[0].diff() > 0).all())
    if not is_distinct:  # a sum over several passes or processes
        grad = grad.coalesce()
    return grad._indices()[0], grad._values()


class Combined(torch.optim.Optimizer):
    """Several optimizers, each for some of the parameters, stepped and saved as one."""

    def __init__(self, parts: list[torch.optim.Optimizer]):
        self.parts = parts
        super().__init__([group | {"part": i} for i, part in enumerate(parts) for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None
        for i, part in enumerate(self.parts):
            # A loaded checkpoint or a sharded model replaces state and groups, so the parts take them at each step.
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["part"] == i]
            part.step()


@dataclass
class ParamGroups:
    """All trained parameters of a model, each in one of four groups."""

    hidden: list[nn.Parameter]
    """matrices of linear maps in levels and merges, which Muon is for"""
    linear: list[nn.Parameter]
    """matrices of other linear maps: those to logits, and of losses"""
    tables: list[nn.Parameter]
    """tables of n-grams, of which a step reads few rows"""
    rest: list[nn.Parameter]
    """other embeddings, norms, biases and all other parameters that are no linear map; they have no weight decay"""


def param_groups(model: nn.Module) -> ParamGroups:
    """Sort a model's parameters by the module that they belong to."""
    hidden_parts = [getattr(model, name) for name in ("levels", "merges") if hasattr(model, name)]  # peers lack them
    hidden_weights = {weight for part in hidden_parts for weight in weights_of(part, nn.Linear)}
    all_weights = weights_of(model, nn.Linear)
    tables = weights_of(model, HashTables)

    groups = ParamGroups([], [], [], [])
    for parameter in model.parameters():
        if parameter in hidden_weights:
            groups.hidden.append(parameter)
        elif parameter in all_weights:
            groups.linear.append(parameter)
        elif parameter in tables:
            groups.tables.append(parameter)
        else:
            groups.rest.append(parameter)
    return groups


def weights_of(module: nn.Module, kind: type[nn.Linear] | type[HashTables]) -> set[Tensor]:
    """The weights of all modules of a kind within a module."""
    return {child.weight for child in module.modules() if isinstance(child, kind)}


def parameters_but_tables(model: nn.Module) -> list[nn.Parameter]:
    """All parameters but tables, whose gradients may be sparse, and are divided by their size rather than clipped."""
    tables = weights_of(model, HashTables)
    return [p for p in model.parameters() if p not in tables]


def adamw(groups: ParamGroups, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW (arXiv 1711.05101)."""
    decayed = {"params": groups.hidden + groups.linear, "weight_decay": config.weight_decay}
    rest = {"params": groups.rest, "weight_decay": 0.0}
    options = [group for group in (decayed, rest) if group["params"]]
    return [torch.optim.AdamW(options, lr=config.learning_rate, betas=config.betas, fused=True)]


def muon(groups: ParamGroups, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, AdamW for the rest (arXiv 2502.16982)."""
    if not groups.hidden:
        return adamw(groups, config)
    hidden = {"params": groups.hidden, "weight_decay": config.weight_decay}
    precision = "bf16" if config.muon_precision == "auto" else config.muon_precision  # auto: nobody has measured
    return [Muon([hidden], config.learning_rate, DTYPES[precision]), *adamw(replace(groups, hidden=[]), config)]


# A new optimizer is a function, a line here and its name in `TrainConfig.optimizer`.
Build = Callable[[ParamGroups, TrainConfig], list[torch.optim.Optimizer]]
OPTIMIZERS: dict[str, Build] = {"adamw": adamw, "muon": muon}


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The configured optimizer for a model's parameters, with `RowwiseRMSprop` for its tables."""
    groups = param_groups(model)
    parts = OPTIMIZERS[config.optimizer](groups, config)
    if groups.tables:
        parts.append(RowwiseRMSprop([{"params": groups.tables}], lr=config.learning_rate, beta=config.betas[1]))
    return Combined(parts)
