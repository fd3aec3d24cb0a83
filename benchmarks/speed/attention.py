"""Measure time and memory of attention at growing lengths.

`python -m benchmarks.speed.attention [--lengths 1024 4096 …]`

Each path runs forward and backward at each length. On a CPU every length has a process of its own, so that its peak
memory is its own. The exponent of growth is that between the middle and the last length: 1 grows with n, 2 with n².

Prints a table, and as the last line a JSON object with the results of each path.
"""

import argparse
import json
import multiprocessing
import time
from math import log, nan
from typing import Any

import torch

from benchmarks.speed.timing import median
from benchmarks.tables import format_table
from model import Attend
from training.monitor import peak_memory
from training.speed import synchronize
from utils.terminal import run_program

WINDOW, HEADS, DIM_HEAD = 64, 4, 64
PATHS: dict[str, tuple[dict[str, Any], int]] = {  # arguments of Attend, and the longest length that fits in memory
    "plain, causal": ({"use_flash_attn": False}, 4096),
    "plain, window": ({"use_flash_attn": False, "window_size": WINDOW}, 4096),
    "fused, causal": ({"use_flash_attn": True}, 32768),
    "fused, window": ({"use_flash_attn": True, "window_size": WINDOW}, 32768),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default_lengths = [1024, 2048, 4096, 8192, 16384, 32768]
    parser.add_argument("--lengths", type=int, nargs="+", default=default_lengths, help="keys and queries")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps at each length")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch on a CPU")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"rounds: got {args.rounds}, allowed: 1 or above")

    results = {}
    for name, (options, longest) in PATHS.items():
        lengths = [n for n in args.lengths if n <= longest]
        if lengths:
            results[name] = measure_path(options, lengths, args.rounds, args.threads)

    rows = [table_row(name, measured, args.lengths) for name, measured in results.items()]
    print(format_table(rows))
    print(json.dumps(results))


def measure_path(options: dict[str, Any], lengths: list[int], rounds: int, threads: int) -> list[dict]:
    """Measure one path at each length, in a process of its own for each length unless there is a GPU."""
    tasks_per_process = None if torch.cuda.is_available() else 1
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=tasks_per_process) as pool:
        return [pool.apply(measure, (options, n, rounds, threads)) for n in lengths]


def measure(options: dict[str, Any], n: int, rounds: int, threads: int) -> dict:
    """Median seconds and peak bytes beyond the inputs of one step at length n."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    attend = Attend(causal=True, **options)

    def step(n: int) -> tuple[float, int]:
        q, k, v = (torch.randn(1, HEADS, n, DIM_HEAD, device=device, requires_grad=True) for _ in range(3))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        synchronize(device)

        memory_before = peak_memory(device)
        begun = time.perf_counter()
        attend(q, k, v).sum().backward()
        synchronize(device)
        return time.perf_counter() - begun, peak_memory(device) - memory_before

    step(128)  # loads the libraries
    seconds, peaks = [], []
    for _ in range(rounds):
        step_seconds, step_bytes = step(n)
        seconds.append(step_seconds)
        peaks.append(step_bytes)

    kernel = attend.backend_for(n, n, DIM_HEAD, device.type, torch.float32)
    return {"kernel": kernel, "n": n, "seconds": median(seconds), "bytes": max(peaks)}


def table_row(name: str, measured: list[dict], lengths: list[int]) -> dict[str, str]:
    """The table's row of one path; a length that it was not measured at has an empty cell."""
    row = {"path": name, "kernel": measured[-1]["kernel"]}
    row |= {str(n): "" for n in lengths}
    for result in measured:
        row[str(result["n"])] = f"{1000 * result['seconds']:.0f} ms, {result['bytes'] / 2**20:.0f} MiB"
    row["exponent of time"] = f"{growth_exponent(measured, 'seconds'):.2f}"
    row["exponent of memory"] = f"{growth_exponent(measured, 'bytes'):.2f}"
    return row


def growth_exponent(measured: list[dict], quantity: str) -> float:
    """The slope of log quantity against log n, between the middle length and the last one; NaN for a single length."""
    if len(measured) < 2:
        return nan
    middle, last = measured[(len(measured) - 1) // 2], measured[-1]
    return log(last[quantity] / middle[quantity]) / log(last["n"] / middle["n"])


if __name__ == "__main__":
    run_program(main)
