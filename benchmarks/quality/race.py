"""Does a hierarchy pay? Byte models at equal time.

`python -m benchmarks.quality.race --out runs/race --data.name=enwik8`

First all are timed in turns, in bytes a second of whole training steps; from then on a minute is so many bytes. Sizes
and learning rates are tried for a while each, and rates beyond the edge as long as the best one stands there. The best
of each contender on the validation split trains for longer, on several seeds, and is scored on the test split: every
byte once, by windows of its own length that advance by half of it, in float32. All of one length see the same batches,
and all minimise cross-entropy over 256 bytes. A contender that is not causal ends the race.

The same command goes on after whatever stopped it, to the same end. The folder holds the clock (speeds.json), a line
for each trial (runs.jsonl) and the picture (race.png).
"""

import json
from math import inf, nan
from statistics import mean

from jsonargparse.typing import PositiveFloat

from benchmarks.contenders import preset, tuples
from benchmarks.quality.race_plot import mean_curve, plot
from benchmarks.quality.racing import Race, check_known, racing_parser
from benchmarks.quality.trials import Entry
from benchmarks.speed.timing import table
from model import ModelConfig
from training.command_line import user_errors

SAME = {"num_tokens": 256, "seq_len": 512, "dim_head": 64}
FLAT, LEVELS = preset("flat"), preset("enwik8-small")
OUR_TRAINING = {"optimizer": "muon"}
NEAR = {"hierarchies": (1, 2), "hierarchical_stride": 1, "window_sizes": (32, 64)}  # the reference's own
AFAR = {"hierarchies": (1, 4), "hierarchical_stride": (1, 4), "window_sizes": (64, None)}  # and at a stride of 4
HOURGLASS = {"depth": (1, 4, 1), "shorten_factor": 4}
MODERN = {"use_rmsnorm": True, "ff_glu": True, "ff_swish": True, "ff_no_bias": True, "shift_tokens": 1}
SIZES = {  # contender and size: its builder in benchmarks.contenders, and arguments beside those of SAME
    ("flat", "128 × 4"): ("ours", FLAT),
    ("flat", "192 × 4"): ("ours", FLAT | {"dim": 192, "heads": 3}),
    ("hierarchical", "128 × 2, 3"): ("ours", LEVELS),
    ("hierarchical", "192 × 2, 4"): ("ours", LEVELS | {"dim": 192, "heads": 3, "depth": (2, 4)}),
    ("reference", "192 × 4"): ("reference", NEAR | {"dim": 192, "depth": 4, "heads": 3}),
    ("reference", "128, 256 × 4, stride 4"): (
        "reference",
        AFAR | {"dim": (128, 256), "depth": 4, "heads": (2, 4), "ff_mult": (2, 4)},
    ),
    ("hourglass", "192 × 1, 4, 1"): ("hourglass", HOURGLASS | {"dim": 192, "heads": 3}),
    ("hourglass", "256 × 1, 4, 1, linear"): (
        "hourglass",
        HOURGLASS | {"dim": 256, "heads": 4, "updown_sample_type": "linear"},
    ),
    ("megabyte", "256, 128, patch 4"): ("megabyte", {"dim": (256, 128), "depth": (5, 3), "heads": 4, "patch": 4}),
    ("megabyte", "320, 192, patch 8"): ("megabyte", {"dim": (320, 192), "depth": (3, 3), "heads": 4, "patch": 8}),
    ("x-transformers", "192 × 4, modern"): ("decoder", MODERN | {"dim": 192, "depth": 4, "heads": 3}),
    ("x-transformers", "256 × 6"): ("decoder", {"dim": 256, "depth": 6, "heads": 4}),
}
CONTENDERS = list(dict.fromkeys(contender for contender, _ in SIZES))
BASELINE = "flat"  # whose final score is the quality that the others take their time to
RATES = [1e-3, 2e-3, 4e-3]  # learning rates to begin with
# With --quick.
TINY = {"dim": 16, "depth": 1, "attn_depth": 1, "heads": 2, "dim_head": 8, "seq_len": 32, "window_sizes": 2}


