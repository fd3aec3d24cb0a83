"""How fast it trains, beside its peers and the machine's limit: `python -m benchmarks.speed.throughput`.

Contenders take turns, and medians count; ratios are what to look at, for a machine's speed moves. A section prints a
table, and the last line is one JSON object of all of them. What is not installed is left out.

A share of the peak is the work of a training step, as `benchmarks.contenders.count_flops` counts it, over its time and
the fastest square matrix product's speed. Speeds are of whole steps: forward, backward, clipping and AdamW.
"""

import argparse
import json
from pathlib import Path

import torch
import yaml

from benchmarks import contenders
from benchmarks.contenders import count_flops, count_parameters, random_ids, training_step
from benchmarks.speed import machine
from benchmarks.speed.memory import step_memory
from benchmarks.speed.timing import median, spread, table, take_turns
from data import DataConfig, open_corpus
from training.parallel import wrap_blocks

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
FLAT: dict = {"num_tokens": 256, "dim": 256, "depth": 6, "dim_head": 64, "heads": 4}
TWO_LEVELS = {"ff_mult": (2, 4), "hierarchies": (1, 4), "hierarchical_stride": (1, 4)}  # as enwik8-base.yaml has them
# The reference's default architecture, of which it must be told the windows, and we what it has built in.
STEP: dict = dict(FLAT, depth=4, seq_len=512, hierarchies=(1, 2), hierarchical_stride=1, window_sizes=(32, 64))
UPSTREAM = STEP | {"dim": 1024, "depth": 8, "heads": 8, "seq_len": 2048}  # of its train.py, without the other losses
BUILT_IN = {"compress_mult": 4}
COMPILED = ", compiled"  # ends the names of contenders that are


def preset(name: str) -> dict:
    """The model of a config."""
    return yaml.safe_load((machine.REPO / "configs" / f"{name}.yaml").read_text())["model"]


def race(entries: dict[str, tuple], args) -> dict:
    """Steps of (contender or None, batch, length) in turns with products that measure the machine's peak.

    Returns by "name, precision": bytes a second, their spread, FLOPs a byte, and the share of the peak of this race.
    """
    entries = {name: entry for name, entry in entries.items() if entry[0] is not None}
    peaks = {precision: machine.Peak(PRECISIONS[precision], args.device) for precision in args.precisions}
    steps: dict = {("peak", precision): peak.measure for precision, peak in peaks.items()}
    flops = {}
    for name, (contender, batch, n) in entries.items():
        flops[name] = count_flops(contender, n)
        contender.to(args.device).train()
        if name.endswith(COMPILED):
            wrap_blocks(contender, compiling=True)
        for precision in args.precisions:
            ids = random_ids(batch, n, args.device)
            steps[name, precision] = training_step(contender, ids, precision == "bf16")
    results, times = {}, take_turns(steps, args.rounds)
    for name, precision in [key for key in steps if key[0] != "peak"]:
        (contender, batch, n), seconds = entries[name], times[name, precision]
        speed = batch * n / median(seconds)
        results[f"{name}, {precision}"] = {
            "bytes_per_second": speed,
            "spread": spread(seconds),
            "flops_per_byte": flops[name],
            "share_of_peak": speed * flops[name] / peaks[precision].best,
            "parameters": count_parameters(contender),
        }
    return results


def show(results: dict, baseline: str | None = None) -> None:
    """The table of a race, with speeds over those of the contender named `baseline` in the same precision."""
    rows = []
    for name, result in results.items():
        row = {
            "model": name,
            "parameters": f"{result['parameters']:,}",
            "bytes/s": f"{result['bytes_per_second']:,.0f}",
            "spread": f"±{100 * result['spread']:.0f}%",
            "MFLOPs/byte": f"{result['flops_per_byte'] / 1e6:.2f}",
            "of the peak": f"{100 * result['share_of_peak']:.0f}%",
        }
        if baseline is not None:
            other = results.get(f"{baseline}, {name.rsplit(', ', 1)[1]}")
            result["ratio"] = result["bytes_per_second"] / other["bytes_per_second"] if other else None
            row[f"over {baseline}"] = f"{result['ratio']:.2f} ×" if other else ""
        rows.append(row)
    print(table(rows))


