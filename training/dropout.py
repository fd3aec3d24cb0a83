"""Faster dropout on CPUs: one 64-bit random integer serves four elements."""

from math import ceil

import torch
from torch import Tensor, nn

RESOLUTION = 2**16  # an element gets 16 random bits, so probabilities are rounded to multiples of 1 / RESOLUTION


@torch.library.custom_op("training::random_bits", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def random_bits(like: Tensor) -> Tensor:
    """16 random bits for each element of a tensor on the CPU: int16, of the same shape.

    A custom op, since Inductor would generate the bits one by one. It takes the tensor so that Inductor does not merge
    two calls.
    """
    words = torch.empty(ceil(like.numel() / 4), dtype=torch.int64).random_(-(2**63), None)  # the full range
    return words.view(torch.int16)[: like.numel()].view(like.shape)


@random_bits.register_fake
def _(like: Tensor) -> Tensor:
    return like.new_empty(like.shape, dtype=torch.int16)


class BulkDropout(nn.Dropout):
    """`nn.Dropout`, out of place, with 16 random bits for each element on a CPU, and PyTorch's own on other devices.

    PyTorch draws elements one by one on a CPU, which takes an eighth of a training step (benchmarks/LOG.md).
    """

    def forward(self, input: Tensor) -> Tensor:
        dropped = min(round(self.p * RESOLUTION), RESOLUTION - 1)
        if not self.training or dropped == 0 or input.device.type != "cpu":
            return super().forward(input)
        kept = random_bits(input.detach()) >= dropped - RESOLUTION // 2
        return input * (kept.to(input.dtype) * (RESOLUTION / (RESOLUTION - dropped)))


def draw_dropout_in_bulk(model: nn.Module) -> None:
    """Replace every `nn.Dropout` of a model by a `BulkDropout`. Weights and their names stay."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout and not child.inplace:
                setattr(module, name, BulkDropout(child.p))
