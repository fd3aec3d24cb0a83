"""Sections of the throughput benchmark that time training steps of models.

They are step, flat, hierarchy, share, optimizer and growth.
"""

from typing import Any

import torch

from benchmarks import contenders
from benchmarks.contenders import CONFIGS, count_parameters, preset
from benchmarks.flops import flops_by_module
from benchmarks.speed.options import Options
from benchmarks.speed.training_steps import Entry, add_ratios, print_speeds, time_optimizer, time_training_steps
from benchmarks.tables import format_table
from training.config import load_config

FLAT: dict[str, Any] = {"num_tokens": 256, "dim": 256, "depth": 6, "dim_head": 64, "heads": 4}
# A thin fine level and a wide coarse one, as in enwik8-base.yaml.
TWO_LEVELS: dict[str, Any] = {"ff_mult": (2, 4), "hierarchies": (1, 4), "hierarchical_stride": (1, 4)}

# The reference's default architecture. The reference is told its windows; ours is told what the reference has built in.
STEP: dict[str, Any] = FLAT | {
    "depth": 4,
    "seq_len": 512,
    "hierarchies": (1, 2),
    "hierarchical_stride": 1,
    "window_sizes": (32, 64),
}
LARGE_STEP = STEP | {"dim": 1024, "depth": 8, "heads": 8, "seq_len": 2048}  # as in the reference's training script
BUILT_IN: dict[str, Any] = {"compress_mult": 4}


def compare_with_reference(options: Options) -> dict:
    """Section step: the reference and ours with the same architecture."""
    if options.large:
        config, batch = LARGE_STEP, 1
    else:
        config, batch = STEP, 4
    seq_len = config["seq_len"]

    entries = {
        "reference": Entry(contenders.reference(**config), batch, seq_len),
        "ours": Entry(contenders.ours(**config, **BUILT_IN), batch, seq_len),
    }
    if options.compile:
        entries["ours, compiled"] = Entry(contenders.ours(**config, **BUILT_IN), batch, seq_len, compiled=True)

    results = time_training_steps(entries, options)
    add_ratios(results, "reference")
    print_speeds(results, "reference")
    return results


def compare_flat(options: Options) -> dict:
    """Section flat: the decoder of x-transformers and ours with one level, at two lengths."""
    results = {}
    for seq_len in [512] if options.quick else [512, 2048]:
        batch = 2048 // seq_len
        entries = {
            "x-transformers": Entry(contenders.decoder(**FLAT, seq_len=seq_len), batch, seq_len),
            "ours": Entry(contenders.ours(**FLAT, seq_len=seq_len), batch, seq_len),
        }
        results[seq_len] = time_training_steps(entries, options)
        add_ratios(results[seq_len], "x-transformers")
        print(f"sequences of {seq_len:,} bytes")
        print_speeds(results[seq_len], "x-transformers")
    return results


def compare_hierarchy(options: Options) -> dict:
    """Section hierarchy: one level, and two levels with as many parameters."""
    seq_len = 512 if options.quick else 2048
    flat = contenders.ours(**FLAT, seq_len=seq_len)
    config = two_levels_of_size(count_parameters(flat), depth=FLAT["depth"], seq_len=seq_len, window_sizes=(64, None))
    entries = {
        "flat": Entry(flat, 1, seq_len),
        f"levels of {config['dim']}": Entry(contenders.ours(**config), 1, seq_len),
    }
    results = time_training_steps(entries, options)
    add_ratios(results, "flat")
    print_speeds(results, "flat")
    return results


def two_levels_of_size(parameters: int, **config) -> dict[str, Any]:
    """A config of two levels, with the width of the coarse level that comes closest to this number of parameters."""

    def with_width(dim: int) -> dict[str, Any]:
        return config | TWO_LEVELS | {"dim": (128, dim), "heads": (2, max(1, round(dim / 64)))}

    def distance(dim: int) -> int:
        with torch.device("meta"):
            return abs(count_parameters(contenders.ours(**with_width(dim))) - parameters)

    best_width = min(range(32, 1025, 16), key=distance)
    return with_width(best_width)


