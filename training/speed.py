"""How fast a machine could be, and how much work a model is: floating-point operations, counted and measured."""

import ctypes
import platform
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from model import HierarchicalTransformer, ModelConfig


def flops_per_byte(config: ModelConfig) -> float:
    """Floating-point operations of one forward pass at full length, a byte; a training step takes three times as many.

    Counts matrix products and attention as they are done without a GPU, pairs that a mask hides included, on a model
    without storage.
    """
    with torch.device("meta"):
        model = HierarchicalTransformer(**config.to_dict())
        ids = torch.zeros(1, config.seq_len, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids)
    return counter.get_total_flops() / config.seq_len


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """The most floating-point operations a second that square matrix products reach here, measured for `seconds`."""
    n = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best, until = 0.0, time.perf_counter() + seconds
    a @ b  # wakes the library
    synchronize(device)
    while time.perf_counter() < until or not best:
        begun = time.perf_counter()
        a @ b
        synchronize(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - begun))
    return best


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees, for what it needs next. Left alone, glibc gives the gradients of
    large tables back after each step, and the system clears every page of them anew in the next one."""
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_threshold, 32 << 20)  # the most that it takes
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
