"""Where a hierarchy pays: sequence length × time.

`python -m benchmarks.quality.regimes --out runs/regimes --data.name=enwik8`

The flat and the hierarchical preset of `benchmarks.quality.race` train at each length for a sixteenth, a quarter and
all of the minutes, by the same clock, in trials that go on after whatever stopped them. Each has the best of the
learning rates in each place. A place's figure is the share of bits by which the hierarchical model's validation score
is lower.
"""

import json
from dataclasses import replace
from itertools import product
from math import isfinite, nan
from pathlib import Path
from statistics import mean

from jsonargparse.typing import PositiveFloat, PositiveInt

from benchmarks.quality.race import FLAT, LEVELS, SAME, entrant, score_of
from benchmarks.quality.racing import Race, racing_parser
from benchmarks.quality.trials import Entry
from benchmarks.speed.timing import table
from model import ModelConfig
from plot import save
from training.command_line import user_errors

SHARES = (1 / 16, 1 / 4, 1)  # of the minutes that are given
PRESETS = {"flat": FLAT, "hierarchical": LEVELS}


def main(argv: list[str] | None = None) -> None:
    parser = racing_parser("benchmarks.quality.regimes", __doc__)
    parser.add_argument("--lengths", type=PositiveInt, nargs="+", default=[512, 2048, 8192], help="of sequences")
    parser.add_argument("--rates", type=PositiveFloat, nargs="+", default=[8e-3], help="learning rates of each")
    args = parser.parse_args(argv)

    with user_errors():
        entries = {(name, str(n)): entry_of(PRESETS[name], n, args.quick) for n in args.lengths for name in PRESETS}
        race = Race(args, entries)
    budgets = [share * args.minutes for share in SHARES]
    trials = {
        (*names, minutes, rate, seed): race.trial(names, rate, seed, minutes, final=False)
        for names, minutes, rate, seed in product(race.entries, budgets, args.rates, args.seeds)
    }
    lines = race.run([(one[:2], trial) for one, trial in trials.items()])
    scores = {one: score_of(lines[trial.key]["validation"]) for one, trial in trials.items()}
    best = {
        (name, n, minutes): min(
            mean(scores[name, n, minutes, rate, seed] for seed in args.seeds) for rate in args.rates
        )
        for (name, n), minutes in product(race.entries, budgets)
    }
    places = [
        {"length": n, "minutes": minutes, **{name: best[name, str(n), minutes] for name in PRESETS}}
        for n, minutes in product(args.lengths, budgets)
    ]
    plot(places, race.folder / "regimes.png")
    print(table([row(place) for place in places]))
    print(race.folder / "regimes.png")
    print(json.dumps(race.circumstances() | {"rates": args.rates, "places": places}))


def entry_of(preset: dict, n: int, quick: bool) -> Entry:
    """A preset on sequences of n bytes, with windows that fit them."""
    entry = entrant("ours", SAME | preset, quick)
    windows = tuple(min(level.window, n // level.compression) for level in ModelConfig(**entry.model).levels)
    return replace(entry, model=entry.model | {"seq_len": n, "window_sizes": windows})


def saved(place: dict) -> float:
    """The share of bits that the hierarchical model saves; not a number where one of them diverged."""
    flat, hierarchical = (place[name] for name in PRESETS)
    return 1 - hierarchical / flat if isfinite(flat) and isfinite(hierarchical) else nan


def row(place: dict) -> dict:
    """A row of the table."""
    return {
        "length": f"{place['length']:,}",
        "minutes": f"{place['minutes']:g}",
        **{name: f"{place[name]:.4f}" for name in PRESETS},
        "bits saved": f"{saved(place):+.1%}",
    }


def plot(places: list[dict], path: Path) -> None:
    """Write the map: a field for each length and time, green where the hierarchical model is ahead."""
    import matplotlib  # heavy, and needed here alone

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    lengths, budgets = (list(dict.fromkeys(place[name] for place in places)) for name in ("length", "minutes"))
    shares = [[saved(place) for place in places if place["length"] == n] for n in lengths]
    widest = max([abs(share) for line in shares for share in line if isfinite(share)], default=0.0) or 0.01
    figure = Figure(figsize=(1.6 * len(budgets) + 2.6, 0.9 * len(lengths) + 1.6), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="PiYG", vmin=-1.5 * widest, vmax=1.5 * widest, aspect="auto")
    for (y, line), x in product(enumerate(shares), range(len(budgets))):
        axis.text(x, y, f"{line[x]:+.1%}", ha="center", va="center")
    axis.set_xticks(range(len(budgets)), [f"{minutes:g}" for minutes in budgets])
    axis.set_yticks(range(len(lengths)), [f"{n:,}" for n in lengths])
    axis.set(xlabel="minutes of training", ylabel="bytes in a sequence")
    axis.set_title("Bits that the hierarchical model saves, beside the flat one", fontsize="medium")
    save(figure, path)


if __name__ == "__main__":
    main()
