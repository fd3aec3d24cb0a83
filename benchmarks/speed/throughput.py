"""Compare training speed with other models and with the limits of the machine.

`python -m benchmarks.speed.throughput [--only SECTION …]`

The first line names the machine and what it can do, each section prints a table, and the last line is one JSON object
with all results. Contenders take turns, and medians count. Look at ratios rather than speeds, since a machine's speed
varies. A contender that is not installed is left out.

A step is forward, backward, gradient clipping and AdamW, or the preset's own optimizer in section optimizer. A share of
the peak is the FLOPs of a step, as `benchmarks.flops` counts them, over the time it takes and over the speed of the
fastest square matrix product.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.speed import machine, machine_sections, model_sections
from benchmarks.speed.options import PRECISIONS, Options
from utils.terminal import run_program

SECTIONS: dict[str, tuple[str, Callable[[Options], dict]]] = {  # name: title, and what measures and prints it
    "peak": ("what the machine can do: matrix products and memory", machine_sections.measure_peak),
    "step": ("a training step of the reference and of ours", model_sections.compare_with_reference),
    "flat": ("one level, and the decoder of x-transformers", model_sections.compare_flat),
    "hierarchy": ("levels (1, 4) at stride 4, and one level of as many parameters", model_sections.compare_hierarchy),
    "share": ("FLOPs of enwik8-base.yaml by part, and its share of the peak", model_sections.measure_base_preset),
    "optimizer": (
        "the presets' steps: share of the peak, and the optimizer's part",
        model_sections.measure_optimizers,
    ),
    "growth": ("speed by length, with the same number of bytes in every step", model_sections.measure_growth),
    "memory": ("peak memory of a step beyond weights and optimizer state", machine_sections.measure_memory),
    "startup": ("seconds from a command to its first result", machine_sections.measure_startup),
    "data": ("batches from the memory map, made and used by quickstart", machine_sections.measure_data),
}


def main() -> None:
    args = parse_arguments()
    default_rounds = 1 if args.quick else 5
    options = Options(
        device="cuda" if torch.cuda.is_available() else "cpu",
        threads=args.threads,
        rounds=args.rounds or default_rounds,
        precisions=args.precisions,
        batch=args.batch,
        large=args.large,
        compile=args.compile,
        quick=args.quick,
    )
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    results: dict[str, Any] = {
        "device": options.device,
        "threads": options.threads,
        "rounds": options.rounds,
        "machine": machine.measure_machine(options.device, options.threads, seconds=0.1 if args.quick else 1.0),
    }
    print(machine.machine_line(results["machine"]))
    for section in args.only:
        title, measure = SECTIONS[section]
        print(f"\n{section}: {title}", flush=True)
        results[section] = measure(options)
    print(json.dumps(results))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to run")
    parser.add_argument("--rounds", type=int, help="timed steps of each contender; default: 5, or 1 with --quick")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch on a CPU")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="default: both")
    parser.add_argument("--batch", type=int, default=1, help="section share: sequences in a step")
    parser.add_argument("--large", action="store_true", help="section step: the model of the reference's own script")
    parser.add_argument("--compile", action="store_true", help="sections step and share: also time ours compiled")
    parser.add_argument("--quick", action="store_true", help="fewer lengths and rounds")
    return parser.parse_args()


if __name__ == "__main__":
    run_program(main)
