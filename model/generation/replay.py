"""Record the steps of generation once, then replay them.

A step of one byte is hundreds of small operations, and starting them one by one takes longer than computing them. On a
GPU a recording is a CUDA graph, on a CPU it is code that Inductor compiles.

Recordings need tensors whose shapes and addresses never change. So the first step makes the cache static: positions are
tensors, slots of a ring that are not yet written are masked out, and each new value is copied into the tensor that held
the old one. The simple version is `static_step`, which does exactly that without recording anything.
"""

from collections.abc import Callable
from math import lcm

import torch
from torch import Tensor

from model.generation.cache import Cache, map_tensors, tensor_slots
from model.segments import FixedStride
from model.transformer import HierarchicalTransformer

LEAST_SHARED = 1 << 18  # weights of a matrix whose product with one row is worth several threads (benchmarks/LOG.md)
MOST_RECORDINGS = 64  # with strides such as 5, 7 and 9, all levels come round together only after 315 bytes


class StepRecorder:
    """A model's forward pass that records steps of one byte, and replays them.

    A step is recorded when the same levels run for the second time. Everything else runs as before: first passes,
    passes with gradients or a loss, and models with xPos, which now and then rescale their cache. A cache that is
    replayed must not be changed from outside.
    """

    def __init__(self, model: HierarchicalTransformer):
        self.model = model
        self.forward = model.forward
        self.levels = model.config.levels
        self.compiled: dict[tuple, Callable] = {}  # by stride phase and rows, for all caches

        phases = lcm(*(level.compression for level in self.levels if isinstance(level.segments, FixedStride)))
        self.can_record = not model.config.rotary_xpos and phases <= MOST_RECORDINGS

    def __call__(self, ids: Tensor, return_loss: bool = False, cache: Cache | None = None) -> Tensor | tuple:
        if cache is None or cache.is_empty or return_loss or ids.shape[1] != 1 or not self.can_record:
            return self.forward(ids, return_loss, cache)
        if torch.is_grad_enabled() and cache.position is None:
            return self.forward(ids, return_loss, cache)

        if cache.position is None:
            make_static(self.model, cache)
        read_next_bytes(self.model, ids, cache)
        phase = self.stride_phase(cache)
        if phase not in cache.recorded:  # run it once, so that libraries are loaded and shapes are final
            cache.recorded[phase] = None
            return static_step(self.forward, ids, cache)
        if cache.recorded[phase] is None:
            cache.recorded[phase] = self.cuda_graph(ids, cache) if ids.is_cuda else self.compiled_step(ids, cache)
        logits = cache.recorded[phase](ids)
        cache.length += 1
        return logits

    def stride_phase(self, cache: Cache) -> tuple[int, ...]:
        """What distinguishes the next step from others: for each level the chain that it runs in, or -1."""
        phase = []
        for level, level_cache in zip(self.levels, cache.levels.values(), strict=True):
            unit = cache.length // level.stride
            phase.append(unit % level.chains if level_cache.runs else -1)
        return tuple(phase)

    def cuda_graph(self, ids: Tensor, cache: Cache) -> Callable[[Tensor], Tensor]:
        """The next step as a CUDA graph on the tensors of this cache."""
        graph = torch.cuda.CUDAGraph()
        static_ids = ids.clone()
        with torch.cuda.graph(graph):  # records, and computes nothing
            logits = static_step(self.forward, static_ids, cache)
        cache.length -= 1

        def replay(ids: Tensor) -> Tensor:
            static_ids.copy_(ids)
            graph.replay()
            return logits.clone()

        return replay

    def compiled_step(self, ids: Tensor, cache: Cache) -> Callable[[Tensor], Tensor]:
        """The next step as compiled code, which later caches of as many rows share."""
        state = [holder[key] for holder, key in tensor_slots(cache)]
        known = (*self.stride_phase(cache), len(ids))
        if known not in self.compiled:
            self.compiled[known] = self.compile(ids, cache, state)
        compiled = self.compiled[known]
        return lambda ids: compiled(ids.contiguous(), *state)[0]

    def compile(self, ids: Tensor, cache: Cache, state: list[Tensor]) -> Callable:
        """Trace the next step as a function of ids and all tensors of the cache, and compile it.

        What calls its parts is compiled, too: in Python that takes longer than the parts of a small model.
        """
        from torch.fx.experimental.proxy_tensor import make_fx  # the import takes a while

        def step(ids: Tensor, *state: Tensor) -> tuple[Tensor]:
            traced_tensors = iter(state)
            traced = map_tensors(cache, lambda t: next(traced_tensors))
            return (static_step(self.forward, ids, traced),)

        with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode cannot be traced
            like: list = [torch.empty_like(t) for t in (ids.contiguous(), *state)]
            traced = make_fx(step, REPLACED, tracing_mode="fake", _allow_non_fake_inputs=True)(*like)
            return torch._inductor.compile(traced, like, options=COMPILER)


