"""Floating-point operations: how many a model needs, and how fast a machine does them."""

import ctypes
import platform
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from model import HierarchicalTransformer, ModelConfig


def flops_per_byte(config: ModelConfig) -> float:
    """Floating-point operations per byte of a forward pass at full length. A training step takes three times as many.

    Counts matrix products, and attention as it runs on a CPU, masked pairs included.
    """
    with torch.device("meta"):  # shapes without storage
        model = HierarchicalTransformer(**config.to_dict())
        ids = torch.zeros(1, config.seq_len, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids)
    return counter.get_total_flops() / config.seq_len


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """The most floating-point operations per second that products of square matrices reach in `seconds` of trying."""
    n = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    a @ b  # the first product is slow, as libraries load
    synchronize(device)

    best = 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or best == 0.0:
        started = time.perf_counter()
        a @ b
        synchronize(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - started))
    return best


def keep_freed_memory() -> None:
    """Make this process keep freed memory for later use.

    By default, glibc returns the gradients of large embedding tables to the system after each step, and the system
    clears every page again in the next step. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # from malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(m_mmap_threshold, 32 << 20)  # the largest value that glibc accepts
    libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished all of its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
