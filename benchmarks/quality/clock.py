"""How fast each contender trains here: the clock by which all of them get the same time.

Speeds are measured once, in turns, and kept. From then on a minute means so many bytes, so that neither a busy machine
nor an interrupted run changes what a contender is given.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.contenders import Contender, count_flops, count_parameters, random_ids, take_step, tuples
from benchmarks.quality.causality import check_causality, noisy
from benchmarks.quality.trials import Entry, key_of
from benchmarks.speed.timing import median, spread, take_turns
from model.generation.load import best_device
from training.config import TrainConfig
from training.optimizer import build_optimizer
from training.speed import synchronize
from utils.files import write_text

ANCHORS = 3  # known entries that new ones are timed beside


def speeds(entries: dict[str, Entry], tokens: int, precision: str, threads: int, rounds: int, path: Path) -> dict:
    """For each entry by name: bytes_per_second of whole steps of so many tokens, spread, flops_per_byte, parameters.

    What the file knows stays. New entries must be causal, are timed in turns with the first known ones, and scaled by
    how much faster or slower those are now.

    Raises:
        ValueError: that names an entry that is not causal.
    """
    device = torch.device(best_device())
    if device.type == "cuda":
        machine = torch.cuda.get_device_name()
    else:
        machine = f"{device.type}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads"
    settings = {"tokens": tokens, "precision": precision, "machine": machine}
    keys = {name: key_of(asdict(entry) | settings) for name, entry in entries.items()}
    known = json.loads(path.read_text()) if path.exists() else {}
    new = {keys[name]: name for name in entries if keys[name] not in known}
    if new:
        anchors = [key for key, line in known.items() if settings.items() <= line.items()][:ANCHORS]
        timed = {key: entry_of(known[key]["entry"]) for key in anchors}
        timed |= {key: entries[name] for key, name in new.items()}
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        measured, steps = {}, {}
        for key, entry in timed.items():
            n, contender = entry.model["seq_len"], entry.build()
            assert contender is not None  # what is not installed is not raced
            if key in new:
                check_causality(new[key], noisy(entry.build()), n)
            flops = count_flops(contender, n)
            measured[key] = {"flops_per_byte": flops, "parameters": count_parameters(contender)}
            steps[key] = step_of(contender.to(device).train(), entry, tokens, precision)
        seconds = take_turns(steps, rounds, warmup=2)
        now = {key: tokens / median(times) for key, times in seconds.items()}
        scale = median([known[key]["bytes_per_second"] / now[key] for key in anchors] or [1.0])
        for key, name in new.items():
            line = {"bytes_per_second": scale * now[key], "spread": spread(seconds[key]), **measured[key]}
            known[key] = {"name": name, **line, **settings, "entry": asdict(entries[name])}
            print(f"timed {name}: {line['bytes_per_second']:,.0f} bytes/s ± {line['spread']:.0%}", flush=True)
        write_text(path, json.dumps(known, indent=1))
    return {name: known[key] for name, key in keys.items()}


def step_of(contender: Contender, entry: Entry, tokens: int, precision: str) -> Callable[[], None]:
    """A whole training step of an entry on bytes that do not change."""
    n, device = entry.model["seq_len"], next(contender.parameters()).device
    optimizer = build_optimizer(contender.model, TrainConfig(**entry.train))
    ids = random_ids(tokens // n, n, device)

    def step() -> None:
        take_step(contender, optimizer, ids, precision == "bf16")
        synchronize(device)

    return step


def entry_of(values: dict) -> Entry:
    """An entry out of JSON."""
    return Entry(values["builder"], tuples(values["model"]), values["train"])
