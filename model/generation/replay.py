"""Record the steps of generation once, then replay them.

A step of one byte is hundreds of small operations, and starting them one by one takes longer than computing them. On a
GPU a recording is a CUDA graph, on a CPU it is compiled code.

The simple version of a recording is `static_step` (model/generation/static.py), which computes the same step anew.
"""

from collections.abc import Callable
from math import lcm

import torch
from torch import Tensor

from model.generation.cache import Cache, tensor_slots
from model.generation.compiled_step import CompiledStep, StepModule, load_or_compile
from model.generation.static import make_static, read_next_bytes, static_step
from model.segments import FixedStride
from model.transformer import HierarchicalTransformer
from model.words import WordEnds

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
        self.compiled: dict[tuple, CompiledStep] = {}  # by stride phase and inputs, for all caches

        phases = lcm(*(level.compression for level in self.levels if isinstance(level.segments, FixedStride)))
        phases *= 2 ** sum(isinstance(level.segments, WordEnds) for level in self.levels)  # each runs or does not
        self.can_record = not model.config.rotary_xpos and phases <= MOST_RECORDINGS

    def __call__(self, ids: Tensor, return_loss: bool = False, cache: Cache | None = None) -> Tensor | tuple:
        if cache is None or cache.is_empty or return_loss or ids.shape[1] != 1 or not self.can_record:
            return self.forward(ids, return_loss, cache)
        if torch.is_grad_enabled() and cache.position is None:
            return self.forward(ids, return_loss, cache)

        if cache.recording is None:  # a new cache, or a copy of one
            make_static(self.model, cache)
        read_next_bytes(self.model, ids, cache)

        steps = cache.recording.steps
        phase = self.stride_phase(cache)
        if phase not in steps:  # run it once, so that libraries are loaded and shapes are final
            steps[phase] = None
            return static_step(self.forward, ids, cache)
        step = steps[phase]
        if step is None:
            step = steps[phase] = self.cuda_graph(ids, cache) if ids.is_cuda else self.compiled_step(ids, cache)
        logits = step(ids.contiguous())
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
        step = StepModule(self.model, self.forward, cache)
        state = [holder[key] for holder, key in tensor_slots(cache)]
        inputs = [ids.contiguous(), *state, *step.weights().values()]

        phase = self.stride_phase(cache)
        known = (phase, self.model.training, *((t.shape, t.dtype) for t in inputs))
        if known not in self.compiled:
            self.compiled[known] = load_or_compile(step, inputs, phase)
        return self.compiled[known].bind(inputs)
