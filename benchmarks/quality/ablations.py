"""What earns its time, one change at a time.

`python -m benchmarks.quality.ablations --out runs/ablations --data.name=enwik8`

All is as in `benchmarks.quality.race`: a clock of bytes a second, trials of equal time that resume. A change is
judged on the validation split, by its distance to the base of the same seed; where several learning rates are given,
each has its own best one.
"""

import json
from statistics import mean

from jsonargparse.typing import PositiveFloat

from benchmarks.quality.race import LEVELS, SAME, entrant, score_of
from benchmarks.quality.racing import Race, check_known, racing_parser
from benchmarks.quality.trials import Entry
from benchmarks.speed.timing import table
from training.command_line import user_errors
from training.config import TrainConfig

BASE = SAME | LEVELS
CHANGES = [  # arguments of the model, or fields of TrainConfig
    {"hierarchies": (1, 2)},
    {"hierarchies": (1, 8)},
    {"hierarchies": (1, 4, 16), "depth": (2, 3, 3), "window_sizes": (0, 256, None)},
    {"hierarchical_stride": (1, 2)},
    {"dim": 192, "heads": 3},
    {"dim": 96, "heads": 2},
    {"dim": (64, 128), "heads": (1, 2)},
    {"depth": (1, 3)},
    {"depth": (1, 5)},
    {"depth": (2, 2)},
    {"depth": (2, 4)},
    {"depth": (2, 6)},
    {"depth": 3},
    {"attn_depth": (None, 1)},
    {"attn_depth": (None, 2)},
    {"window_sizes": (32, 256)},
    {"window_sizes": (128, 256)},
    {"window_sizes": (0, 64)},
    {"window_sizes": (0, None)},
    {"hierarchy_merge_all": True},
    {"predict_use_all_hierarchy": True},
    {"compress_type": "conv"},
    {"compress_type": "attention"},
    {"compress_mult": 4.0, "compress_type": "conv"},
    {"recon_loss_weight": 0.1},
    {"prophet_loss_weight": 0.1},
    {"next_latent_loss_weight": 0.1},
    {"quantizer_loss_weight": 0.1},
    {"ngrams": ()},
    {"ngrams": (2, 3, 4)},
    {"ngrams": (2, 3, 4, 5, 6, 7, 8)},
    {"ngram_rows": 4096},
    {"ngram_rows": 65536},
    {"ngram_dropout": 0.0},
    {"ngram_dropout": 0.7},
    {"matches": ()},
    {"matches": (4, 6, 8)},
    {"matches": (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24)},
    {"word_matches": ()},
    {"match_places": 1},
    {"match_places": 3},
    {"qk_norm": True},
    {"kv_heads": 1},
    {"rotary_xpos": True},
    {"ff_mult": (2, 4)},
    {"ff_mult": 2},
    {"seq_len": 512, "window_sizes": (0, None)},
    {"seq_len": 2048},
    {"dropout": 0.0},
    {"dropout": 0.2},
    {"optimizer": "adamw"},
    {"weight_decay": 0.0},
    {"weight_decay": 0.3},
]


def main(argv: list[str] | None = None) -> None:
    parser = racing_parser("benchmarks.quality.ablations", __doc__)
    parser.add_argument(
        "--only", type=str, nargs="+", help="arguments or fields whose changes are tried; all when left out"
    )
    parser.add_argument("--rates", type=PositiveFloat, nargs="+", default=[4e-3], help="learning rates of each")
    args = parser.parse_args(argv)

    with user_errors():
        known = sorted({name for change in CHANGES for name in change})
        check_known("only", args.only or (), known)
        changes = [change for change in CHANGES if args.only is None or set(args.only) & set(change)]
        race = Race(
            args, {("base",): entry_of({}, args.quick)} | {(told(c),): entry_of(c, args.quick) for c in changes}
        )
    trials = {
        (*names, rate, seed): race.trial(names, rate, seed, args.minutes, final=False)
        for names in race.entries
        for rate in args.rates
        for seed in args.seeds
    }
    lines = race.run([((one[0],), trial) for one, trial in trials.items()])
    results = {}
    for (name,) in race.entries:
        scores = {r: [lines[trials[name, r, s].key]["validation"] for s in args.seeds] for r in args.rates}
        rate = min(args.rates, key=lambda rate: mean(map(score_of, scores[rate])))
        results[name] = race.speeds[name,] | {"learning_rate": rate, "validation_bits_per_byte": scores[rate]}
    rows = {name: row(name, result, results["base"]) for name, result in results.items()}
    print(table(sorted(rows.values(), key=lambda row: float(row["over base"].split()[0]))))
    print(json.dumps(race.circumstances() | {"minutes": args.minutes, "changes": results}))


def told(change: dict) -> str:
    """A change in words: its first part, with which the others go."""
    return next((f"{name} {value}" for name, value in change.items()), "base")


def entry_of(change: dict, quick: bool) -> Entry:
    """The base with a change."""
    train = {name: value for name, value in change.items() if name in TrainConfig.__dataclass_fields__}
    model = BASE | {name: value for name, value in change.items() if name not in train}
    return entrant("ours", model, quick, **train)


def row(name: str, result: dict, base: dict) -> dict:
    """A row of the table; distances are means over seeds, ± half of that between the best seed and the worst."""
    scores, its = ([score_of(bits) for bits in one["validation_bits_per_byte"]] for one in (result, base))
    over = [here - there for here, there in zip(scores, its, strict=True)]
    return {
        "change": name,
        "parameters": f"{result['parameters']:,}",
        "MFLOPs/byte": f"{result['flops_per_byte'] / 1e6:.2f}",
        "bytes/s": f"{result['bytes_per_second']:,.0f}",
        "rate": f"{result['learning_rate']:g}",
        "bits/byte": f"{mean(scores):.4f}",
        "over base": f"{mean(over):+.4f} ± {(max(over) - min(over)) / 2:.4f}",
    }


if __name__ == "__main__":
    main()
