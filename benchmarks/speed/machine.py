"""Name this machine, measure what it can do, and what training costs besides the model: starts and batches."""

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.speed.options import PRECISIONS
from benchmarks.speed.timing import median, median_seconds, time_in_turns
from data import Corpus, batch
from training.speed import matmul_peak

REPO = Path(__file__).parents[2]
QUICKSTART = "--config configs/quickstart.yaml --wandb.mode=disabled --train.log_every=1 --train.sample_every=0"
# Two steps, since the last step of a run also validates and samples before its line is written.
TWO_STEPS = "--train.max_steps=2 --train.sample_length=1 --train.validate_bytes=256"


def machine_name(device: torch.device, threads: int) -> str:
    """The GPU's name; or the CPU's, with its widest vectors, the instructions that it has for bfloat16, and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    features = getattr(torch.cpu, "get_capabilities", dict)()  # not in PyTorch 2.11
    in_bf16 = [name for name in ("avx512_bf16", "amx_bf16") if features.get(name)]
    name = features.get("cpu_name") or platform.processor() or platform.machine()
    return ", ".join([name, torch.backends.cpu.get_cpu_capability(), *in_bf16, f"{threads} threads"])


def measure_machine(device: str, threads: int, seconds: float = 1.0) -> dict[str, Any]:
    """What figures of speed depend on: name, FLOPs per second of square matrix products, and memory's bytes per second.

    Args:
        seconds: how long the products of each precision are measured.
    """
    peaks = {name: MatmulPeak(dtype, device).measure(seconds) for name, dtype in PRECISIONS.items()}
    return {
        "name": machine_name(torch.device(device), threads),
        "torch": torch.__version__,
        "flops_per_second": peaks,
        "memory_bytes_per_second": memory_bandwidth(device, rounds=1),
    }


def machine_line(measured: dict[str, Any]) -> str:
    """What `measure_machine` returns, in one line."""
    peaks = ", ".join(f"{peak / 1e9:,.0f} GFLOPs/s in {name}" for name, peak in measured["flops_per_second"].items())
    memory = measured["memory_bytes_per_second"]["read"] / 1e9
    return f"{measured['name']}; {peaks}; memory reads {memory:.1f} GB/s; torch {measured['torch']}"


class MatmulPeak:
    """The highest FLOPs per second that square matrix products have reached so far, in `best`."""

    def __init__(self, dtype: torch.dtype, device: str):
        self.dtype = dtype
        self.device = torch.device(device)
        self.best = 0.0

    def measure(self, seconds: float = 0.3) -> float:
        """Measure for some seconds, and return the best of all measurements."""
        measured = matmul_peak(self.device, self.dtype, seconds)
        self.best = max(self.best, measured)
        return self.best


def linear_speed(dtype: torch.dtype, device: str, rows: int, dim_in: int, dim_out: int, rounds: int) -> float:
    """FLOPs per second of the forward pass of one linear layer on inputs (rows dim_in)."""
    inputs = torch.randn(rows, dim_in, device=device, dtype=dtype)
    weight = torch.randn(dim_out, dim_in, device=device, dtype=dtype)
    seconds = median_seconds(lambda: F.linear(inputs, weight), 10 * rounds, warmup=3)
    return 2 * rows * dim_in * dim_out / seconds


def memory_bandwidth(device: str, rounds: int, size: int = 1 << 28) -> dict[str, float]:
    """Bytes per second of reading, and of copying, which counts both the bytes read and the bytes written.

    Args:
        size: bytes of the array that is read or copied.
    """
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    seconds = time_in_turns({"read": source.sum, "copy": lambda: target.copy_(source)}, 3 * rounds)
    return {
        "read": size / median(seconds["read"]),
        "copy": 2 * size / median(seconds["copy"]),
    }


def batch_speed(corpus: Corpus, seq_len: int, batch_size: int, rounds: int, steps: int = 200) -> float:
    """Bytes per second at which `data.batch` makes batches from the memory map, as training calls it."""
    train = corpus["train"]

    def make_batches() -> None:
        for step in range(steps):
            batch(train, seq_len, seed=0, step=step, global_batch_size=batch_size)

    return steps * batch_size * seq_len / median_seconds(make_batches, rounds)


def help_seconds() -> float:
    """Seconds that `python train.py --help` takes."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "train.py", "--help"], cwd=REPO, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def first_step_seconds(launcher: list[str]) -> float:
    """Seconds from the command until metrics.jsonl holds quickstart's first step. The corpus should be cached before.

    Args:
        launcher: what runs train.py, such as ["python"] or ["accelerate", "launch"].

    Raises:
        RuntimeError: with the run's error output, when the run fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder, "run", "metrics.jsonl")
        command = [*launcher, "train.py", *QUICKSTART.split(), *TWO_STEPS.split(), "--run_dir", str(metrics.parent)]
        begun = time.perf_counter()
        with subprocess.Popen(
            command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            while not _has_content(metrics) and process.poll() is None:
                time.sleep(0.01)
            seconds = time.perf_counter() - begun
            _, errors = process.communicate()

        if process.returncode or not metrics.exists():
            raise RuntimeError(f"{' '.join(command)} failed:\n{errors}")
    return seconds


def _has_content(path: Path) -> bool:
    return path.exists() and os.path.getsize(path) > 0


def import_seconds(arguments: list[str]) -> dict[str, float]:
    """Seconds that the imports of `python ARGUMENTS` take, by package, the slowest first.

    A package's seconds do not include those of the packages that it imports.
    """
    command = [sys.executable, "-X", "importtime", *arguments]
    process = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)

    # A line reads "import time: OWN | CUMULATIVE | MODULE", in microseconds, below one line of headings.
    seconds: dict[str, float] = defaultdict(float)
    for line in process.stderr.splitlines():
        if line.startswith("import time:") and "self [us]" not in line:
            own, _, module = line.removeprefix("import time:").split("|")
            package = module.strip().split(".")[0]
            seconds[package] += int(own) / 1e6
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))
