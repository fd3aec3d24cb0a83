"""Steps of one byte that are recorded once, and replayed: a step is hundreds of small operations, which take less time
than starting them one by one. On a GPU a recording is a CUDA graph, on a CPU what Inductor compiles of them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Cache, HierarchicalTransformer


class Replayed:
    """A model's forward pass, whose steps of one byte are recorded when the same levels compute for the second time,
    and replayed from there. Nothing else changes, but that a cache may not be changed from outside. Without gradients,
    and without xpos, which sometimes scales a cache."""

    def __init__(self, model: HierarchicalTransformer):
        self.model, self.forward, self.levels = model, model.forward, model.config.levels
        self.compiled: dict[tuple, Callable] = {}  # by kind and rows, for all caches

    def __call__(self, ids: Tensor, return_loss: bool = False, cache: Cache | None = None) -> Tensor | tuple:
        usual = return_loss or not cache or ids.shape[1] != 1 or self.model.config.rotary_xpos
        if usual or (torch.is_grad_enabled() and self not in cache):
            return self.forward(ids, return_loss, cache)
        if self not in cache:
            make_static(self.model, cache)
            cache[self] = {}
        kind, steps = self.kind(cache.length), cache[self]
        if kind not in steps:  # libraries wake up, and the padding is cut off
            steps[kind] = None
            return static_step(self.forward, ids, cache)
        if steps[kind] is None:
            steps[kind] = self.graph(ids, cache) if ids.is_cuda else self.code(ids, cache)
        logits = steps[kind](ids)
        cache.length += 1
        return logits

    def kind(self, length: int) -> tuple[int, ...]:
        """What a step is like after so many bytes: the chain in which each level computes, or -1."""
        outputs = ((*divmod(length, level.stride), level.chains) for level in self.levels)
        return tuple(-1 if rest else output % chains for output, rest, chains in outputs)

    def graph(self, ids: Tensor, cache: Cache) -> Callable[[Tensor], Tensor]:
        """The next step as a CUDA graph of this cache."""
        graph, given = torch.cuda.CUDAGraph(), ids.clone()
        with torch.cuda.graph(graph):  # which records, and computes nothing
            logits = static_step(self.forward, given, cache)
        cache.length -= 1

        def replay(ids: Tensor) -> Tensor:
            given.copy_(ids)
            graph.replay()
            return logits.clone()

        return replay

    def code(self, ids: Tensor, cache: Cache) -> Callable[[Tensor], Tensor]:
        """The next step compiled, for this cache and those to come."""
        from torch.fx.experimental.proxy_tensor import make_fx  # takes a while

        kept = {key: len(tensors(value)) for key, value in cache.items()}
        state: list = [cache.position, *(t for key in kept for t in tensors(cache[key]))]

        def step(ids: Tensor, position: Tensor, *state: Tensor) -> tuple[Tensor]:
            copy, parts = Cache(cache), iter(state)
            copy.length, copy.position = cache.length, position
            for key, count in kept.items():
                if count:
                    whole = tuple(next(parts) for _ in range(count))
                    copy[key] = whole if isinstance(cache[key], tuple) else whole[0]
            return (static_step(self.forward, ids, copy),)

        known = (*self.kind(cache.length), len(ids))
        if known not in self.compiled:
            with torch.inference_mode(False), torch.no_grad():  # whose tensors cannot be traced
                like: list = [torch.empty_like(t) for t in (ids.contiguous(), *state)]
                traced = make_fx(step, ONE_ROW, tracing_mode="fake", _allow_non_fake_inputs=True)(*like)
                self.compiled[known] = torch._inductor.compile(traced, like)
        compiled = self.compiled[known]
        return lambda ids: compiled(ids.contiguous(), *state)[0]


def check_compiler() -> None:
    """Raise a ValueError where there is none that Inductor could use."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # heavy, too
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ValueError("compile: got true without a C++ compiler, allowed: where g++ or $CXX can be run") from None


def mm(a: Tensor, b: Tensor) -> Tensor:
    """A product of one row as a sum, compiled for all threads; a library's runs on one (benchmarks/LOG.md)."""
    return (a.unsqueeze(-1) * b).sum(dim=1) if len(a) == 1 else NotImplemented


def addmm(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The same with a bias."""
    return bias + mm(a, b) if len(a) == 1 else NotImplemented


ONE_ROW = {torch.ops.aten.mm.default: mm, torch.ops.aten.addmm.default: addmm}


def make_static(model: HierarchicalTransformer, cache: Cache) -> None:
    """Have the steps to come run the same kernels wherever they are: the position is a tensor, attention masks what a
    ring does not hold yet, the bytes that are kept are padded to more than the model keeps, and nothing is a view."""
    cache.position = torch.tensor([cache.length], device=cache[model].device)
    cache[model] = F.pad(cache[model], (model.config.seq_len + max(model.config.ngrams, default=0), 0))
    for key, value in cache.items():
        if tensors(value):
            cache[key] = value.contiguous() if isinstance(value, Tensor) else tuple(t.contiguous() for t in value)


def static_step(forward: Callable, ids: Tensor, cache: Cache) -> Tensor:
    """Logits (b 1 v) of one more byte of each row (b 1), after which all that the cache holds lies where it lay."""
    before, position = dict(cache), cache.position
    assert isinstance(position, Tensor)  # as `make_static` has it
    logits = forward(ids, cache=cache)
    for key, old in before.items():
        for to, new in zip(tensors(old), tensors(cache[key]), strict=True):
            if to.shape != new.shape:  # once, when the model cuts off the padding
                before[key] = new.contiguous()
            elif to is not new:
                to.copy_(new)
    cache.update(before)
    cache.position = position.add_(1)
    return logits


def tensors(value) -> tuple[Tensor, ...]:
    """Those that a module keeps."""
    return value if isinstance(value, tuple) else (value,) if isinstance(value, Tensor) else ()
