"""Compare byte models after equal training time: does a hierarchy pay?

`python -m benchmarks.quality.race --out runs/race --data.name=enwik8`

1. Measure the training speed of every contender and size, in turns. From then on a minute is a fixed number of bytes.
2. Train every size at every learning rate for a short time. As long as the best learning rate of a contender is the
   lowest or the highest one tried, try half or twice of it, too.
3. Train the best size and learning rate of each contender for longer, with several seeds.
4. Score them on the test split in float32: every byte once, in windows of the contender's own length that advance by
   half of it.

Contenders of the same length see the same batches, and all minimise cross-entropy over 256 bytes. A contender that is
not causal ends the race. The same command continues an interrupted race, with the same results.

Prints a table, and as the last line a JSON object. The folder holds the speeds (speeds.json), a line for each trial
(runs.jsonl) and the picture (race.png).
"""

import json
from math import nan
from typing import Any

from jsonargparse.typing import PositiveFloat

from benchmarks.contenders import lists_to_tuples
from benchmarks.quality.entries import CONTENDERS, SHARED, SIZES, make_entry
from benchmarks.quality.race_plot import mean_curve, plot
from benchmarks.quality.race_setup import (
    Names,
    Race,
    check_known,
    mean_and_spread,
    race_parser,
    read_race_options,
    score_or_infinity,
)
from benchmarks.quality.search import find_best, train_best
from benchmarks.quality.trials import Entry
from benchmarks.tables import format_table
from model import ModelConfig
from training.command_line import user_errors
from utils.terminal import run_program

BASELINE = "flat"  # the others are timed until they reach its final score
RATES = [1e-3, 2e-3, 4e-3]  # the first learning rates to try


def main(argv: list[str] | None = None) -> None:
    parser = race_parser("benchmarks.quality.race", __doc__)
    parser.add_argument("--contenders", type=str, nargs="+", default=CONTENDERS, help="which contenders take part")
    parser.add_argument("--minutes", type=PositiveFloat, default=10.0, help="training time of a trial")
    parser.add_argument(
        "--sweep-minutes", type=PositiveFloat, default=2.0, help="training time of each size and learning rate"
    )
    parser.add_argument("--rates", type=PositiveFloat, nargs="+", default=RATES, help="first learning rates to try")
    parser.add_argument("--ours", type=dict, default={}, help="changes to the models of our presets, as JSON")
    args = parser.parse_args(argv)

    # Measure speeds.
    with user_errors():
        check_known("contenders", args.contenders, CONTENDERS)
        check_known("ours", args.ours, ModelConfig.__dataclass_fields__)
        options = read_race_options(args)
        race = Race(options, choose_entries(args.contenders, args.ours, options.quick))

    # Find the best size and learning rate of each contender.
    best = find_best(race, args.rates, options.seeds[0], args.sweep_minutes, widen=not options.quick)

    # Train and score these.
    runs = train_best(race, best, args.minutes, options.seeds)

    # Report.
    results = {}
    for contender, (size, rate) in best.items():
        results[contender] = {
            "size": size,
            "learning_rate": rate,
            **race.speeds[contender, size],
            "runs": runs[contender],
        }
    picture = options.folder / "race.png"
    plot(results, picture)
    outcome = summarize(results)
    print(format_table([table_row(f"{contender}, {line['size']}", line) for contender, line in outcome.items()]))
    print(picture)
    report = {"minutes": args.minutes, "ours": args.ours, "contenders": outcome}
    print(json.dumps(race.conditions() | report))


def choose_entries(contenders: list[str], changes: dict[str, Any], quick: bool) -> dict[Names, Entry]:
    """All sizes of some contenders, by contender and size.

    Args:
        changes: arguments to change in our own models.
    """
    entries: dict[Names, Entry] = {}
    for (contender, size), (builder, arguments) in SIZES.items():
        if contender not in contenders:
            continue
        model = SHARED | arguments
        if builder == "ours":
            model |= lists_to_tuples(changes)
        entries[contender, size] = make_entry(builder, model, quick)
    return entries


def summarize(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What is reported of each contender, with the seconds that it took to reach the baseline's final score."""
    goal = mean_curve(results[BASELINE]["runs"])[-1] if BASELINE in results else nan
    summary = {}
    for contender, result in results.items():
        runs = result["runs"]
        summary[contender] = {
            "size": result["size"],
            "parameters": result["parameters"],
            "flops_per_byte": result["flops_per_byte"],
            "bytes_per_second": result["bytes_per_second"],
            "learning_rate": result["learning_rate"],
            "bytes": runs[0]["curve"][-1]["bytes"],
            "test_bits_per_byte": [run["test"] for run in runs],
            "validation_bits_per_byte": [run["validation"] for run in runs],
            "seconds_to_baseline": seconds_until(goal, result),
        }
    return summary


def table_row(name: str, line: dict[str, Any]) -> dict[str, str]:
    """A row of the table. A score is the mean over seeds, with their spread."""
    scores = [score_or_infinity(bits) for bits in line["test_bits_per_byte"]]
    seconds = line["seconds_to_baseline"]
    return {
        "contender": name,
        "parameters": f"{line['parameters']:,}",
        "MFLOPs/byte": f"{line['flops_per_byte'] / 1e6:.2f}",
        "bytes/s": f"{line['bytes_per_second']:,.0f}",
        "bytes trained on": f"{line['bytes']:,}",
        "learning rate": f"{line['learning_rate']:g}",
        "test bits/byte": mean_and_spread(scores),
        f"minutes to {BASELINE}'s final validation": "" if seconds is None else f"{seconds / 60:.2f}",
    }


def seconds_until(goal: float, result: dict[str, Any]) -> float | None:
    """Training time until the mean validation score over seeds reaches a goal; None if it never does.

    Between two points of the curve the score is interpolated linearly.
    """
    before = None  # bytes and score of the point before; None at the first point and after a NaN
    for point, bits in zip(result["runs"][0]["curve"], mean_curve(result["runs"]), strict=True):
        if bits <= goal:
            bytes_until = point["bytes"]
            if before is not None:
                bytes_before, bits_before = before
                share = (bits_before - goal) / (bits_before - bits)
                bytes_until = bytes_before + share * (point["bytes"] - bytes_before)
            return bytes_until / result["bytes_per_second"]
        before = (point["bytes"], bits) if bits > goal else None
    return None


if __name__ == "__main__":
    run_program(main)
