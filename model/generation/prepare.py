"""Prepare a model for generation: record its steps on a GPU, lay its matrices out for a CPU."""

from math import gcd

import torch
from einops import rearrange
from torch import Tensor, nn

from model.generation.replay import StepRecorder
from model.transformer import HierarchicalTransformer
from utils.compiler import check_cpp_compiler

FEW_ROWS = 256  # up to here one thread for each slice is faster than all threads on one slice after another


class SlicedLinear(nn.Module):
    """A linear map whose outputs are cut into slices (s i o/s), one for each thread: x (b n i) -> (b n o).

    A library computes the product of one row and a matrix on one thread, and a batch of such products on all of them
    (benchmarks/LOG.md). The order of additions changes, so results are equal up to rounding.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        count = gcd(linear.out_features, torch.get_num_threads())
        slices = rearrange(linear.weight.detach(), "(s o) i -> s i o", s=count).contiguous()
        self.slices = nn.Parameter(slices, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if len(rows) > FEW_ROWS:
            out = torch.cat([rows @ weight for weight in self.slices], dim=-1)
        else:
            out = (rows @ self.slices).transpose(0, 1)  # (b n) s o/s; einops takes as long as a small product
        out = out.reshape(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


@torch.inference_mode(False)  # weights that are made in inference mode cannot be compiled
def prepare_for_generation(model: HierarchicalTransformer, compiled: bool = False) -> None:
    """Make a model draw bytes faster. Calling it again changes nothing.

    Inference only: parameter names may change, so do not train or save the model afterwards. On a GPU, steps are
    recorded as CUDA graphs. On a CPU, matrices are stored in the order in which PyTorch reads them, or, with
    `compiled`, steps are compiled, which takes seconds at first.

    Raises:
        UserError: if there is no C++ compiler that works to compile with.
    """
    device = next(model.parameters()).device.type
    if device == "cpu" and compiled:
        check_cpp_compiler("--compile")
    if device == "cpu" and not compiled:
        slice_matrices(model)
        lay_out_matrices(model)
    if device == "cuda" or (device == "cpu" and compiled):
        record_steps(model)


def record_steps(model: HierarchicalTransformer) -> None:
    """Replace the forward pass by one that records and replays single bytes."""
    if not isinstance(model.forward, StepRecorder):
        model.forward = StepRecorder(model)


def slice_matrices(model: HierarchicalTransformer) -> None:
    """Replace linear maps within levels, and the outputs of merges, by a `SlicedLinear`. Others are used in parts."""
    parents = [(module, name) for module in model.levels.modules() for name, _ in module.named_children()]
    parents += [(merge, "to_out") for merge in model.merges.values()]
    for module, name in parents:
        linear = getattr(module, name)
        if isinstance(linear, nn.Linear):
            setattr(module, name, SlicedLinear(linear))


def lay_out_matrices(model: HierarchicalTransformer) -> None:
    """Store matrices that have more outputs than inputs column by column, the order in which a CPU reads them."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features > module.in_features:
            module.weight.data = module.weight.data.t().contiguous().t()
