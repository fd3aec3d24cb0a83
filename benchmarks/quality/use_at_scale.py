"""What does a large model cost to use, with and without a hierarchy, if both cost as much to train?

`python -m benchmarks.quality.use_at_scale [--rounds 5] [--threads 2]`

Measures models of the scale of enwik8-base.yaml, which no laptop trains. Their weights are random, because speed and
state do not depend on them. A training step of 4,096 bytes is timed for the hierarchical model, whose coarse units are
words, and for flat models of several depths. The flat model whose step takes closest to the hierarchical one's is
compared with it: bytes/s of generation after a short and a long prompt, and bytes of state. There are two kinds of flat
models: those whose attention sees all of the context, as the hierarchical one's does by its words, and those that see
the last bytes only, and cannot use the rest.

The text is Python's standard library. Prints tables, and as the last line a JSON object.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.contenders import count_parameters
from benchmarks.flops import count_flops
from benchmarks.quality.cost_of_use import LENGTH, ROWS, Continuation, build, cut_rows, row_bytes, state_bytes
from benchmarks.quality.entries import BASE_SCALE, FLAT_KINDS, make_entry
from benchmarks.quality.training_speeds import build as build_contender
from benchmarks.quality.training_speeds import prepare_step
from benchmarks.quality.trials import Entry
from benchmarks.speed.machine import machine_name
from benchmarks.speed.timing import median, time_in_turns
from benchmarks.tables import format_table
from data import DataConfig, open_corpus
from model.generation.load import best_device
from utils.terminal import run_program

CONTEXTS = (8192, 65536)  # bytes that are read before generation is timed and the state is measured
QUICK_CONTEXTS = (64, 256)
HIERARCHICAL = "words"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.use_at_scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each kind")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch on a CPU")
    parser.add_argument("--quick", action="store_true", help="miniatures, to see whether it works")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    entries = {}
    for name, model in BASE_SCALE.items():
        entries[name] = make_entry("ours", model, args.quick)
    contexts = QUICK_CONTEXTS if args.quick else CONTEXTS
    text = open_corpus(DataConfig(name="python"))["train"]

    # Find the flat models that cost as much to train.
    seconds = time_training(entries, args.rounds)
    print("training")
    print(format_table([training_row(name, entries[name], seconds[name]) for name in entries]))
    names = [HIERARCHICAL, *closest_flat_models(seconds)]

    # Measure what they cost to use.
    results = {}
    for context in contexts:
        rows = [1, ROWS] if context == contexts[0] else [1]  # many long rows do not fit into memory
        results[context] = measure({name: entries[name] for name in names}, text, context, rows, args.rounds)
        print(f"\nafter {context:,} bytes")
        print(format_table([use_row(name, results[context]) for name in names]))
    machine = machine_name(torch.device(best_device()), args.threads)
    print(json.dumps({"machine": machine, "step_seconds": seconds, "use": results}))


def time_training(entries: dict[str, Entry], rounds: int) -> dict[str, float]:
    """Seconds of a training step of each model in float32, one sequence."""
    steps = {}
    for name, entry in entries.items():
        steps[name] = prepare_step(build_contender(entry), entry, entry.model["seq_len"], "float32")
    return {name: median(times) for name, times in time_in_turns(steps, rounds).items()}


def closest_flat_models(seconds: dict[str, float]) -> list[str]:
    """For each kind of flat model, the one whose training step is nearest in time to the hierarchical model's."""
    closest = []
    for kind in FLAT_KINDS:
        names = [name for name in seconds if name.startswith(kind)]
        closest.append(min(names, key=lambda name: abs(seconds[name] - seconds[HIERARCHICAL])))
    return closest


def measure(
    entries: dict[str, Entry], text: np.ndarray, context: int, rows: list[int], rounds: int
) -> dict[str, dict[str, float]]:
    """Bytes of state of a row after a context, and bytes/s from there on, of each model, which looks that far back.

    Args:
        rows: how many rows generate at once, in each of the timed calls.
    """
    device = torch.device(best_device())
    results: dict[str, dict[str, float]] = {}
    calls: dict[tuple[str, int], Callable[[], object]] = {}
    for name, entry in entries.items():
        model = build(replace(entry, model=entry.model | {"seq_len": context}), device)
        for count in rows:
            prompts = cut_rows(text, count, row_bytes(context, rounds)).to(device)
            continuation = Continuation(model, prompts, context)
            calls[name, count] = continuation
            results[name] = {"state_bytes": state_bytes(continuation.cache) // count}

    for (name, count), seconds in time_in_turns(calls, rounds).items():
        results[name][f"bytes_per_second_{count}"] = count * LENGTH / median(seconds)
    return results


def training_row(name: str, entry: Entry, seconds: float) -> dict[str, str]:
    contender = build_contender(entry)
    return {
        "model": name,
        "parameters": f"{count_parameters(contender):,}",
        "MFLOPs/byte": f"{count_flops(contender, entry.model['seq_len']) / 1e6:.1f}",
        "seconds a step": f"{seconds:.2f}",
    }


def use_row(name: str, results: dict[str, dict[str, float]]) -> dict[str, str]:
    """What a model costs, and how many times as much the hierarchical one has."""
    own = results[name]
    hierarchical = results[HIERARCHICAL]
    row = {"model": name}
    for key, value in own.items():
        title = key.replace("bytes_per_second_", "bytes/s, rows: ").replace("_", " ")
        row[title] = f"{value:,.1f}" if "second" in key else f"{value:,}"
        row[f"words, times ({title})"] = f"{hierarchical[key] / value:.2f}"
    return row


if __name__ == "__main__":
    run_program(main)
