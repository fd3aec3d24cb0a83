"""What a run watches in itself beside its losses: speed, memory, and the scales that tell of trouble to come."""

import resource
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn

from training.parallel import whole
from training.speed import matmul_peak


class Monitor:
    """Figures of the steps since the last look at them.

    Args:
        train_flops_per_byte: floating-point operations of a training step, a byte.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, train_flops_per_byte: float):
        self.accelerator, self.flops = accelerator, train_flops_per_byte
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
        self.peak = matmul_peak(accelerator.device, precision) * accelerator.num_processes
        self.scales: dict[str, torch.Tensor] = {}
        for level, module in zip(model.config.levels, model.levels, strict=True):
            *_, last = module.blocks.values()
            last.register_forward_hook(self._scale_of(f"activation/{level.compression}x"))
        self.steps, self.seconds = 0, {"step": 0.0, "data": 0.0}

    def _scale_of(self, name: str):
        def keep(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            if module.training:
                self.scales[name] = output.detach().float().square().mean().sqrt()

        return keep

    @contextmanager
    def clock(self, what: str) -> Generator[None]:
        """Time spent inside is that of a "step", or, within one, of its "data"."""
        begun = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - begun
        self.steps += what == "step"

    def figures(self, bytes_per_step: int) -> dict[str, float]:
        """Of the steps since the last call: speed, its share of the peak, waiting for data, and peak memory."""
        seconds, waited = self.seconds["step"], self.seconds["data"]
        speed = self.steps * bytes_per_step / seconds
        figures = {
            "bytes_per_second": round(speed),
            "mfu": round(speed * self.flops / self.peak, 4),
            "data_wait": round(waited / seconds, 5),
            "peak_memory_gib": round(peak_memory(self.accelerator.device) / 2**30, 3),
        }
        self.steps, self.seconds = 0, dict.fromkeys(self.seconds, 0.0)
        return figures


def peak_memory(device: torch.device) -> int:
    """The most bytes that were in use on a GPU, elsewhere by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used


class Updates:
    """How far the optimizer moves the weights: the norm of a step's change over the norm of what it changed."""

    def __init__(self, model: nn.Module):
        self.parameters = list(model.parameters())
        self.before = [p.detach().clone() for p in self.parameters]

    def ratio(self) -> float:
        """Of the step since this object was made."""
        moved = torch._foreach_sub([p.detach() for p in self.parameters], self.before)
        norms = [torch.nn.utils.get_total_norm(tensors) for tensors in (moved, self.before)]
        change, before = map(whole, norms)
        return (change / before).item()
