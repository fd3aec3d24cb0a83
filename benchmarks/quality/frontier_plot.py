"""The picture of the frontier: test bits per byte against training time, and against the speed of generation."""

from collections.abc import Iterable
from math import inf
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.quality.cost_of_use import COMPILED, ONE_ROW, Cost
from benchmarks.quality.race_setup import full_name, score_or_infinity
from plot import COLOURS, MARKERS, save

Point = tuple[float, float]  # bytes/s of generation, and bits per byte


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points that no other point beats, the fastest one first: each slower one has fewer bits per byte."""
    kept: list[Point] = []
    fewest = inf
    for speed, bits in sorted(points, key=lambda point: (-point[0], point[1])):
        if bits < fewest:
            kept.append((speed, bits))
            fewest = bits
    return kept


def plot(budgets: list[dict[str, Any]], costs: dict[str, Cost], path: Path) -> None:
    """Draw the scores of the winners, and write them to a file.

    Left, a line for each contender joins its mean scores, and small dots are seeds. Right, each mean score is at the
    highest speed of one row, a thin line reaches to the speed without compiled steps, and a grey line is the frontier.

    Args:
        budgets: for each training time `minutes` and `contenders`, and for each of these its `size` and
            `test_bits_per_byte` by seed.
        costs: of each winner, by contender and size.
    """
    import matplotlib  # slow to import, and only needed here

    matplotlib.use("agg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    figure = Figure(figsize=(12, 5), layout="constrained")
    by_time, by_speed = figure.subplots(1, 2, sharey=True)
    times = [budget["minutes"] for budget in budgets]
    points: list[Point] = []
    for contender, colour, marker in zip(budgets[0]["contenders"], COLOURS, MARKERS, strict=False):
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 8}
        means = []
        for minutes, budget in zip(times, budgets, strict=True):
            result = budget["contenders"][contender]
            scores = [score_or_infinity(bits) for bits in result["test_bits_per_byte"]]
            bits = mean(scores)
            means.append(bits)
            if len(scores) > 1:
                by_time.plot([minutes] * len(scores), scores, ".", color=colour, alpha=0.6)

            speeds = costs[full_name((contender, result["size"]))]["generated_bytes_per_second"]
            fastest = max(speeds[ONE_ROW], speeds.get(COMPILED, 0))
            by_speed.hlines(bits, speeds[ONE_ROW], fastest, color=colour, linewidth=0.8)
            by_speed.plot(fastest, bits, **style)
            note = f"{result['size']}, {minutes:g} min"
            by_speed.annotate(note, (fastest, bits), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8)
            points.append((fastest, bits))
        by_time.plot(times, means, label=contender, **style)

    # The frontier goes down where the next model begins to be the best that is fast enough.
    speeds, bits = zip(*frontier(points), strict=True)
    by_speed.step(speeds, bits, where="post", color="grey", linewidth=1, linestyle="--", zorder=0)

    by_time.set(xlabel="minutes of training at the measured speed", ylabel="test bits per byte", xscale="log")
    by_time.set_xticks(times, [f"{minutes:g}" for minutes in times])
    by_time.xaxis.set_minor_locator(NullLocator())
    by_speed.set(xlabel="bytes/s of generation, one row (thin lines: down to steps that are not compiled)")
    by_speed.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    by_speed.margins(x=0.15, y=0.1)
    for axis in (by_time, by_speed):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    by_time.legend(frameon=False)
    save(figure, path)