def peak(args) -> dict:
    """What the machine can do: matrix products, square and as a layer has them, and its memory"""
    results, rows = {}, []
    shapes = [(2048, 256, 1024), (2048, 1024, 256), (4096, 384, 768), (1024, 576, 2304)]
    for name in args.precisions:
        dtype = PRECISIONS[name]
        results[name] = {"square": machine.Peak(dtype, args.device).measure(2.0)}
        for shape in shapes:
            results[name]["×".join(map(str, shape))] = machine.linear_speed(dtype, args.device, *shape, args.rounds)
        rows.append({"GFLOPs/s": name} | {shape: f"{speed / 1e9:,.0f}" for shape, speed in results[name].items()})
    results["memory"] = machine.bandwidth(args.device, args.rounds)
    print(table(rows))
    print("memory: " + ", ".join(f"{name} {speed / 1e9:.1f} GB/s" for name, speed in results["memory"].items()))
    return results


def step(args) -> dict:
    """A training step beside the reference's, of the same architecture"""
    shape, batch = (UPSTREAM, 1) if args.large else (STEP, 4)
    entries = {
        "reference": (contenders.reference(**shape), batch, shape["seq_len"]),
        "ours": (contenders.ours(**shape, **BUILT_IN), batch, shape["seq_len"]),
    }
    if args.compile:
        entries["ours" + COMPILED] = contenders.ours(**shape, **BUILT_IN), batch, shape["seq_len"]
    results = race(entries, args)
    show(results, "reference")
    return results


def flat(args) -> dict:
    """One level beside the decoder of x-transformers"""
    results = {}
    for n in (512,) if args.quick else (512, 2048):
        batch = 2048 // n
        raced = race(
            {
                "x-transformers": (contenders.decoder(**FLAT, seq_len=n), batch, n),
                "ours": (contenders.ours(**FLAT, seq_len=n), batch, n),
            },
            args,
        )
        print(f"sequence {n}")
        show(raced, "x-transformers")
        results[n] = raced
    return results


def two_levels(parameters: int, **config) -> dict:
    """A config of a thin fine level and a coarse one as wide as it takes to have about so many parameters."""

    def build(dim: int) -> dict:
        return config | TWO_LEVELS | {"dim": (128, dim), "heads": (2, max(1, round(dim / 64)))}

    def miss(dim: int) -> int:
        with torch.device("meta"):
            return abs(count_parameters(contenders.ours(**build(dim))) - parameters)

    return build(min(range(32, 1025, 16), key=miss))


def hierarchy(args) -> dict:
    """Levels (1, 4) at stride 4 beside one level of as many parameters"""
    n = 512 if args.quick else 2048
    one = contenders.ours(**FLAT, seq_len=n)
    config = two_levels(count_parameters(one), depth=FLAT["depth"], seq_len=n, window_sizes=(64, None))
    two = contenders.ours(**config)
    results = race({"flat": (one, 1, n), f"levels of {config['dim']}": (two, 1, n)}, args)
    show(results, "flat")
    return results


def share(args) -> dict:
    """The work of enwik8-base.yaml by parts, and the share of the peak that its step reaches"""
    config = preset("enwik8-base")
    batch, n = args.batch, config["seq_len"]
    model = contenders.ours(**config)
    parts = flops_by_part(contenders.flops_by_module(model, n))
    total = sum(parts.values())
    shares = {name: (f"{flops / 1e6:.2f}", f"{100 * flops / total:.1f}%") for name, flops in parts.items()}
    print(table([{"part": name, "MFLOPs/byte": work, "share": part} for name, (work, part) in shares.items()]))
    entries = {"enwik8-base": (model, batch, n)}
    if args.compile:
        entries["enwik8-base" + COMPILED] = contenders.ours(**config), batch, n
    results = race(entries, args)
    show(results)
    return {"flops_per_byte": parts, **results}


def flops_by_part(modules: dict[str, float]) -> dict[str, float]:
    """`flops_by_module` summed over layers: parts of each level, merges, losses, and the logits, which are the rest."""
    parts = {}
    for name, flops in modules.items():
        match name.split("."):
            case ["levels", i, "compress"]:
                part = f"level {i}: compress"
            case ["levels", i, "blocks", _, "attn" | "ff" as kind]:
                part = f"level {i}: {'attention' if kind == 'attn' else 'feed-forward'}"
            case ["merges", _]:
                part = "merges"
            case ["losses", loss, _]:
                part = f"loss: {loss}"
            case _:
                continue
        parts[part] = parts.get(part, 0.0) + flops
    return parts | {"logits": modules[""] - sum(parts.values())}


