"""Measure how fast models generate bytes.

`python -m benchmarks.speed.generation [--length 1024] [--rounds 3]`

Times our model with its cache, on a CPU also with its steps compiled, our model without a cache, and the reference,
which runs the whole sequence again for every byte. Each generates in two ways: after a prompt that fills the context,
and from half of the context to all of it. A model of two levels, a flat one of as many parameters and the preset
enwik8-small.yaml follow. Weights are random, since speed does not depend on them.

Models without a cache are slow, so they generate a few single bytes instead of the whole text, at context lengths that
are spread evenly over it.

Prints a table, and as the last line a JSON object with bytes per second and the ratios of speeds.
"""

import argparse
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders import count_parameters, preset
from benchmarks.speed.timing import median, spread, time_in_turns
from benchmarks.tables import format_table
from model import HierarchicalTransformer
from model.generation.prepare import prepare_for_generation
from utils.terminal import run_program

SEQ_LEN = 2048
SHARED: dict[str, Any] = {"num_tokens": 256, "dim": 256, "depth": 4, "seq_len": SEQ_LEN, "dim_head": 64, "heads": 4}
REFERENCE_LEVELS: dict[str, Any] = {"hierarchies": (1, 2), "hierarchical_stride": 1}
# A thin fine level and a wide coarse one, as in enwik8-base.yaml.
TWO_LEVELS: dict[str, Any] = {"dim": (128, 304), "heads": (2, 5), "hierarchies": (1, 4), "window_sizes": (64, None)}
FULL, HALF = "full context", "half to full"


@dataclass(frozen=True)
class Run:
    """One call of one model, and how many bytes it generates."""

    model: nn.Module
    call: Callable[[], object]
    length: int


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.generation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--length", type=int, default=1024, help="bytes to generate")
    parser.add_argument("--samples", type=int, default=4, help="bytes to generate with models without a cache")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch on a CPU")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    runs = prepare_runs(device, args.length, args.samples)
    seconds = time_in_turns({name: run.call for name, run in runs.items()}, args.rounds)
    speeds = {name: runs[name].length / median(times) for name, times in seconds.items()}

    rows = []
    for name, speed in speeds.items():
        rows.append(
            {
                "model": name,
                "parameters": f"{count_parameters(runs[name].model):,}",
                "bytes/s": f"{speed:.1f}",
                "ms/byte": f"{1000 / speed:.2f}",
                "spread": f"±{100 * spread(seconds[name]):.0f}%",
            }
        )
    print(format_table(rows))
    result = {"device": device, "threads": args.threads, "bytes_per_second": speeds}
    print(json.dumps(result | speed_ratios(speeds)))


def prepare_runs(device: str, length: int, samples: int) -> dict[str, Run]:
    """What is timed, by name."""
    configs = {
        "ours": SHARED | REFERENCE_LEVELS | {"compress_mult": 4},  # the reference's architecture
        "two levels, stride 4": SHARED | TWO_LEVELS,
        "flat": SHARED | {"dim": 320, "heads": 5, "depth": 5},
        "enwik8-small.yaml": preset("enwik8-small"),
    }
    models = {name: HierarchicalTransformer(**config).to(device).eval() for name, config in configs.items()}

    text = torch.randint(0, 256, (1, SEQ_LEN), device=device)
    half = SEQ_LEN - length
    half_prompt = text[:, :half]
    prompts_for_single_bytes = {
        FULL: [text] * samples,
        HALF: [text[:, : half + int((i + 0.5) * length / samples)] for i in range(samples)],
    }

    # With a cache. A GPU replays recorded steps anyway, so only a CPU has a compiled variant.
    runs = {}
    for name, model in models.items():
        for variant in ["cached"] if device == "cuda" else ["cached", "compiled"]:
            prepared = deepcopy(model)
            prepare_for_generation(prepared, compiled=variant == "compiled")  # as generate.py does
            runs[f"{name}, {variant}, {FULL}"] = generate_text(prepared, text, length)
            if name == "ours":
                runs[f"{name}, {variant}, {HALF}"] = generate_text(prepared, half_prompt, length)

    # Without one.
    for context, prompts in prompts_for_single_bytes.items():
        runs[f"ours, uncached, {context}"] = generate_single_bytes(models["ours"], prompts, use_cache=False)
    reference = build_reference(device)
    if reference is not None:
        for context, prompts in prompts_for_single_bytes.items():
            runs[f"reference 0.4.0, {context}"] = generate_single_bytes(reference, prompts)
    return runs


def generate_text(model: HierarchicalTransformer, prompt: Tensor, length: int) -> Run:
    """Continue a prompt (1 n) by `length` bytes."""
    return Run(model, lambda: model.generate(prompt, length), length)


def generate_single_bytes(model: Any, prompts: list[Tensor], **options) -> Run:
    """Continue each of the prompts (1 n) by a single byte. The options are those of `model.generate`."""

    def call() -> None:
        for prompt in prompts:
            model.generate(prompt, 1, **options)

    return Run(model, call, len(prompts))


def build_reference(device: str) -> nn.Module | None:
    """The model of simple-hierarchical-transformer; prints a line and returns None if it is not installed."""
    try:
        from simple_hierarchical_transformer import HierarchicalTransformer as Reference
    except ImportError:
        print("the reference is not installed: pip install -r benchmarks/requirements.txt")
        return None
    return Reference(**SHARED, **REFERENCE_LEVELS).to(device).eval()


def speed_ratios(speeds: dict[str, float]) -> dict[str, float]:
    """Ratios of the speeds that were measured: two levels over one, and ours over models without a cache."""
    two_levels, flat = f"two levels, stride 4, cached, {FULL}", f"flat, cached, {FULL}"
    ratios = {"two_levels_over_flat": speeds[two_levels] / speeds[flat]}
    for context in (FULL, HALF):
        for variant in ("cached", "compiled"):
            for other in ("ours, uncached", "reference 0.4.0"):
                faster, slower = f"ours, {variant}, {context}", f"{other}, {context}"
                if faster in speeds and slower in speeds:
                    ratios[f"{variant} over {other}, {context}"] = speeds[faster] / speeds[slower]
    return ratios


if __name__ == "__main__":
    run_program(main)
