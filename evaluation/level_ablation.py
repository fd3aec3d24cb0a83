"""What each level adds to a model's predictions, measured by replacing the level by its mean."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from model import HierarchicalTransformer
from model.merge import LinearMerge, Merge
from model.segments import align


def removable_levels(model: HierarchicalTransformer) -> list[int]:
    """Levels that can be replaced: all, except one that predicts alone."""
    return [i for i in range(len(model.levels)) if model.predicting_levels != (i,)]


class RunningMean:
    """Means over batch and positions of what modules pass on: values (b k d) -> (d)."""

    def __init__(self):
        self.sums: dict[nn.Module, Tensor] = {}
        self.counts: dict[nn.Module, int] = {}

    def add(self, module: nn.Module, values: Tensor) -> None:
        total = values.sum(dim=(0, 1))
        count = values.shape[0] * values.shape[1]
        self.sums[module] = self.sums[module] + total if module in self.sums else total
        self.counts[module] = self.counts.get(module, 0) + count

    def means(self) -> dict[nn.Module, Tensor]:
        return {module: total / self.counts[module] for module, total in self.sums.items()}


@contextmanager
def measure_means(model: HierarchicalTransformer) -> Generator[dict[nn.Module, Tensor]]:
    """Average what levels pass on during the forward passes inside; the result is filled in at the end.

    For each merge by a network, the mean of its normed concatenation (sum of dims). For the norm of each level in a
    linear merge, and that of each predicting level, the mean of its output (d).
    """
    running = RunningMean()
    means: dict[nn.Module, Tensor] = {}

    def add_merge_input(merge: Merge, inputs: tuple) -> None:
        tokens, units = inputs[:2]
        aligned = [align(tokens[i], units[i], units[merge.common]) for i in merge.sources]
        running.add(merge, merge.norm(torch.cat(aligned, dim=-1)))

    def add_output(norm: nn.Module, inputs: tuple, output: Tensor) -> None:
        running.add(norm, output)

    hooks = [merge.register_forward_pre_hook(add_merge_input) for merge in network_merges(model)]
    norms: list[nn.Module] = [norm for merge in linear_merges(model) for norm in merge.norms.values()]
    norms += [model.norms[str(i)] for i in model.predicting_levels]
    hooks += [norm.register_forward_hook(add_output) for norm in norms]
    try:
        yield means
    finally:
        for hook in hooks:
            hook.remove()
    means.update(running.means())


@contextmanager
def level_replaced_by_mean(model: HierarchicalTransformer, i: int, means: dict[nn.Module, Tensor]) -> Generator[None]:
    """Inside, level i passes its mean on at every position, to every merge and to the logits.

    The mean comes from `measure_means`. Zeros would not do: a merge divides all levels by their common root mean
    square, so zeros would scale the other levels up, and later layers have learned to rely on the level's mean. Here
    that division stays as it was, and only what the level knows about the text is gone. A level that nothing reads
    changes nothing, bit for bit. Weights and hooks are restored at the end.
    """
    merges = [merge for merge in network_merges(model) if i in merge.sources]
    touched = [p for merge in merges for p in (merge.norm.weight, merge.to_hidden.bias)]
    saved = [p.detach().clone() for p in touched]
    hooks = []
    try:
        # In a merge by a network: move the level's mean contribution into the bias, and its weights to zero.
        for merge in merges:
            place = merge.sources.index(i)
            first = sum(merge.dims[:place])
            own = slice(first, first + merge.dims[place])
            merge.to_hidden.bias.data += merge.to_hidden.weight.data[:, own] @ means[merge][own]
            merge.norm.weight.data[own] = 0

        # In a linear merge, and in the logits: replace the level's output.
        norms: list[nn.Module] = [m.norms[str(i)] for m in linear_merges(model) if str(i) in m.norms]
        if i in model.predicting_levels:
            norms.append(model.norms[str(i)])
        for norm in norms:
            hooks.append(norm.register_forward_hook(lambda norm, inputs, output: means[norm].expand_as(output)))
        yield
    finally:
        for p, value in zip(touched, saved, strict=True):
            p.data.copy_(value)
        for hook in hooks:
            hook.remove()


def network_merges(model: HierarchicalTransformer) -> list[Merge]:
    """The merges by a network."""
    return [merge for merge in model.merges.values() if isinstance(merge, Merge)]


def linear_merges(model: HierarchicalTransformer) -> list[LinearMerge]:
    """The merges by linear maps."""
    return [merge for merge in model.merges.values() if isinstance(merge, LinearMerge)]
