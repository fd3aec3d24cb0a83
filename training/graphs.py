"""Drawing bytes on a GPU, where a step's hundreds of small kernels take less time than starting them one by one: they
are recorded once, as a CUDA graph, and replayed."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Cache, HierarchicalTransformer


class Replayed:
    """A model's forward pass, whose steps of one byte are replayed from the second time on that a byte stands in the
    same place of the longest compression, so that the same levels compute. Nothing else changes, but that a cache may
    not be changed from outside. Without gradients, and without xpos, which now and then scales what is kept."""

    def __init__(self, model: HierarchicalTransformer):
        self.model, self.forward = model, model.forward

    def __call__(self, ids: Tensor, return_loss: bool = False, cache: Cache | None = None) -> Tensor | tuple:
        usual = return_loss or not cache or ids.shape[1] != 1 or torch.is_grad_enabled()
        if usual or self.model.config.rotary_xpos:
            return self.forward(ids, return_loss, cache)
        if self not in cache:
            make_static(self.model, cache)
            cache[self] = {}
        place, graphs = cache.length % max(self.model.config.per_level("hierarchies")), cache[self]
        if place not in graphs:  # libraries wake up before they are recorded
            graphs[place] = None
            return static_step(self.forward, ids, cache)
        if graphs[place] is None:
            graph, given = torch.cuda.CUDAGraph(), ids.clone()
            with torch.cuda.graph(graph):  # which records, and computes nothing
                graphs[place] = graph, given, static_step(self.forward, given, cache)
            cache.length -= 1
        graph, given, logits = graphs[place]
        given.copy_(ids)
        graph.replay()
        cache.length += 1
        return logits.clone()


def make_static(model: HierarchicalTransformer, cache: Cache) -> None:
    """Have the steps to come run the same kernels wherever they are: the position is a tensor, attention masks what a
    ring does not hold yet, and the bytes that are kept are padded to more than the model keeps."""
    cache.position = torch.tensor([cache.length], device=cache[model].device)
    cache[model] = F.pad(cache[model], (model.config.seq_len + max(model.config.ngrams, default=0), 0))


def static_step(forward: Callable, ids: Tensor, cache: Cache) -> Tensor:
    """Logits (b 1 v) of one more byte of each row (b 1), after which all that the cache holds lies where it lay."""
    before, position = dict(cache), cache.position
    assert isinstance(position, Tensor)  # as `make_static` has it
    logits = forward(ids, cache=cache)
    for key, old in before.items():
        for to, new in zip(tensors(old), tensors(cache[key]), strict=True):
            if to.shape != new.shape:  # once, when the model cuts off the padding
                before[key] = new
            elif to is not new:
                to.copy_(new)
    cache.update(before)
    cache.position = position.add_(1)
    return logits


def tensors(value) -> tuple[Tensor, ...]:
    """Those that a module keeps."""
    return value if isinstance(value, tuple) else (value,) if isinstance(value, Tensor) else ()