def measure_base_preset(options: Options) -> dict:
    """Section share: FLOPs of each part of enwik8-base.yaml, and the share of the peak that its step reaches."""
    config = preset("enwik8-base")
    seq_len = config["seq_len"]
    contender = contenders.ours(**config)

    # FLOPs by part.
    parts = flops_by_part(flops_by_module(contender, seq_len))
    total = sum(parts.values())
    rows = []
    for name, flops in parts.items():
        rows.append({"part": name, "MFLOPs/byte": f"{flops / 1e6:.2f}", "share": f"{100 * flops / total:.1f}%"})
    print(format_table(rows))

    # Speed.
    entries = {"enwik8-base": Entry(contender, options.batch, seq_len)}
    if options.compile:
        compiled = contenders.ours(**config)
        entries["enwik8-base, compiled"] = Entry(compiled, options.batch, seq_len, compiled=True)
    results = time_training_steps(entries, options)
    print_speeds(results)
    return {"flops_per_byte": parts, **results}


def flops_by_part(modules: dict[str, float]) -> dict[str, float]:
    """Sum `flops_by_module` over layers: the parts of each level, the merges and the losses. The rest is the logits."""
    parts: dict[str, float] = {}
    for name, flops in modules.items():
        match name.split("."):
            case ["levels", i, "compress"]:
                part = f"level {i}: compress"
            case ["levels", i, "blocks", _, "attn"]:
                part = f"level {i}: attention"
            case ["levels", i, "blocks", _, "ff"]:
                part = f"level {i}: feed-forward"
            case ["merges", _]:
                part = "merges"
            case ["losses", loss, _]:
                part = f"loss: {loss}"
            case _:
                continue
        parts[part] = parts.get(part, 0.0) + flops

    whole_model = modules[""]
    parts["logits"] = whole_model - sum(parts.values())
    return parts


def measure_optimizers(options: Options) -> dict:
    """Section optimizer: milliseconds of a step of the presets, their share of the peak, and the optimizer's part."""
    presets = ["quickstart"] if options.quick else ["quickstart", "enwik8-small", "flat"]
    if options.device == "cuda":
        presets.append("enwik8-base")  # a step takes a minute on a CPU

    results = {}
    rows = []
    for name in presets:
        config = load_config(["--config", str(CONFIGS / f"{name}.yaml")])
        results[name] = time_optimizer(config, options)
        for precision, seconds in results[name].items():
            row = {"preset": name, "precision": precision, "optimizer": config.train.optimizer}
            row["ms a step"] = f"{1e3 * seconds['step']:.0f}"
            row["ms of its FLOPs at the peak"] = f"{1e3 * seconds['floor']:.0f}"
            row["share of peak"] = f"{100 * seconds['floor'] / seconds['step']:.0f}%"
            for part in ("optimizer", "orthogonalisation"):
                row[f"ms of {part}"] = f"{1e3 * seconds[part]:.1f}"
                row[f"share of {part}"] = f"{100 * seconds[part] / seconds['step']:.1f}%"
            rows.append(row)
    print(format_table(rows))
    return results


def measure_growth(options: Options) -> dict:
    """Section growth: speed at several lengths, with the same number of bytes in every step."""
    bytes_per_step = 2048 if options.quick else 16384
    lengths = [n for n in (512, 1024, 2048, 4096, 8192, 16384) if n <= bytes_per_step]
    wide = TWO_LEVELS | {"dim": (128, 256), "heads": (2, 4)}
    configs = {
        "flat": {"dim": 256, "heads": 4},
        "windows 64 and all": wide | {"window_sizes": (64, None)},
        "windows 64 and 128": wide | {"window_sizes": (64, 128)},
    }

    entries = {}
    for name, config in configs.items():
        for n in lengths:
            contender = contenders.ours(**config, depth=4, seq_len=n)
            entries[f"{name}, {n}"] = Entry(contender, bytes_per_step // n, n)
    timed = time_training_steps(entries, options)

    results, rows = {}, []
    for name in configs:
        for precision in options.precisions:
            speeds = {n: timed[f"{name}, {n}, {precision}"]["bytes_per_second"] for n in lengths}
            lost = 1 - speeds[lengths[-1]] / speeds[lengths[0]]
            results[f"{name}, {precision}"] = {"bytes_per_second": speeds, "lost": lost}

            row = {"bytes/s": f"{name}, {precision}"}
            for n, speed in speeds.items():
                row[f"{n}"] = f"{speed:,.0f}"
            row["lost"] = f"{100 * lost:.0f}%"
            rows.append(row)
    print(format_table(rows))
    return results
