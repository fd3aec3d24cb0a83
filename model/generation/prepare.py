"""A model made ready to draw one byte after another: on a CPU, where reading the weights is most of the work, linear
maps are stored for it."""

from math import gcd

import torch
from einops import rearrange
from torch import Tensor, nn

from model import HierarchicalTransformer
from model.generation.replay import Replayed, check_compiler

FEW = 256  # rows, up to which a thread for each slice is faster than all of them for one slice after another


class SlicedLinear(nn.Module):
    """A linear map over x (b n i) -> (b n o) as slices of its outputs, (s i o/s), one for each thread.

    A library's product of one row and a matrix runs on one thread, a batch of them on all (benchmarks/LOG.md). Sums
    are taken in another order, so that results are equal to rounding only.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        count = gcd(linear.out_features, torch.get_num_threads())
        slices = rearrange(linear.weight.detach(), "(s o) i -> s i o", s=count).contiguous()
        self.slices, self.bias = nn.Parameter(slices, requires_grad=False), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if len(rows) > FEW:
            out = torch.cat([rows @ weight for weight in self.slices], dim=-1)
        else:
            out = (rows @ self.slices).transpose(0, 1)  # (b n) s o/s; einops takes as long as a small product
        out = out.reshape(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def lay_out_for_decoding(model: HierarchicalTransformer, compiled: bool = False) -> None:
    """Prepare a model for drawing one byte after another: on a GPU its steps are replayed, on a CPU, too, if they shall
    be `compiled` first, which takes some seconds; else its matrices are stored as a CPU reads them fastest. Not for
    training, and not to be saved: names change. Twice is as once.

    Matrices of its levels and what merges give out become `SlicedLinear`; others that are wider than long, which the
    model reads in parts, are stored column by column.

    Raises:
        ValueError: when there is nothing to compile with.
    """
    kind = next(model.parameters()).device.type
    if kind == "cpu" and compiled:
        check_compiler()
    if kind == "cuda" or (kind == "cpu" and compiled):
        model.forward = model.forward if isinstance(model.forward, Replayed) else Replayed(model)
    elif kind == "cpu":
        slice_matrices(model)


def slice_matrices(model: HierarchicalTransformer) -> None:
    """Store matrices as they are read fastest, row by row of what goes in."""
    called = [(module, name) for module in model.levels.modules() for name, _ in module.named_children()]
    for module, name in [*called, *((merge, "to_out") for merge in model.merges.values())]:
        if isinstance(linear := getattr(module, name), nn.Linear):
            setattr(module, name, SlicedLinear(linear))
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features > module.in_features:
            module.weight.data = module.weight.data.t().contiguous().t()
