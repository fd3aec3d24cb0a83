"""Whether a contender's logits at t, which predict byte t + 1, depend on the bytes up to t, and on no others."""

import torch
from torch import nn

from benchmarks.contenders import random_ids


def noisy(contender: nn.Module) -> nn.Module:
    """The same with noise on all weights, so that no path hides behind one that begins at zero."""
    with torch.no_grad():
        for p in contender.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return contender


@torch.no_grad()
def check_causality(name: str, contender: nn.Module, n: int, positions: int = 8) -> None:
    """Change bytes at drawn positions of a text of n bytes and see which logits move, in evaluation mode and float32.

    Other bytes from j on must leave the logits before j as they are, within 1e-5 of the largest; another byte j alone
    must move those at j, and some of those after it.

    Raises:
        ValueError: that names the contender, when it sees what it is to predict, or does not see what it may.
    """
    was_training, device = contender.training, next(contender.parameters()).device
    contender.eval()
    ids = random_ids(1, n, device)[:, :n]
    logits = contender(ids)
    tolerance = 1e-5 * max(1.0, logits.abs().max().item())

    def moved(changed: torch.Tensor) -> torch.Tensor:
        """Which logits another text changes: (n) bool."""
        return (contender(changed) - logits).abs().amax(dim=(0, 2)) > tolerance

    for j in sorted({0, n - 1, *torch.randint(0, n, (positions,)).tolist()}):
        others = (ids + 1 + random_ids(1, n, device)[:, :n] % 255) % 256  # not one of them the same
        by_all = moved(torch.cat((ids[:, :j], others[:, j:]), dim=1))
        by_one = moved(torch.cat((ids[:, :j], others[:, j : j + 1], ids[:, j + 1 :]), dim=1))
        if by_all[:j].any():
            wrong = f"logits before {j} that depend on bytes from {j} on"
        elif not by_one[j]:
            wrong = f"logits at {j} that do not depend on byte {j}"
        elif j < n - 1 and not by_one[j + 1 :].any():
            wrong = f"logits after {j} of which none depends on byte {j}"
        else:
            continue
        raise ValueError(f"contender: {name} gives {wrong}, allowed: logits at t that depend on the bytes up to t")
    contender.train(was_training)