def main(argv: list[str] | None = None) -> None:
    parser = racing_parser("benchmarks.quality.race", __doc__)
    parser.add_argument("--contenders", type=str, nargs="+", default=CONTENDERS, help="who takes part")
    parser.add_argument("--sweep-minutes", type=PositiveFloat, default=2.0, help="of each size and learning rate")
    parser.add_argument("--rates", type=PositiveFloat, nargs="+", default=RATES, help="learning rates to begin with")
    parser.add_argument("--ours", type=dict, default={}, help="changes to our presets, as JSON")
    args = parser.parse_args(argv)

    with user_errors():
        check_known("contenders", args.contenders, CONTENDERS)
        check_known("ours", args.ours, ModelConfig.__dataclass_fields__)
        beside = {"ours": tuples(args.ours)}
        entries = {
            (contender, size): entrant(builder, SAME | model | beside.get(builder, {}), args.quick)
            for (contender, size), (builder, model) in SIZES.items()
            if contender in args.contenders
        }
        race = Race(args, entries)
    best = sweep(race, args)
    trials = {
        contender: [race.trial((contender, size), rate, seed, args.minutes, final=True) for seed in args.seeds]
        for contender, (size, rate) in best.items()
    }
    lines = race.run([((contender, best[contender][0]), one) for contender in trials for one in trials[contender]])
    results = {}
    for contender, (size, rate) in best.items():
        runs = [lines[trial.key] for trial in trials[contender]]
        results[contender] = {"size": size, "learning_rate": rate, **race.speeds[contender, size], "runs": runs}
    plot(results, race.folder / "race.png")
    outcome = conclude(results)
    print(table([row(f"{contender}, {line['size']}", line) for contender, line in outcome.items()]))
    print(race.folder / "race.png")
    print(json.dumps(race.circumstances() | {"minutes": args.minutes, "ours": args.ours, "contenders": outcome}))


def entrant(builder: str, model: dict, quick: bool, **train) -> Entry:
    """What is raced, in miniature if it is to be quick; `train` changes how it is trained."""
    return Entry(builder, shrunk(model) if quick else model, (OUR_TRAINING if builder == "ours" else {}) | train)


def shrunk(model: dict) -> dict:
    """A model in miniature."""
    small = {name: TINY[name] for name in TINY if name in model}
    return model | {
        name: tuple(value for _ in model[name]) if isinstance(model[name], tuple) else value
        for name, value in small.items()
    }


def sweep(race: Race, args) -> dict[str, tuple[str, float]]:
    """Each contender's best size and learning rate, at the end of short trials of the first seed."""
    tried = {(*one, rate) for one in race.entries for rate in args.rates}
    while True:
        trials = {
            (contender, size, rate): race.trial((contender, size), rate, args.seeds[0], args.sweep_minutes, final=False)
            for contender, size, rate in sorted(tried)
        }
        lines = race.run([(one[:2], trial) for one, trial in trials.items()])
        scores: dict = {one: score_of(lines[trial.key]["validation"]) for one, trial in trials.items()}
        best, edges = {}, set()
        for contender in dict.fromkeys(contender for contender, _ in race.entries):
            _, size, rate = min((one for one in trials if one[0] == contender), key=scores.__getitem__)
            best[contender] = size, rate
            rates = [other for *one, other in tried if one == [contender, size]]
            edges |= {(contender, size, 2 * rate)} if rate == max(rates) else set()
            edges |= {(contender, size, rate / 2)} if rate == min(rates) else set()
        if args.quick or not edges:
            return best
        tried |= edges


def conclude(results: dict[str, dict]) -> dict[str, dict]:
    """What each contender came to, with the seconds it took to the score that the baseline ends with."""
    goal = mean_curve(results[BASELINE]["runs"])[-1] if BASELINE in results else nan
    known = ("size", "parameters", "flops_per_byte", "bytes_per_second", "learning_rate")
    return {
        contender: {name: result[name] for name in known}
        | {
            "bytes": result["runs"][0]["curve"][-1]["bytes"],
            "test_bits_per_byte": [run["test"] for run in result["runs"]],
            "validation_bits_per_byte": [run["validation"] for run in result["runs"]],
            "seconds_to_baseline": seconds_to(goal, result),
        }
        for contender, result in results.items()
    }


def row(name: str, line: dict) -> dict:
    """A row of the table; a score is the mean over seeds, ± half of the distance between the best and the worst."""
    scores, seconds = [score_of(bits) for bits in line["test_bits_per_byte"]], line["seconds_to_baseline"]
    return {
        "contender": name,
        "parameters": f"{line['parameters']:,}",
        "MFLOPs/byte": f"{line['flops_per_byte'] / 1e6:.2f}",
        "bytes/s": f"{line['bytes_per_second']:,.0f}",
        "bytes seen": f"{line['bytes']:,}",
        "rate": f"{line['learning_rate']:g}",
        "test bits/byte": f"{mean(scores):.4f} ± {(max(scores) - min(scores)) / 2:.4f}",
        f"minutes to {BASELINE}'s end": "" if seconds is None else f"{seconds / 60:.2f}",
    }


def score_of(bits: float | None) -> float:
    """Bits per byte, where none, of weights that are not finite, is the worst."""
    return inf if bits is None else bits


def seconds_to(goal: float, result: dict) -> float | None:
    """When the mean over seeds comes down to a score, in a straight line between its points; None if it never does."""
    before = None
    for point, bits in zip(result["runs"][0]["curve"], mean_curve(result["runs"]), strict=True):
        if bits <= goal:
            share = 1.0 if before is None else (before[1] - goal) / (before[1] - bits)
            start = 0 if before is None else before[0]
            return (start + share * (point["bytes"] - start)) / result["bytes_per_second"]
        before = (point["bytes"], bits) if bits > goal else None
    return None


if __name__ == "__main__":
    main()
