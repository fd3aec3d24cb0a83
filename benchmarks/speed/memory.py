"""Measure the memory that a training step takes beyond the model itself, in a process of its own."""

import multiprocessing
from pathlib import Path

import torch

from benchmarks import contenders
from training.monitor import peak_memory
from training.speed import synchronize


def step_memory(builder: str, config: dict, batch: int, bf16: bool, threads: int) -> int:
    """Peak bytes of a step without activation checkpointing, beyond weights and optimizer state.

    They hold activations kept for the backward pass, gradients and temporary buffers. Returns 0 if the contender's
    package is not installed.

    Args:
        builder: which function of `contenders` builds the model from config: ours, reference or decoder.
        batch: sequences of `config["seq_len"]` bytes.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_step_memory, (builder, config, batch, bf16, threads))


def _measure_step_memory(builder: str, config: dict, batch: int, bf16: bool, threads: int) -> int:
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    contender = getattr(contenders, builder)(**config)
    if contender is None:
        return 0
    contender.to(device)
    short_ids = contenders.random_ids(batch, 8, device)
    ids = contenders.random_ids(batch, config["seq_len"], device)

    # Short steps load the libraries and allocate the optimizer's state, so that neither counts.
    for _ in range(2):
        contenders.training_step(contender, short_ids, bf16)()
    step = contenders.training_step(contender, ids, bf16)
    contenders.training_step(contender, short_ids, bf16)()

    reset_peak()
    before = peak_bytes()
    step()
    synchronize(torch.device(device))
    return peak_bytes() - before


PROCESS_STATUS = Path("/proc/self/status")  # on Linux


def reset_peak() -> None:
    """Begin a new peak: on a GPU, or of this process where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif PROCESS_STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory in use since the last reset: on a GPU, or by this process."""
    if torch.cuda.is_available():
        return peak_memory(torch.device("cuda"))
    if not PROCESS_STATUS.exists():
        return peak_memory(torch.device("cpu"))

    # VmHWM can be reset. ru_maxrss cannot, and a new process inherits it from its parent.
    for line in PROCESS_STATUS.read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"{PROCESS_STATUS} has no line VmHWM")
