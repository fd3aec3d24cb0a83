"""Dropout whose chance a CPU draws for four elements at once."""

from math import ceil

import torch
from torch import Tensor, nn

RESOLUTION = 2**16  # values of the chance of an element; a probability is rounded to so many parts


class BulkDropout(nn.Dropout):
    """`nn.Dropout`, out of place, with 16 random bits for an element on a CPU, where PyTorch draws one element after
    another, which takes an eighth of a training step (benchmarks/NOTES.md). Elsewhere, and where it is compiled, it is
    PyTorch's."""

    def forward(self, input: Tensor) -> Tensor:
        dropped = min(round(self.p * RESOLUTION), RESOLUTION - 1)
        if not self.training or dropped == 0 or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        drawn = torch.empty(ceil(input.numel() / 4), dtype=torch.int64).random_(-(2**63), None)  # all of its 64 bits
        kept = drawn.view(torch.int16)[: input.numel()].view(input.shape) >= dropped - RESOLUTION // 2
        return input * (kept.to(input.dtype) * (RESOLUTION / (RESOLUTION - dropped)))


def draw_dropout_in_bulk(model: nn.Module) -> None:
    """Have all `nn.Dropout` of a model, none of which has weights, drawn so."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout and not child.inplace:
                setattr(module, name, BulkDropout(child.p))
