"""How fast bytes are drawn: `python -m benchmarks.generation`.

Ours with its cache, ours without, and the reference, which runs the whole sequence again for every byte; then a model
of two levels against a flat one of equal parameters, both cached. Weights are random: speed does not depend on them.
Models without a cache are timed on a few bytes at the full context, which is where they spend their time.
"""

import argparse
import json

import torch

from benchmarks.timing import median, spread, table, take_turns
from model import HierarchicalTransformer

SAME = {"num_tokens": 256, "dim": 256, "depth": 4, "seq_len": 2048, "dim_head": 64, "heads": 4}


def parameters(model: torch.nn.Module) -> int:
    """Of those that the next byte depends on."""
    return sum(p.numel() for p in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=1024, help="new bytes of the cached models")
    parser.add_argument("--uncached-length", type=int, default=4, help="new bytes of the others, at full context")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    levels = {"hierarchies": (1, 2), "hierarchical_stride": 1, "compress_mult": 4}  # as the reference has them
    ours = HierarchicalTransformer(**SAME, **levels).to(device).eval()
    stride4 = HierarchicalTransformer(
        **SAME | {"dim": (192, 256), "heads": (3, 4)}, hierarchies=(1, 4), window_sizes=(64, None)
    ).to(device)
    flat = HierarchicalTransformer(**SAME | {"dim": 320, "heads": 5, "depth": 5}).to(device)
    short = torch.randint(0, 256, (1, SAME["seq_len"] - args.length), device=device)
    full = torch.randint(0, 256, (1, SAME["seq_len"] - args.uncached_length), device=device)

    contenders = {
        "ours, cached": lambda: ours.generate(short, args.length),
        "ours, uncached": lambda: ours.generate(full, args.uncached_length, use_cache=False),
        "two levels, stride 4, cached": lambda: stride4.generate(short, args.length),
        "flat, cached": lambda: flat.generate(short, args.length),
    }
    models = {"ours, cached": ours, "ours, uncached": ours}
    models |= {"two levels, stride 4, cached": stride4, "flat, cached": flat}
    try:
        from simple_hierarchical_transformer import HierarchicalTransformer as Reference
    except ImportError:
        print("the reference is not installed: pip install -r benchmarks/requirements.txt")
    else:
        reference = Reference(**SAME, hierarchies=(1, 2), hierarchical_stride=1).to(device).eval()
        contenders["reference 0.4.0"] = lambda: reference.generate(full, args.uncached_length)
        models["reference 0.4.0"] = reference

    seconds = take_turns(contenders, args.rounds)
    speeds, rows = {}, []
    for name, times in seconds.items():
        length = args.length if "cached" in name and "uncached" not in name else args.uncached_length
        speeds[name] = length / median(times)
        rows.append(
            {
                "model": name,
                "parameters": f"{parameters(models[name]):,}",
                "bytes/s": f"{speeds[name]:.1f}",
                "ms/byte": f"{1000 / speeds[name]:.2f}",
                "spread": f"±{100 * spread(times):.0f}%",
            }
        )
    print(table(rows))
    result = {"device": device, "threads": args.threads, "bytes_per_second": speeds}
    result["two_levels_over_flat"] = speeds["two levels, stride 4, cached"] / speeds["flat, cached"]
    result["cached_over_uncached"] = speeds["ours, cached"] / speeds["ours, uncached"]
    if "reference 0.4.0" in speeds:
        result["cached_over_reference"] = speeds["ours, cached"] / speeds["reference 0.4.0"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
