"""Time parts of a training step on this machine, for each way to compute them."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from model import HierarchicalTransformer, ModelConfig
from model.block import Block
from training.config import TrainConfig
from training.optimizer import Muon, by_shape, orthogonalise, param_groups
from training.precisions import DTYPES
from training.speed import synchronize
from utils.threads import use_threads

SECONDS = 0.4  # how long a comparison takes, if its parts are short
FEWEST_ROUNDS = 3
MOST_ELEMENTS = 1 << 20  # of the tensor that is computed with: a larger one would say the same, and take long
Calls = dict[str, Callable[[], object]]  # what is compared, by name
PRECISIONS = ("no", "bf16")  # what is compared


def time_precisions(model: ModelConfig, config: TrainConfig, device: torch.device) -> dict[str, float]:
    """Milliseconds of a forward and backward pass through a block of each level, in float32 and in bfloat16."""
    run = block_passes(model, config.batch_size, device)
    return milliseconds({precision: partial(run, precision) for precision in PRECISIONS}, device)


def time_muon(model: ModelConfig) -> dict[str, float]:
    """Milliseconds of orthogonalising some of the matrices that Muon is for, on a CPU, in float32 and in bfloat16."""
    with torch.device("meta"):  # shapes without storage
        hidden = param_groups(HierarchicalTransformer(**model.to_dict())).hidden
    of_one_shape = max(by_shape(list(hidden)), key=len)
    count = max(1, min(len(of_one_shape), MOST_ELEMENTS // of_one_shape[0].numel()))
    matrices = [torch.randn(of_one_shape[0].shape) for _ in range(count)]
    group = Muon([{"params": hidden}], lr=0.0).param_groups[0]
    calls: Calls = {name: partial(orthogonalise, matrices, DTYPES[name], group) for name in PRECISIONS}
    return milliseconds(calls, torch.device("cpu"))


def time_threads(model: ModelConfig, config: TrainConfig, precision: str) -> dict[str, float]:
    """Milliseconds of the passes of `time_precisions` on a CPU, with all threads, with half of them, and so on."""
    all_threads = torch.get_num_threads()
    run = block_passes(model, config.batch_size, torch.device("cpu"))

    def run_on(threads: int) -> None:
        with use_threads(threads):
            run(precision)

    counts = [all_threads >> halvings for halvings in range(all_threads.bit_length())]
    return milliseconds({str(threads): partial(run_on, threads) for threads in counts}, torch.device("cpu"))


def block_passes(model: ModelConfig, batch_size: int, device: torch.device) -> Callable[[str], None]:
    """A function that passes forward and backward through a block of each level, in the precision that it is given.

    The tokens are as many as in training, or as many of them as `MOST_ELEMENTS` allows.
    """
    parts: list[tuple[Block, Tensor, Tensor]] = []
    for level in model.levels:
        block = Block(level, model, attends=len(level.attention_layers) > 0).to(device)
        most_tokens = max(1, MOST_ELEMENTS // level.dim)
        tokens = min(level.segments.count(model.seq_len), most_tokens)
        rows = min(batch_size, max(1, most_tokens // tokens))
        x = torch.randn(rows, tokens, level.dim, device=device, requires_grad=True)
        cos_sin = torch.randn(2, 1, 1, tokens, level.dim_head, device=device)
        parts.append((block, x, cos_sin))

    def run(precision: str) -> None:
        for block, x, cos_sin in parts:
            with torch.autocast(device.type, DTYPES[precision], enabled=precision != "no"):
                y = block(x, cos_sin)
            torch.autograd.grad(y.sum(), [x, *block.parameters()])

    return run


def milliseconds(calls: Calls, device: torch.device) -> dict[str, float]:
    """The shortest time of each call, after one that warms it up. They take turns, as a machine's own speed varies."""
    shortest = dict.fromkeys(calls, float("inf"))
    begun = time.perf_counter()
    rounds = -1
    while rounds < FEWEST_ROUNDS or time.perf_counter() - begun < SECONDS:
        for name, call in calls.items():
            synchronize(device)
            started = time.perf_counter()
            call()
            synchronize(device)
            if rounds >= 0:
                shortest[name] = min(shortest[name], time.perf_counter() - started)
        rounds += 1
    return {name: round(1e3 * seconds, 3) for name, seconds in shortest.items()}
