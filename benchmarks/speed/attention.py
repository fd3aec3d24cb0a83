"""Time and memory of attention against length: `python -m benchmarks.speed.attention`.

Each path runs forward and backward at each length, on a CPU in a process of its own, so that its peak memory is its
own. The slope is that of the logarithms over the longer half of the lengths: 1 grows with n, 2 with n².
"""

import argparse
import json
import multiprocessing
import time
from math import log, nan

import torch

from benchmarks.speed.timing import median, table
from model import Attend
from training.monitor import peak_memory
from training.speed import synchronize

WINDOW, HEADS, DIM_HEAD = 64, 4, 64
PATHS = {  # name: options of Attend, and the longest length that fits a small machine
    "plain, causal": ({"use_flash_attn": False}, 4096),
    "plain, window": ({"use_flash_attn": False, "window_size": WINDOW}, 4096),
    "fused, causal": ({"use_flash_attn": True}, 32768),
    "fused, window": ({"use_flash_attn": True, "window_size": WINDOW}, 32768),
}


def measure(options: dict, n: int, rounds: int, threads: int) -> dict:
    """Median seconds and peak bytes beyond the inputs of one step at length n."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    attend = Attend(causal=True, **options)

    def step(n: int) -> tuple[float, int]:
        q, k, v = (torch.randn(1, HEADS, n, DIM_HEAD, device=device, requires_grad=True) for _ in range(3))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        synchronize(device)
        began, since = peak_memory(device), time.perf_counter()
        attend(q, k, v).sum().backward()
        synchronize(device)
        return time.perf_counter() - since, peak_memory(device) - began

    step(128)  # wakes the libraries
    steps = [step(n) for _ in range(rounds)]
    times, peaks = zip(*steps, strict=True)
    kernel = attend.kernel(n, n, DIM_HEAD, device.type, torch.float32)
    return {"kernel": kernel, "n": n, "seconds": median(list(times)), "bytes": max(peaks)}


def slope(results: list[dict], what: str) -> float:
    """Exponent of growth between the middle length and the last one."""
    first, last = results[(len(results) - 1) // 2], results[-1]
    return log(last[what] / first[what]) / log(last["n"] / first["n"]) if len(results) > 1 else nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"rounds: got {args.rounds}, allowed: 1 or above")
    results, rows = {}, []
    for name, (options, longest) in PATHS.items():
        lengths = [n for n in args.lengths if n <= longest]
        if not lengths:
            continue
        tasks = None if torch.cuda.is_available() else 1  # of one process, before another takes its place
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=tasks) as pool:
            results[name] = [pool.apply(measure, (options, n, args.rounds, args.threads)) for n in lengths]
        line = {"path": name, "kernel": results[name][-1]["kernel"]}
        cells = {r["n"]: f"{1000 * r['seconds']:.0f} ms, {r['bytes'] / 2**20:.0f} MiB" for r in results[name]}
        line |= {f"{n}": cells.get(n, "") for n in args.lengths}
        line["slope of time"] = f"{slope(results[name], 'seconds'):.2f}"
        line["of memory"] = f"{slope(results[name], 'bytes'):.2f}"
        rows.append(line)
    print(table(rows))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