def is_shared(a: Tensor, b: Tensor) -> bool:
    """Whether all threads together compute a product of one row faster than a library, which does so on one."""
    return len(a) == 1 and b.numel() >= LEAST_SHARED and torch.get_num_threads() > 1


def one_row_product(a: Tensor, b: Tensor) -> Tensor:
    """A product of one row as a sum, which compiles for all threads."""
    return (a.unsqueeze(-1) * b).sum(dim=1) if is_shared(a, b) else NotImplemented


def one_row_product_with_bias(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The same, with a bias."""
    return bias + one_row_product(a, b) if is_shared(a, b) else NotImplemented


def one_query_attention(q: Tensor, k: Tensor, v: Tensor, *args, attn_mask: Tensor | None = None, **kwargs) -> tuple:
    """Attention of one query as it is defined, which compiles to loops. The library's blocks suit many queries."""
    is_plain = q.shape[-2] == 1 and k.shape[1] == q.shape[1] and not args and not kwargs
    if not is_plain:
        return NotImplemented
    scores = (q * q.shape[-1] ** -0.5 * k).sum(dim=-1)  # (b h j)
    if attn_mask is not None:
        scores = scores + attn_mask[..., 0, :]
    out = (scores.softmax(dim=-1).unsqueeze(-1) * v).sum(dim=-2, keepdim=True)
    return out, scores.logsumexp(dim=-1, keepdim=True)


def sum_of_few_rows(table: Tensor, rows: Tensor, first: Tensor, *args) -> tuple:
    """The sum of as many rows of a table for each byte, as `Tables` reads them, which compiles to a loop."""
    sums = table[rows.unflatten(0, (len(first), -1))].sum(dim=1)
    return sums, first, first, first  # the others are for a gradient


COMPILER = {
    # No Python between the parts.
    "cpp_wrapper": True,
    # Compute once what is read twice. By default it may be computed for each reader, as a query for each of its keys.
    "realize_reads_threshold": 2,
    "realize_opcount_threshold": 1,
    # With buffers reused in place, torch 2.13 gave wrong logits (words in tests/model/generation/test_replay.py).
    "inplace_buffers": False,
}

# Operations of PyTorch, and what is faster than them where a step is compiled.
REPLACED = {
    torch.ops.aten.mm.default: one_row_product,
    torch.ops.aten.addmm.default: one_row_product_with_bias,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default: one_query_attention,
    torch.ops.aten._embedding_bag_forward_only.default: sum_of_few_rows,
    torch.ops.aten._embedding_bag.default: sum_of_few_rows,
}


def read_next_bytes(model: HierarchicalTransformer, ids: Tensor, cache: Cache) -> None:
    """Find out what depends on the bytes themselves, ids (b 1), before the step: a recording cannot look at them.

    That is which levels run, and what the match model finds.
    """
    if cache.matches is not None:
        assert cache.matches.found is not None
        cache.matches.found.copy_(cache.matches.add(model.embedding.match_model, ids, cache.length))

    for level, level_cache in zip(model.config.levels, cache.levels.values(), strict=True):
        if isinstance(level.segments, FixedStride):
            level_cache.runs = level.segments.ends_unit(cache.length)
            continue
        assert level_cache.words is not None and level_cache.ends_unit is not None and level_cache.unit is not None
        units = level.segments.step(ids[:, 0], level_cache.words, cache.length)
        ends_unit = [unit is not None for unit in units]
        level_cache.runs = any(ends_unit)
        level_cache.ends_unit.copy_(torch.tensor(ends_unit))
        level_cache.unit.copy_(torch.tensor([unit or 0 for unit in units]))


def make_static(model: HierarchicalTransformer, cache: Cache) -> None:
    """Prepare a cache for recorded steps: positions become tensors, and none of its tensors is a view."""
    device = model.to_logits.weight.device
    cache.position = torch.tensor([cache.length], device=device)
    model.embedding.index_matches(cache)
    if cache.matches is not None:
        rows, contexts, _ = cache.matches.hashed.shape
        matches = contexts * model.embedding.match_model.per_context
        cache.matches.found = torch.zeros(rows, 1, matches, dtype=torch.long, device=device)
    for level_cache in cache.levels.values():
        if level_cache.words is not None:
            level_cache.ends_unit = torch.zeros(len(level_cache.words), dtype=torch.bool, device=device)
            level_cache.unit = torch.zeros(len(level_cache.words), dtype=torch.long, device=device)
    for holder, key in tensor_slots(cache):
        holder[key] = holder[key].contiguous()


def static_step(forward: Callable, ids: Tensor, cache: Cache) -> Tensor:
    """Logits (b 1 v) of one more byte of each row (b 1). Every tensor of the cache keeps its address."""
    before = [holder[key] for holder, key in tensor_slots(cache)]
    logits = forward(ids, cache=cache)
    for old, (holder, key) in zip(before, tensor_slots(cache), strict=True):
        new = holder[key]
        if old is not new:
            old.copy_(new)
            holder[key] = old
    return logits