def growth(args) -> dict:
    """Speed against length, the bytes of a step held equal"""
    whole = 2048 if args.quick else 16384
    lengths = [n for n in (512, 1024, 2048, 4096, 8192, 16384) if n <= whole]
    models = {"flat": {"dim": 256, "heads": 4}}
    for name, coarse in (("windows 64 and all", None), ("windows 64 and 128", 128)):
        models[name] = TWO_LEVELS | {"dim": (128, 256), "heads": (2, 4), "window_sizes": (64, coarse)}
    entries = {
        f"{name}, {n}": (contenders.ours(**config, depth=4, seq_len=n), whole // n, n)
        for name, config in models.items()
        for n in lengths
    }
    raced, results, rows = race(entries, args), {}, []
    for name in models:
        for precision in args.precisions:
            speeds = {n: raced[f"{name}, {n}, {precision}"]["bytes_per_second"] for n in lengths}
            lost = 1 - speeds[lengths[-1]] / speeds[lengths[0]]
            results[f"{name}, {precision}"] = {"bytes_per_second": speeds, "lost": lost}
            cells = {f"{n}": f"{speed:,.0f}" for n, speed in speeds.items()}
            rows.append({"bytes/s": f"{name}, {precision}"} | cells | {"lost": f"{100 * lost:.0f}%"})
    print(table(rows))
    return results


def memory(args) -> dict:
    """Peak memory of a step without recomputation, beyond weights and optimizer, each in a process of its own"""
    results, rows, batch = {}, [], 8
    for precision in args.precisions:
        sizes = {}
        for kind, config in (("reference", STEP), ("ours", STEP | BUILT_IN)):
            peaks = [step_memory(kind, config, batch, precision == "bf16", args.threads) for _ in range(args.rounds)]
            sizes[kind] = median(peaks) / (batch * STEP["seq_len"])
        ratio = sizes["ours"] / sizes["reference"] if sizes["reference"] else None
        results[precision] = {"bytes_per_token": sizes, "ratio": ratio}
        cells = {f"{kind}, KiB a byte of text": f"{size / 1024:.1f}" for kind, size in sizes.items()}
        rows.append({"precision": precision} | cells | {"ratio": f"{ratio:.2f} ×" if ratio else ""})
    print(table(rows))
    return results


def startup(args) -> dict:
    """From a command to its answer"""
    accelerate = [str(Path(machine.sys.executable).with_name("accelerate")), "launch"]
    launchers = {"python train.py": [machine.sys.executable], "accelerate launch train.py": accelerate}
    machine.first_step_seconds(launchers["python train.py"])  # caches the corpus
    seconds = {"train.py --help": [machine.help_seconds() for _ in range(args.rounds)]}
    for name, launcher in launchers.items():
        seconds[f"{name}, first step"] = [machine.first_step_seconds(launcher) for _ in range(args.rounds)]
    print(table([{"command": name, "seconds": f"{median(times):.2f}"} for name, times in seconds.items()]))
    results: dict = {name: median(times) for name, times in seconds.items()}
    for name, arguments in {"train.py --help": ["train.py", "--help"], "a run": ["-c", "import train"]}.items():
        costs = list(machine.import_seconds(arguments).items())[:8]
        print(f"imports of {name}: " + ", ".join(f"{package} {cost:.2f} s" for package, cost in costs))
        results[f"imports of {name}"] = dict(costs)
    return results


def data(args) -> dict:
    """Batches from the memory map beside the rate at which quickstart's model eats them, four sequences a step"""
    config = preset("quickstart")
    corpus, n, batch = open_corpus(DataConfig(name="python")), config["seq_len"], 4
    made = machine.batches_per_second(corpus, n, batch, args.rounds)
    eaten = race({"quickstart": (contenders.ours(**config), batch, n)}, args)
    results = {"made": made, "eaten": {name: result["bytes_per_second"] for name, result in eaten.items()}}
    results["ratio"] = {name: made / speed for name, speed in results["eaten"].items()}
    rows = []
    for name, speed in results["eaten"].items():
        ratio = f"{made / speed:,.0f} ×"
        rows.append({"model": name, "bytes/s made": f"{made:,.0f}", "eaten": f"{speed:,.0f}", "ratio": ratio})
    print(table(rows))
    return results


SECTIONS = {f.__name__: f for f in (peak, step, flat, hierarchy, share, growth, memory, startup, data)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to run")
    parser.add_argument("--rounds", type=int, help="timed steps of each contender; 5, or 1 with --quick")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--batch", type=int, default=1, help="sequences of a step of enwik8-base")
    parser.add_argument("--large", action="store_true", help="step: the reference's own train config, at batch 1")
    parser.add_argument("--compile", action="store_true", help="step, share: ours compiled as well")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    name = torch.cuda.get_device_name() if args.device == "cuda" else torch.backends.cpu.get_cpu_capability()
    results = {"device": args.device, "name": name, "threads": args.threads, "rounds": args.rounds}
    results["torch"] = torch.__version__
    for section in args.only:
        print(f"\n{section}: {SECTIONS[section].__doc__}", flush=True)
        results[section] = SECTIONS[section](args)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
