"""What models cost to use: how fast they generate, how much state they keep, and how long they take to read a prompt.

The work of a model whose units follow the words depends on the text, so all of it is done on real text. Generation
draws a byte at each step and then reads the text's own byte instead. So the weights need no training: they decide what
is drawn, and not how long a step takes. Everything is in float32, as in `generate.py`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.trials import Entry, key_of
from benchmarks.speed.machine import machine_name
from benchmarks.speed.timing import median, time_in_turns
from data import Corpus
from model import Cache, HierarchicalTransformer
from model.generation.cache import tensor_slots
from model.generation.load import best_device
from model.generation.prepare import prepare_for_generation
from model.generation.sampling import Rows, Sampling, row_generators
from utils.errors import UserError
from utils.files import write_text

ROWS = 16  # rows that generate at once in the timed batch
LENGTH = 256  # bytes that each row goes on by in a timed call

# What is timed: generation of one row and of a batch, each with compiled steps too; and reading the long prompt.
ONE_ROW = "1 row"
COMPILED = "1 row, compiled"
BATCH = f"{ROWS} rows"
COMPILED_BATCH = f"{ROWS} rows, compiled"
GENERATION = {ONE_ROW: 1, COMPILED: 1, BATCH: ROWS, COMPILED_BATCH: ROWS}  # how many rows each has
READ = "prompt"

# generated_bytes_per_second (by the kinds of GENERATION), state_bytes (by context) and prompt_seconds
Cost = dict[str, Any]


def costs_of_use(
    entries: Mapping[str, Entry],
    corpus: Corpus,
    contexts: tuple[int, int],
    threads: int,
    rounds: int,
    compiled: bool,
    path: Path,
) -> dict[str, Cost]:
    """The costs of some of our models by name, which are measured unless the file at `path` has them.

    All of them are measured in turns, so they are measured again when another one is added. Run nothing else meanwhile.

    Args:
        entries: of the builder "ours".
        corpus: prompts are from its validation split, which has at least `bytes_needed` bytes.
        contexts: bytes after which the state is measured. Generation is timed after the first one, and reading the
            second, longer one is timed.
        threads: threads of PyTorch on a CPU.
        rounds: timed calls of each kind.
        compiled: on a CPU, also time generation with compiled steps.
        path: a JSON file of costs by a key of all models, text and machine.
    """
    settings = {
        "entries": {name: asdict(entry) for name, entry in entries.items()},
        "text": corpus.sha256["valid"],
        "contexts": contexts,
        "machine": machine_name(torch.device(best_device()), threads),
        "compiled": compiled,
    }
    key = key_of(settings)
    known: dict[str, dict[str, Cost]] = json.loads(path.read_text()) if path.exists() else {}
    if key not in known:
        torch.set_num_threads(threads)
        known[key] = measure(entries, corpus["valid"], contexts, rounds, compiled)
        write_text(path, json.dumps(known, indent=1))
    return known[key]


def row_bytes(context: int, rounds: int) -> int:
    """How many bytes a row has: its prompt, and what it reads in a warm-up and all timed calls."""
    return context + (1 + rounds) * LENGTH


def bytes_needed(contexts: tuple[int, int], rounds: int) -> int:
    """The length of the shortest text that has both the long prompt and a row."""
    return max(contexts[1], row_bytes(contexts[0], rounds))


def measure(
    entries: Mapping[str, Entry], text: np.ndarray, contexts: tuple[int, int], rounds: int, compiled: bool
) -> dict[str, Cost]:
    """The costs of models by name, on a text (n), uint8."""
    device = torch.device(best_device())
    context, longest = contexts
    prompt = cut_rows(text, 1, longest).to(device)
    rows = cut_rows(text, ROWS, row_bytes(context, rounds)).to(device)

    # Prepare the calls, and measure the states.
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    states: dict[str, dict[str, int]] = {}
    for name, entry in entries.items():
        model = build(entry, device)
        calls[name, ONE_ROW] = Continuation(model, rows[:1], context)
        calls[name, BATCH] = Continuation(model, rows, context)
        calls[name, READ] = partial(read, model, prompt)
        if compiled and device.type == "cpu":  # a GPU replays recorded steps anyway
            try:
                with_compiled_steps = build(entry, device, compiled=True)
                calls[name, COMPILED] = Continuation(with_compiled_steps, rows[:1], context)
                calls[name, COMPILED_BATCH] = Continuation(with_compiled_steps, rows, context)
            except UserError as error:
                print(f"{name}, without compiled steps: {error}")
        states[name] = {str(n): state_bytes(read(model, prompt[:, :n])) for n in contexts}

    # Time them.
    seconds = time_in_turns(calls, rounds)

    costs = {}
    for name in entries:
        speeds = {}
        for kind, count in GENERATION.items():
            if (name, kind) in calls:
                speeds[kind] = count * LENGTH / median(seconds[name, kind])
        costs[name] = {
            "generated_bytes_per_second": speeds,
            "state_bytes": states[name],
            "prompt_seconds": median(seconds[name, READ]),
        }
    return costs


def cut_rows(text: np.ndarray, rows: int, length: int) -> Tensor:
    """Evenly spaced pieces of a text (n): (rows length) int64. They overlap if the text is short."""
    starts = np.linspace(0, len(text) - length, rows).astype(np.int64)
    return torch.from_numpy(text[starts[:, None] + np.arange(length)].astype(np.int64))


def build(entry: Entry, device: torch.device, compiled: bool = False) -> HierarchicalTransformer:
    """The model of an entry with random weights, prepared as `generate.py` prepares it.

    Raises:
        UserError: if there is no compiler that works to compile with.
    """
    torch.manual_seed(0)
    model = HierarchicalTransformer(**entry.model).to(device).eval()
    prepare_for_generation(model, compiled)
    return model


class Continuation:
    """Goes on with each row of a text by LENGTH bytes at each call, as generation does, on one cache.

    Args:
        text: (b n).
        context: bytes of each row that are read at once, before the first call.
    """

    @torch.inference_mode()
    def __init__(self, model: HierarchicalTransformer, text: Tensor, context: int):
        self.model = model
        self.text = text.cpu().numpy()
        self.position = context
        length = text.shape[1] - context
        self.rows = Rows(list(text[:, :context].cpu()), length, Sampling(), model.config, row_generators(0, len(text)))
        self.first_drawn = self.rows.longest - context  # rows count from the part of the prompt that they need
        self.cache = Cache()
        self.logits = model(text[:, :context], cache=self.cache)

    @torch.inference_mode()
    def __call__(self) -> None:
        for _ in range(LENGTH):
            self.rows.advance(self.first_drawn + self.position, self.logits)
            self.rows.token[:] = self.text[:, self.position]
            self.logits = self.model(self.rows.ids.to(self.logits.device), cache=self.cache)
            self.position += 1


@torch.inference_mode()
def read(model: HierarchicalTransformer, prompt: Tensor) -> Cache:
    """The state after a prompt (b n), all of which is read in one pass."""
    cache = Cache()
    model(prompt, cache=cache)
    return cache


def state_bytes(cache: Cache) -> int:
    """Bytes of all tensors of a cache."""
    tensors = [holder[key] for holder, key in tensor_slots(cache)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
