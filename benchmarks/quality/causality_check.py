"""Check that a contender's logits at t, which predict byte t + 1, depend on all bytes up to t and on no others."""

from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks.contenders import random_ids

Model = TypeVar("Model", bound=nn.Module)


def add_noise_to_weights(model: Model) -> Model:
    """Add noise to all weights in place and return the model: a path whose weights begin at zero would be hidden."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@torch.no_grad()
def check_causality(name: str, contender: nn.Module, seq_len: int, positions: int = 8) -> None:
    """Change bytes at random positions and see which logits change, in evaluation mode and float32.

    Replacing all bytes from j on must leave the logits before j as they are, within 1e-5 of the largest logit.
    Replacing byte j alone must change the logits at j and some of those after j.

    Raises:
        ValueError: names the contender, if its logits depend on later bytes or do not depend on earlier ones.
    """
    was_training = contender.training
    device = next(contender.parameters()).device
    contender.eval()
    ids = random_ids(1, seq_len, device)[:, :seq_len]
    logits = contender(ids)
    tolerance = 1e-5 * max(1.0, logits.abs().max().item())

    def changed_logits(other_ids: Tensor) -> Tensor:
        """At which positions another text has other logits: (n) bool."""
        return (contender(other_ids) - logits).abs().amax(dim=(0, 2)) > tolerance

    random_positions = torch.randint(0, seq_len, (positions,)).tolist()
    for j in sorted({0, seq_len - 1, *random_positions}):
        shift = 1 + random_ids(1, seq_len, device)[:, :seq_len] % 255
        other_bytes = (ids + shift) % 256  # each differs from the byte that it replaces
        by_all = changed_logits(torch.cat((ids[:, :j], other_bytes[:, j:]), dim=1))
        by_one = changed_logits(torch.cat((ids[:, :j], other_bytes[:, j : j + 1], ids[:, j + 1 :]), dim=1))
        if by_all[:j].any():
            raise ValueError(f"{name} is not causal: logits before {j} depend on bytes from {j} on")
        if not by_one[j]:
            raise ValueError(f"{name} ignores its input: logits at {j} do not depend on byte {j}")
        if j < seq_len - 1 and not by_one[j + 1 :].any():
            raise ValueError(f"{name} has no memory: no logits after {j} depend on byte {j}")
    contender.train(was_training)
