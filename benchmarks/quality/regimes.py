"""Map where a hierarchy pays: at which sequence lengths, and after how much training.

`python -m benchmarks.quality.regimes --out runs/regimes --data.name=enwik8`

The flat and the hierarchical preset of `benchmarks.quality.race` train at each sequence length for a sixteenth, a
quarter and all of the minutes, in trials of equal training time. For each length and time, each preset has its best
learning rate. The result is by which share the hierarchical model's validation bits per byte are below the flat one's.
The same command continues an interrupted run.

Prints a table, and as the last line a JSON object. The folder holds the speeds (speeds.json), a line for each trial
(runs.jsonl) and the map (regimes.png).
"""

import json
from dataclasses import replace
from math import isfinite, nan
from pathlib import Path
from statistics import mean
from typing import Any

from jsonargparse.typing import PositiveFloat, PositiveInt

from benchmarks.quality.entries import FLAT, HIERARCHICAL, SHARED, make_entry
from benchmarks.quality.race_setup import Names, Race, race_parser, read_race_options, score_or_infinity
from benchmarks.quality.trials import Entry
from benchmarks.tables import format_table
from model import ModelConfig
from plot import save
from training.command_line import user_errors
from utils.terminal import run_program

SHARES = (1 / 16, 1 / 4, 1)  # training times, as shares of --minutes
PRESETS = {"flat": FLAT, "hierarchical": HIERARCHICAL}


def main(argv: list[str] | None = None) -> None:
    parser = race_parser("benchmarks.quality.regimes", __doc__)
    parser.add_argument("--minutes", type=PositiveFloat, default=10.0, help="training time of a trial")
    parser.add_argument("--lengths", type=PositiveInt, nargs="+", default=[512, 2048, 8192], help="bytes of a sequence")
    parser.add_argument("--rates", type=PositiveFloat, nargs="+", default=[8e-3], help="learning rates to try")
    args = parser.parse_args(argv)

    with user_errors():
        options = read_race_options(args)
        entries: dict[Names, Entry] = {}
        for length in args.lengths:
            for name, preset in PRESETS.items():
                entries[name, str(length)] = entry_of_length(preset, length, options.quick)
        race = Race(options, entries)

    # Train everything.
    times = [share * args.minutes for share in SHARES]
    planned = {}
    for names in race.entries:
        for minutes in times:
            for rate in args.rates:
                for seed in options.seeds:
                    key = (names, minutes, rate, seed)
                    planned[key] = race.plan_trial(names, rate, seed, minutes, final=False)
    runs = race.run_trials(planned)
    scores = {key: score_or_infinity(run["validation"]) for key, run in runs.items()}

    # Take the best learning rate for each length and time.
    results = []
    for length in args.lengths:
        for minutes in times:
            result: dict[str, Any] = {"length": length, "minutes": minutes}
            for name in PRESETS:
                names = (name, str(length))
                result[name] = min(
                    mean(scores[names, minutes, rate, seed] for seed in options.seeds) for rate in args.rates
                )
            results.append(result)

    # Report.
    picture = options.folder / "regimes.png"
    plot(results, picture)
    print(format_table([table_row(result) for result in results]))
    print(picture)
    print(json.dumps(race.conditions() | {"rates": args.rates, "places": results}))


def entry_of_length(preset: dict[str, Any], length: int, quick: bool) -> Entry:
    """A preset on sequences of another length, with windows that are no longer than they."""
    entry = make_entry("ours", SHARED | preset, quick)
    levels = ModelConfig(**entry.model).levels
    windows = tuple(min(level.window, length // level.compression) for level in levels)
    return replace(entry, model=entry.model | {"seq_len": length, "window_sizes": windows})


def share_saved(result: dict[str, Any]) -> float:
    """The share of bits that the hierarchical model saves; NaN if a model has no finite score."""
    flat, hierarchical = result["flat"], result["hierarchical"]
    if not (isfinite(flat) and isfinite(hierarchical)):
        return nan
    return 1 - hierarchical / flat


def table_row(result: dict[str, Any]) -> dict[str, str]:
    """A row of the table: a length and a time."""
    return {
        "length": f"{result['length']:,}",
        "minutes": f"{result['minutes']:g}",
        "flat": f"{result['flat']:.4f}",
        "hierarchical": f"{result['hierarchical']:.4f}",
        "bits saved": f"{share_saved(result):+.1%}",
    }


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Draw the map and write it to a file: a cell per length and time, green where the hierarchical model is better."""
    import matplotlib  # slow to import, and only needed here

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    lengths = list(dict.fromkeys(result["length"] for result in results))
    times = list(dict.fromkeys(result["minutes"] for result in results))
    cells = [[share_saved(result) for result in results if result["length"] == length] for length in lengths]
    finite = [abs(share) for row in cells for share in row if isfinite(share)]
    largest = max(finite, default=0.0) or 0.01

    figure = Figure(figsize=(1.6 * len(times) + 2.6, 0.9 * len(lengths) + 1.6), layout="constrained")
    axis = figure.subplots()
    axis.imshow(cells, cmap="PiYG", vmin=-1.5 * largest, vmax=1.5 * largest, aspect="auto")
    for y, row in enumerate(cells):
        for x, share in enumerate(row):
            axis.text(x, y, f"{share:+.1%}", ha="center", va="center")

    axis.set_xticks(range(len(times)), [f"{minutes:g}" for minutes in times])
    axis.set_yticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axis.set(xlabel="minutes of training", ylabel="bytes in a sequence")
    axis.set_title("Bits per byte that the hierarchical model saves compared with the flat one", fontsize="medium")
    save(figure, path)


if __name__ == "__main__":
    run_program(main)
