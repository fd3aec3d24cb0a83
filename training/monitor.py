"""What a run measures besides its losses: speed, memory, and magnitudes that announce trouble."""

import resource
import sys

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from model import HierarchicalTransformer
from training.optimizer import parameters_but_tables
from training.parallel import full_tensor
from training.precisions import DTYPES
from training.speed import matmul_peak
from training.step import StepResult


def watch_activations(model: HierarchicalTransformer) -> dict[str, Tensor]:
    """The root mean square of each level's last output in the latest training pass, by name, such as "activation/4x".

    Forward hooks keep the dict up to date.
    """
    activations: dict[str, Tensor] = {}

    def hook_for(name: str):
        def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if module.training:
                activations[name] = output.detach().float().square().mean().sqrt()

        return keep

    for level, module in zip(model.config.levels, model.levels, strict=True):
        *_, last_block = module.blocks.values()
        last_block.register_forward_hook(hook_for(f"activation/{level.compression}x"))
    return activations


class SpeedMeter:
    """Speed over the steps since it was last read.

    Args:
        bytes_per_step: of all processes together.
        flops_per_byte: floating-point operations of a training step, divided by its bytes.
    """

    def __init__(self, accelerator: Accelerator, bytes_per_step: int, flops_per_byte: float):
        self.accelerator = accelerator
        self.bytes_per_step = bytes_per_step
        self.flops_per_byte = flops_per_byte
        peak = matmul_peak(accelerator.device, DTYPES[accelerator.mixed_precision])
        self.peak_flops = peak * accelerator.num_processes
        self.reset()

    def reset(self) -> None:
        """Forget all steps so far."""
        self.steps = 0
        self.seconds = 0.0
        self.data_seconds = 0.0

    def add(self, result: StepResult) -> None:
        """Count a step."""
        self.steps += 1
        self.seconds += result.seconds
        self.data_seconds += result.data_seconds

    def read(self) -> dict[str, float]:
        """Bytes a second, their share of the machine's peak (MFU), the share of time spent waiting for data, and the
        peak memory, by their keys in metrics.jsonl; then start over."""
        bytes_per_second = self.steps * self.bytes_per_step / self.seconds
        metrics = {
            "speed/bytes_per_second": round(bytes_per_second),
            "speed/mfu": round(bytes_per_second * self.flops_per_byte / self.peak_flops, 4),
            "speed/data_wait": round(self.data_seconds / self.seconds, 5),
            "speed/peak_memory_gib": round(peak_memory(self.accelerator.device) / 2**30, 3),
        }
        self.reset()
        return metrics


def peak_memory(device: torch.device) -> int:
    """The most bytes in use at once: by tensors on a GPU, elsewhere by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used


class UpdateRatio:
    """How far the optimizer moves the weights: the norm of a step's change over the norm of the weights before it.

    Tables of n-grams do not count. They have most of the weights, few of which change in a step, and a copy of them
    takes longer than the step. Create it before the step, and `read` it afterwards.
    """

    def __init__(self, model: nn.Module):
        self.parameters = parameters_but_tables(model)
        self.before = [p.detach().clone() for p in self.parameters]

    def read(self) -> float:
        after = [p.detach() for p in self.parameters]
        change = torch._foreach_sub(after, self.before)
        change_norm = full_tensor(torch.nn.utils.get_total_norm(change))
        weight_norm = full_tensor(torch.nn.utils.get_total_norm(self.before))
        return (change_norm / weight_norm).item()
