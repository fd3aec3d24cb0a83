"""Change one thing at a time in our preset and see what it brings after equal training time.

`python -m benchmarks.quality.ablations --out runs/ablations --data.name=enwik8`

Everything else is as in `benchmarks.quality.race`: measured speeds, trials of equal training time, and the same command
continues an interrupted run. A change is judged on the validation split by its distance from the base of the same seed.
If several learning rates are given, each change is shown at its own best one.

Prints a table, the best change first, and as the last line a JSON object. The folder holds the speeds (speeds.json) and
a line for each trial (runs.jsonl).
"""

import json
from collections.abc import Mapping
from statistics import mean
from typing import Any

from jsonargparse.typing import PositiveFloat

from benchmarks.quality.entries import HIERARCHICAL, SHARED, make_entry
from benchmarks.quality.race_setup import (
    Names,
    Race,
    check_known,
    mean_and_spread,
    race_parser,
    read_race_options,
    score_or_infinity,
)
from benchmarks.quality.trial_runner import Result
from benchmarks.quality.trials import Entry
from benchmarks.tables import format_table
from training.command_line import user_errors
from training.config import TrainConfig
from utils.terminal import run_program

BASE = SHARED | HIERARCHICAL
# Arguments of the model, or fields of TrainConfig.
CHANGES: list[dict[str, Any]] = [
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
    {"ngram_buckets": 4096},
    {"ngram_buckets": 65536},
    {"ngram_dropout": 0.0},
    {"ngram_dropout": 0.7},
    {"matches": ()},
    {"matches": (4, 6, 8)},
    {"matches": (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24)},
    {"word_matches": ()},
    {"matches_per_context": 1},
    {"matches_per_context": 3},
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
    parser = race_parser("benchmarks.quality.ablations", __doc__)
    parser.add_argument("--minutes", type=PositiveFloat, default=10.0, help="training time of a trial")
    parser.add_argument(
        "--only", type=str, nargs="+", help="arguments or fields whose changes are tried; all when left out"
    )
    parser.add_argument("--rates", type=PositiveFloat, nargs="+", default=[4e-3], help="learning rates of each change")
    args = parser.parse_args(argv)

    with user_errors():
        changes = choose_changes(args.only)
        options = read_race_options(args)
        entries: dict[Names, Entry] = {("base",): changed_entry({}, options.quick)}
        for change in changes:
            entries[name_of(change),] = changed_entry(change, options.quick)
        race = Race(options, entries)

    # Train everything.
    planned = {}
    for (name,) in race.entries:
        for rate in args.rates:
            for seed in options.seeds:
                planned[name, rate, seed] = race.plan_trial((name,), rate, seed, args.minutes, final=False)
    runs = race.run_trials(planned)

    # Report each change at its best learning rate.
    results = {}
    for (name,) in race.entries:
        rate, scores = best_rate(name, args.rates, options.seeds, runs)
        results[name] = race.speeds[name,] | {"learning_rate": rate, "validation_bits_per_byte": scores}
    names = sorted(results, key=lambda name: mean(differences(results[name], results["base"])))
    print(format_table([table_row(name, results[name], results["base"]) for name in names]))
    print(json.dumps(race.conditions() | {"minutes": args.minutes, "changes": results}))


def choose_changes(only: list[str] | None) -> list[dict[str, Any]]:
    """The changes of some arguments or fields, or all changes.

    Raises:
        UserError: when no change has one of these names.
    """
    if only is None:
        return CHANGES
    known = sorted({name for change in CHANGES for name in change})
    check_known("only", only, known)
    return [change for change in CHANGES if set(only) & set(change)]


def name_of(change: dict[str, Any]) -> str:
    """The name of a change: its first part, since the others only follow from it."""
    name, value = next(iter(change.items()))
    return f"{name} {value}"


def changed_entry(change: dict[str, Any], quick: bool) -> Entry:
    """The base with a change."""
    train = {name: value for name, value in change.items() if name in TrainConfig.__dataclass_fields__}
    model = {name: value for name, value in change.items() if name not in train}
    return make_entry("ours", BASE | model, quick, **train)


def best_rate(
    name: str, rates: list[float], seeds: list[int], runs: Mapping[tuple[str, float, int], Result]
) -> tuple[float, list[float | None]]:
    """A change's learning rate with the best mean over seeds, and its validation scores by seed."""
    scores = {rate: [runs[name, rate, seed]["validation"] for seed in seeds] for rate in rates}

    def mean_score(rate: float) -> float:
        return mean(score_or_infinity(bits) for bits in scores[rate])

    best = min(rates, key=mean_score)
    return best, scores[best]


def differences(result: dict[str, Any], base: dict[str, Any]) -> list[float]:
    """By how many bits per byte a change is above the base, for each seed."""
    changed = [score_or_infinity(bits) for bits in result["validation_bits_per_byte"]]
    unchanged = [score_or_infinity(bits) for bits in base["validation_bits_per_byte"]]
    return [one - other for one, other in zip(changed, unchanged, strict=True)]


def table_row(name: str, result: dict[str, Any], base: dict[str, Any]) -> dict[str, str]:
    """A row of the table. Differences are means over seeds, ± half the distance from the best to the worst."""
    scores = [score_or_infinity(bits) for bits in result["validation_bits_per_byte"]]
    above_base = differences(result, base)
    return {
        "change": name,
        "parameters": f"{result['parameters']:,}",
        "MFLOPs/byte": f"{result['flops_per_byte'] / 1e6:.2f}",
        "bytes/s": f"{result['bytes_per_second']:,.0f}",
        "learning rate": f"{result['learning_rate']:g}",
        "bits/byte": f"{mean(scores):.4f}",
        "difference to base": mean_and_spread(above_base, "+.4f"),
    }


if __name__ == "__main__":
    run_program(main)
