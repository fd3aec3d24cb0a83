"""Measure once how fast each contender trains here, so that all of them can get the same training time.

A race measures bytes per second in turns and keeps them in a file. From then on a minute of training means a fixed
number of bytes for each contender, so neither a busy machine nor an interrupted race changes how much it trains.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import Contender, count_parameters, lists_to_tuples, random_ids, take_step
from benchmarks.flops import count_flops
from benchmarks.quality.causality_check import add_noise_to_weights, check_causality
from benchmarks.quality.trials import Entry, key_of
from benchmarks.speed.machine import machine_name
from benchmarks.speed.timing import median, spread, time_in_turns
from model.generation.load import best_device
from training.config import TrainConfig
from training.optimizer import build_optimizer
from training.speed import synchronize
from utils.files import write_text

ANCHORS = 3  # entries of known speed that are timed together with new ones

Speed = dict[str, Any]  # bytes_per_second, spread, flops_per_byte, parameters, and what was measured


def training_speeds(
    entries: dict[str, Entry], tokens_per_step: int, precision: str, threads: int, rounds: int, path: Path
) -> dict[str, Speed]:
    """The speed of each entry by name, from the file at `path`, which gets the speeds that it does not have yet.

    New entries must be causal. They are timed in turns with entries of known speed, and their speeds are scaled by how
    much slower or faster those are now than when they were measured.

    Args:
        tokens_per_step: bytes of a training step.
        precision: float32 or bf16.
        threads: threads of PyTorch on a CPU.
        rounds: timed steps of each entry.
        path: a JSON file of speeds by a key of entry, step and machine.

    Raises:
        ValueError: names an entry that is not causal.
    """
    device = torch.device(best_device())
    settings = {"tokens": tokens_per_step, "precision": precision, "machine": machine_name(device, threads)}
    keys = {name: key_of(asdict(entry) | settings) for name, entry in entries.items()}
    known: dict[str, Speed] = json.loads(path.read_text()) if path.exists() else {}

    new = {keys[name]: name for name in entries if keys[name] not in known}
    if new:
        # Prepare a step of each new entry, and of a few known ones to compare with.
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        anchors = [key for key, speed in known.items() if settings.items() <= speed.items()][:ANCHORS]
        steps: dict[str, Callable[[], None]] = {}
        for key in anchors:
            entry = entry_from_json(known[key]["entry"])
            steps[key] = prepare_step(build(entry), entry, tokens_per_step, precision)
        sizes = {}
        for key, name in new.items():
            entry = entries[name]
            seq_len = entry.model["seq_len"]
            check_causality(name, add_noise_to_weights(build(entry)), seq_len)
            contender = build(entry)
            sizes[key] = {
                "flops_per_byte": count_flops(contender, seq_len),
                "parameters": count_parameters(contender),
            }
            steps[key] = prepare_step(contender, entry, tokens_per_step, precision)

        # Time them, and scale by the change of the known ones.
        seconds = time_in_turns(steps, rounds, warmup=2)
        measured = {key: tokens_per_step / median(times) for key, times in seconds.items()}
        scale = 1.0
        if anchors:
            scale = median([known[key]["bytes_per_second"] / measured[key] for key in anchors])

        for key, name in new.items():
            speed = {"bytes_per_second": scale * measured[key], "spread": spread(seconds[key])}
            known[key] = {"name": name, **speed, **sizes[key], **settings, "entry": asdict(entries[name])}
            print(f"timed {name}: {speed['bytes_per_second']:,.0f} bytes/s ± {speed['spread']:.0%}", flush=True)
        write_text(path, json.dumps(known, indent=1))

    return {name: known[key] for name, key in keys.items()}


def build(entry: Entry) -> Contender:
    """The model of an entry whose package is installed, on the CPU."""
    contender = entry.build()
    assert contender is not None, "a race leaves out what is not installed"
    return contender


def prepare_step(contender: Contender, entry: Entry, tokens_per_step: int, precision: str) -> Callable[[], None]:
    """A training step of a contender, always on the same bytes."""
    device = torch.device(best_device())
    contender.to(device).train()
    config = TrainConfig(muon_precision="bf16" if precision == "bf16" else "no", **entry.train)
    optimizer = build_optimizer(contender.model, config)
    seq_len = entry.model["seq_len"]
    ids = random_ids(tokens_per_step // seq_len, seq_len, device)

    def step() -> None:
        take_step(contender, optimizer, ids, precision == "bf16")
        synchronize(device)

    return step


def entry_from_json(values: dict[str, Any]) -> Entry:
    """An entry as `dataclasses.asdict` and JSON left it."""
    return Entry(values["builder"], lists_to_tuples(values["model"]), values["train"])
