"""The memory that a training step takes beyond the model itself, measured in a process of its own."""

import multiprocessing
from pathlib import Path

import torch

from benchmarks import contenders
from training.monitor import peak_memory
from training.speed import synchronize


def step_memory(kind: str, config: dict, batch: int, bf16: bool, threads: int) -> int:
    """Peak bytes of a step without recomputation, beyond weights and optimizer: what it keeps for the backward pass,
    gradients and passing buffers. 0 where the peer is not installed.

    Args:
        kind: which of `contenders` to build from config: ours, reference or decoder.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_step_memory, (kind, config, batch, bf16, threads))


def _step_memory(kind: str, config: dict, batch: int, bf16: bool, threads: int) -> int:
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    contender = getattr(contenders, kind)(**config)
    if contender is None:
        return 0
    contender.to(device)
    short, whole = (contenders.random_ids(batch, n, device) for n in (8, config["seq_len"]))
    for _ in range(2):  # wakes the libraries, and makes the optimizer's state
        contenders.training_step(contender, short, bf16)()
    step = contenders.training_step(contender, whole, bf16)
    contenders.training_step(contender, short, bf16)()
    before = peak_bytes(reset=True)
    step()
    synchronize(torch.device(device))
    return peak_bytes() - before


def peak_bytes(reset: bool = False) -> int:
    """The most memory in use since the last reset, which is done first: on a GPU, or by this process."""
    cuda, status = torch.cuda.is_available(), Path("/proc/self/status")
    if cuda and reset:
        torch.cuda.reset_peak_memory_stats()
    if cuda or not status.exists():
        return peak_memory(torch.device("cuda" if cuda else "cpu"))
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    # Not ru_maxrss, which a new process inherits from the one that started it.
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
