"""What each level adds to a model's predictions, found by leaving the level out."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from model import HierarchicalTransformer
from model.levels import Merge, align


def levels_to_leave_out(model: HierarchicalTransformer) -> list[int]:
    """All levels, less one that predicts alone: without it there is no prediction."""
    return [i for i in range(len(model.levels)) if model.heads != (i,)]


@contextmanager
def averaging(model: HierarchicalTransformer) -> Generator[dict[nn.Module, Tensor]]:
    """Of the passes within, what the model's parts said on average over all positions, filled in at the end.

    For each merge the mean of its normed concatenation (sum of dims), for each predicting level's last norm that of its
    output (d).
    """
    sums: dict[nn.Module, Tensor] = {}
    counts: dict[nn.Module, int] = {}
    means: dict[nn.Module, Tensor] = {}

    def add(module: nn.Module, t: Tensor) -> None:
        sums[module] = sums.get(module, 0) + t.sum(dim=(0, 1))
        counts[module] = counts.get(module, 0) + t.shape[0] * t.shape[1]

    def of_merge(merge: Merge, inputs: tuple) -> None:
        tokens, n = inputs[:2]
        levels = [align(tokens[i], stride, merge.stride, n) for i, stride in enumerate(merge.strides)]
        add(merge, merge.norm(torch.cat(levels, dim=-1)))

    hooks = [merge.register_forward_pre_hook(of_merge) for merge in model.merges.values()]
    hooks += [model.norms[str(i)].register_forward_hook(lambda norm, _, output: add(norm, output)) for i in model.heads]
    try:
        yield means
    finally:
        for hook in hooks:
            hook.remove()
    means |= {module: sums[module] / counts[module] for module in sums}


@contextmanager
def without(model: HierarchicalTransformer, i: int, means: dict[nn.Module, Tensor]) -> Generator[None]:
    """Within, level i says the same at every position, to every merge and to the logits: its mean, from `averaging`.

    Neither its tokens nor zeros in their place: a merge divides all levels by their common root mean square, so that
    zeros would make the other levels louder, and it has learned to build on what the level always says. Here that
    division is as it was, and only what the level knows of the text is gone. A level that nothing listens to changes
    nothing, to the bit. Weights and hooks are put back at the end.
    """
    touched = [p for merge in model.merges.values() for p in (merge.norm.weight, merge.to_hidden.bias)]
    saved, hooks = [p.detach().clone() for p in touched], []
    try:
        for merge in model.merges.values():
            own = slice(sum(merge.dims[:i]), sum(merge.dims[: i + 1]))
            merge.to_hidden.bias.data += merge.to_hidden.weight.data[:, own] @ means[merge][own]
            merge.norm.weight.data[own] = 0
        if i in model.heads:
            norm = model.norms[str(i)]
            hooks.append(norm.register_forward_hook(lambda norm, _, output: means[norm].expand_as(output)))
        yield
    finally:
        for p, value in zip(touched, saved, strict=True):
            p.data.copy_(value)
        for hook in hooks:
            hook.remove()
