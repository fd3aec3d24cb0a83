"""What a machine can do, and what the house costs beside its model: starting up, and making batches."""

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.speed.timing import median, take_turns
from data import Corpus, batch
from training.speed import matmul_peak

REPO = Path(__file__).parents[2]
QUICKSTART = "--config configs/quickstart.yaml --wandb.mode=disabled --train.log_every=1 --train.sample_every=0"
TWO_STEPS = "--train.max_steps=2 --train.sample_length=1 --train.validate_bytes=256"  # the first is no last one


class Peak:
    """The most floating-point operations a second that square matrix products have reached so far, in `best`."""

    def __init__(self, dtype: torch.dtype, device: str):
        self.dtype, self.device, self.best = dtype, torch.device(device), 0.0

    def measure(self, seconds: float = 0.3) -> float:
        """Try for so long; returns the best."""
        self.best = max(self.best, matmul_peak(self.device, self.dtype, seconds))
        return self.best


def linear_speed(dtype: torch.dtype, device: str, rows: int, dim_in: int, dim_out: int, rounds: int) -> float:
    """Operations a second of one linear map, forward alone, of rows (rows dim_in)."""
    x, weight = (torch.randn(n, dim_in, device=device, dtype=dtype) for n in (rows, dim_out))
    (seconds,) = take_turns({"": lambda: F.linear(x, weight)}, 10 * rounds, warmup=3).values()
    return 2 * rows * dim_in * dim_out / median(seconds)


def bandwidth(device: str, rounds: int, size: int = 1 << 28) -> dict[str, float]:
    """Bytes a second of a plain read, and of a copy, whose reading and writing both count."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    seconds = take_turns({"read": source.sum, "copy": lambda: target.copy_(source)}, 3 * rounds)
    return {name: size * (1 + (name == "copy")) / median(times) for name, times in seconds.items()}


def batches_per_second(corpus: Corpus, seq_len: int, batch_size: int, rounds: int, steps: int = 200) -> float:
    """Bytes a second of `data.batch` over the memory map, as a training step asks for them."""
    train = corpus["train"]

    def make() -> None:
        for step in range(steps):
            batch(train, seq_len, seed=0, step=step, global_batch_size=batch_size)

    (seconds,) = take_turns({"": make}, rounds).values()
    return steps * batch_size * seq_len / median(seconds)


def help_seconds() -> float:
    """From the command to the end of `python train.py --help`."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "train.py", "--help"], cwd=REPO, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def first_step_seconds(launcher: list[str]) -> float:
    """From the command to the first step's line in metrics.jsonl, for quickstart, whose corpus is cached by then."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        metrics = Path(folder, "run", "metrics.jsonl")
        command = [*launcher, "train.py", *QUICKSTART.split(), *TWO_STEPS.split(), "--run_dir", str(metrics.parent)]
        begun = time.perf_counter()
        with subprocess.Popen(command, cwd=REPO, stdout=nowhere, stderr=subprocess.PIPE, text=True) as process:
            while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
                time.sleep(0.01)
            seconds = time.perf_counter() - begun
            _, errors = process.communicate()
        if process.returncode or not metrics.exists():
            raise RuntimeError(f"{' '.join(command)} failed:\n{errors}")
    return seconds


def import_seconds(arguments: list[str]) -> dict[str, float]:
    """Own time of the imports of `python ARGUMENTS`, by package, the most costly first."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], cwd=REPO, capture_output=True, text=True, check=True
    )
    packages: dict[str, float] = defaultdict(float)
    for line in run.stderr.splitlines():
        if line.startswith("import time:") and "self [us]" not in line:
            own, _, name = line.removeprefix("import time:").split("|")
            packages[name.strip().split(".")[0]] += int(own) / 1e6
    return dict(sorted(packages.items(), key=lambda item: -item[1]))
