"""How fast bytes are drawn: `python -m benchmarks.speed.generation`.

Ours with its cache, on a CPU with its steps compiled as well, ours without one, and the reference, which runs the whole
sequence again for every byte, twice: going on from a prompt that fills the context, and from one of half of it to the
full context. Then a model of two levels against a flat one of equal parameters, and a preset. Weights are random: speed
does not depend on them. Models without a cache are timed on single bytes at contexts spread evenly over those of the
whole text, whose mean is theirs.
"""

import argparse
import json
from copy import deepcopy

import torch

from benchmarks.contenders import preset
from benchmarks.speed.timing import median, spread, table, take_turns
from model import HierarchicalTransformer
from model.generation.prepare import lay_out_for_decoding

SAME = {"num_tokens": 256, "dim": 256, "depth": 4, "seq_len": 2048, "dim_head": 64, "heads": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=1024, help="new bytes")
    parser.add_argument("--samples", type=int, default=4, help="bytes of the models without a cache")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    stride4 = {"dim": (128, 304), "heads": (2, 5), "hierarchies": (1, 4), "window_sizes": (64, None)}
    configs = {
        "ours": SAME
        | {"hierarchies": (1, 2), "hierarchical_stride": 1, "compress_mult": 4},  # as the reference has them
        "two levels, stride 4": SAME | stride4,  # a thin fine level under a wide coarse one, as in enwik8-base.yaml
        "flat": SAME | {"dim": 320, "heads": 5, "depth": 5},
        "enwik8-small.yaml": preset("enwik8-small"),
    }
    models = {name: HierarchicalTransformer(**config).to(device).eval() for name, config in configs.items()}
    text = torch.randint(0, 256, (1, SAME["seq_len"]), device=device)
    half = SAME["seq_len"] - args.length
    spread_out = [half + int((i + 0.5) * args.length / args.samples) for i in range(args.samples)]

    def whole(model, prompt):
        return lambda: model.generate(prompt, args.length), args.length

    def single(model, contexts, **options):
        return lambda: [model.generate(text[:, :n], 1, **options) for n in contexts], len(contexts)

    full, runs = [SAME["seq_len"]] * args.samples, {}
    for name, model in models.items():
        for way in ("cached",) if device == "cuda" else ("cached", "compiled"):  # a GPU replays steps anyway
            ready = deepcopy(model)
            lay_out_for_decoding(ready, compiled=way == "compiled")  # as generate.py does
            runs[f"{name}, {way}, full context"] = (ready, *whole(ready, text))
            if name == "ours":
                runs[f"{name}, {way}, half to full"] = (ready, *whole(ready, text[:, :half]))
    ours = models["ours"]
    runs["ours, uncached, full context"] = (ours, *single(ours, full, use_cache=False))
    runs["ours, uncached, half to full"] = (ours, *single(ours, spread_out, use_cache=False))
    try:
        from simple_hierarchical_transformer import HierarchicalTransformer as Reference
    except ImportError:
        print("the reference is not installed: pip install -r benchmarks/requirements.txt")
    else:
        reference = Reference(**SAME, hierarchies=(1, 2), hierarchical_stride=1).to(device).eval()
        runs["reference 0.4.0, full context"] = (reference, *single(reference, full))
        runs["reference 0.4.0, half to full"] = (reference, *single(reference, spread_out))

    seconds = take_turns({name: run for name, (_, run, _) in runs.items()}, args.rounds)
    speeds = {name: runs[name][2] / median(times) for name, times in seconds.items()}
    rows = [
        {
            "model": name,
            "parameters": f"{sum(p.numel() for p in runs[name][0].parameters()):,}",
            "bytes/s": f"{speed:.1f}",
            "ms/byte": f"{1000 / speed:.2f}",
            "spread": f"±{100 * spread(seconds[name]):.0f}%",
        }
        for name, speed in speeds.items()
    ]
    print(table(rows))
    result = {"device": device, "threads": args.threads, "bytes_per_second": speeds}
    result["two_levels_over_flat"] = (
        speeds["two levels, stride 4, cached, full context"] / speeds["flat, cached, full context"]
    )
    for range_ in ("full context", "half to full"):
        for ours_ in ("cached", "compiled"):
            for other in ("ours, uncached", "reference 0.4.0"):
                one, two = f"ours, {ours_}, {range_}", f"{other}, {range_}"
                if one in speeds and two in speeds:
                    result[f"{ours_} over {other}, {range_}"] = speeds[one] / speeds[two]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
