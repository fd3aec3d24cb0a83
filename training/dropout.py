"""Dropout whose chance a CPU draws for four elements at once."""

from math import ceil

import torch
from torch import Tensor, nn

RESOLUTION = 2**16  # values of the chance of an element; a probability is rounded to so many parts


@torch.library.custom_op("training::random_bits", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def random_bits(like: Tensor) -> Tensor:
    """16 random bits for each element of a tensor on the CPU: int16, in its shape. An operation of its own, because a
    compiler draws one by one; of the tensor, because it makes one call of two whose arguments are equal."""
    words = torch.empty(ceil(like.numel() / 4), dtype=torch.int64).random_(-(2**63), None)  # all of their 64 bits
    return words.view(torch.int16)[: like.numel()].view(like.shape)


@random_bits.register_fake
def _(like: Tensor) -> Tensor:
    return like.new_empty(like.shape, dtype=torch.int16)


class BulkDropout(nn.Dropout):
    """`nn.Dropout`, out of place, with 16 random bits for an element on a CPU, where PyTorch draws one element after
    another, which takes an eighth of a training step (benchmarks/LOG.md). Elsewhere it is PyTorch's."""

    def forward(self, input: Tensor) -> Tensor:
        dropped = min(round(self.p * RESOLUTION), RESOLUTION - 1)
        if not self.training or dropped == 0 or input.device.type != "cpu":
            return super().forward(input)
        kept = random_bits(input.detach()) >= dropped - RESOLUTION // 2
        return input * (kept.to(input.dtype) * (RESOLUTION / (RESOLUTION - dropped)))


def draw_dropout_in_bulk(model: nn.Module) -> None:
    """Have all `nn.Dropout` of a model, none of which has weights, drawn so."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout and not child.inplace:
                setattr(module, name, BulkDropout(child.p))
