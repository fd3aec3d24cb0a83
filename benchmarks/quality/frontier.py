"""Does a hierarchy pay on a text that is read at most once, and what does its model cost to use?

`python -m benchmarks.quality.frontier --out runs/frontier --data.name=files --data.path=FOLDER --minutes 10 30 120`

For each training time, with flat and hierarchical models of three sizes each:

1. Train each size at every learning rate for an eighth of the time. As long as the best learning rate is the lowest or
   the highest one tried, try half or twice of it, too. The short time favours small sizes.
2. Train the best size and learning rate of each for the whole time, and score the test split. The longest time is
   trained with all seeds, the others with the first one.

Then measure what each of these models costs to use: how fast it generates, one row or 16 at once, how much state it
keeps, and how long it takes to read a prompt (`benchmarks.quality.cost_of_use`).

A minute means a minute of one training process that has --threads threads to itself, by default one per core. Each
size's speed is measured that way, and determines how many bytes it trains on. The trials themselves run on one thread
each, --jobs at a time, which makes them reproducible bit for bit. So they take longer than the minutes say, and a busy
machine does not change their results.

The race refuses to begin if a trial would train on more bytes than the training split has: in this sense the text is
read at most once. Sequences start at random places, so some bytes are read twice and others never. A trial that trains
on as many bytes as the split has reads 63 % of it at least once. In a trial that trains on a tenth as many, 95 % of the
bytes that it reads are new.

The same command continues an interrupted race, with the same results. Prints a table for each training time, one of the
costs, and as the last line a JSON object. The folder holds the speeds (speeds.json), a line for each trial
(runs.jsonl), the costs (costs.json) and the picture (frontier.png).
"""

import json
from typing import Any

from jsonargparse.typing import PositiveFloat

from benchmarks.quality.cost_of_use import GENERATION, Cost, bytes_needed, costs_of_use
from benchmarks.quality.entries import FRONTIER_SIZES, SHARED, make_entry
from benchmarks.quality.frontier_plot import plot, scores_of
from benchmarks.quality.race_setup import Names, Race, full_name, mean_and_spread, race_parser, read_race_options
from benchmarks.quality.search import find_best, train_best
from benchmarks.quality.trials import Entry
from benchmarks.tables import format_table
from training.command_line import user_errors
from utils.errors import UserError
from utils.terminal import run_program

MINUTES = [10.0, 30.0, 120.0]
RATES = [2e-3, 4e-3, 8e-3]  # the first learning rates to try
SWEEP_SHARE = 1 / 8  # how much of the training time each size and learning rate gets in the search
CONTEXTS = (8192, 65536)  # bytes after which the state is measured; generation is timed after the first one
QUICK_CONTEXTS = (128, 1024)  # the same with --quick

Result = dict[str, Any]  # one contender after one training time


def main(argv: list[str] | None = None) -> None:
    parser = race_parser("benchmarks.quality.frontier", __doc__)
    parser.add_argument("--minutes", type=PositiveFloat, nargs="+", default=MINUTES, help="training times")
    parser.add_argument("--rates", type=PositiveFloat, nargs="+", default=RATES, help="first learning rates to try")
    parser.set_defaults(seeds=[0, 1])
    args = parser.parse_args(argv)
    all_minutes = sorted(set(args.minutes))

    # Measure speeds.
    with user_errors():
        options = read_race_options(args)
        entries: dict[Names, Entry] = {}
        for names, model in FRONTIER_SIZES.items():
            entries[names] = make_entry("ours", SHARED | model, options.quick)
        race = Race(options, entries)
        contexts = QUICK_CONTEXTS if options.quick else CONTEXTS
        check_corpus(race, all_minutes[-1], bytes_needed(contexts, options.rounds))

    # Train the best size and learning rate of each contender for each time.
    budgets: list[dict[str, Any]] = []
    for minutes in all_minutes:
        seeds = options.seeds if minutes == all_minutes[-1] else options.seeds[:1]
        contenders = train_winners(race, args.rates, minutes, seeds)
        budgets.append({"minutes": minutes, "contenders": contenders})

    # Measure what they cost to use.
    winners = {}
    for budget in budgets:
        for contender, result in budget["contenders"].items():
            names = (contender, result["size"])
            winners[full_name(names)] = race.entries[names]
    costs = costs_of_use(
        winners,
        race.corpus,
        contexts,
        options.threads,
        options.rounds,
        compiled=not options.quick,
        path=options.folder / "costs.json",
    )

    # Report.
    picture = options.folder / "frontier.png"
    plot(budgets, costs, picture)
    for budget in budgets:
        print(f"\n{budget['minutes']:g} minutes")
        rows = [table_row(name, result) for name, result in budget["contenders"].items()]
        print(format_table(rows))
    print("\ncosts of use")
    print(format_table([cost_row(name, cost) for name, cost in costs.items()]))
    print(picture)
    print(json.dumps(race.conditions() | {"budgets": budgets, "costs": costs}))


def check_corpus(race: Race, minutes: float, prompt_bytes: int) -> None:
    """Check that the text is long enough.

    Args:
        minutes: the longest training time.
        prompt_bytes: how many bytes of the validation split the costs of use need.

    Raises:
        UserError: if a trial would train on more bytes than the training split has, or the validation split is too
            short.
    """
    corpus = race.corpus
    fastest = max(race.entries, key=lambda names: race.bytes_in(names, minutes))
    bytes_to_train = race.bytes_in(fastest, minutes)
    if bytes_to_train > corpus.sizes["train"]:
        raise UserError(
            f"minutes: {full_name(fastest)} would train on {bytes_to_train:,} bytes in {minutes:g} minutes, and no "
            f"text is read twice here: the training split of {corpus.source} has {corpus.sizes['train']:,} bytes"
        )
    if corpus.sizes["valid"] < prompt_bytes:
        raise UserError(
            f"data.path: the validation split of {corpus.source} has {corpus.sizes['valid']:,} bytes, "
            f"allowed: at least {prompt_bytes:,}, for prompts"
        )


def train_winners(race: Race, rates: list[float], minutes: float, seeds: list[int]) -> dict[str, Result]:
    """The best size and learning rate of each contender, trained for some minutes with several seeds."""
    best = find_best(race, rates, seeds[0], SWEEP_SHARE * minutes, widen=not race.options.quick)
    runs = train_best(race, best, minutes, seeds)

    results = {}
    for contender, (size, rate) in best.items():
        speed = race.speeds[contender, size]
        bytes_to_train = race.bytes_in((contender, size), minutes)
        results[contender] = {
            "size": size,
            "parameters": speed["parameters"],
            "flops_per_byte": speed["flops_per_byte"],
            "bytes_per_second": speed["bytes_per_second"],
            "learning_rate": rate,
            "bytes": bytes_to_train,
            "share_of_text": bytes_to_train / race.corpus.sizes["train"],
            "test_bits_per_byte": [run["test"] for run in runs[contender]],
            "validation_bits_per_byte": [run["validation"] for run in runs[contender]],
        }
    return results


def table_row(contender: str, result: Result) -> dict[str, str]:
    """A row of a training time. A score is the mean over seeds, with their spread."""
    scores = scores_of(result)
    return {
        "contender": f"{contender}, {result['size']}",
        "parameters": f"{result['parameters']:,}",
        "MFLOPs/byte": f"{result['flops_per_byte'] / 1e6:.2f}",
        "bytes/s": f"{result['bytes_per_second']:,.0f}",
        "bytes trained on": f"{result['bytes']:,}",
        "share of the text": f"{result['share_of_text']:.1%}",
        "learning rate": f"{result['learning_rate']:g}",
        "test bits/byte": mean_and_spread(scores) if len(scores) > 1 else f"{scores[0]:.4f}",
    }


def cost_row(name: str, cost: Cost) -> dict[str, str]:
    """A row of the costs: bytes/s of generation, bytes of state, and the time to read the long prompt."""
    row = {"contender": name}
    speeds = cost["generated_bytes_per_second"]
    for kind in GENERATION:
        row[f"bytes/s, {kind}"] = f"{speeds[kind]:,.0f}" if kind in speeds else ""
    for length, size in cost["state_bytes"].items():
        row[f"bytes of state after {int(length):,}"] = f"{size:,}"
    row["seconds to read these"] = f"{cost['prompt_seconds']:.2f}"
    return row


if __name__ == "__main__":
    run_program(main)
