"""The picture of the frontier: test bits per byte against training time, and against the speed of generation."""

from collections.abc import Iterable
from math import inf, isfinite
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

    Args:
        budgets: for each training time `minutes` and `contenders`, and for each of these its `size` and
            `test_bits_per_byte` by seed.
        costs: of each winner, by contender and size.
    """
    import matplotlib  # slow to import, and only needed here

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    by_time, by_speed = figure.subplots(ncols=2, sharey=True)
    contenders = list(budgets[0]["contenders"])
    styles: dict[str, dict[str, Any]] = {}
    for name, colour, marker in zip(contenders, COLOURS, MARKERS, strict=False):
        styles[name] = {"color": colour, "marker": marker, "markersize": 8}

    plot_by_time(by_time, budgets, styles)
    for budget in budgets:
        plot_by_speed(by_speed, budget, costs, styles)
    by_speed.set_xlim(0, 1.25 * by_speed.get_xlim()[1])  # with room for the notes on the right
    for axis in (by_time, by_speed):
        axis.margins(y=0.1)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def plot_by_time(axis, budgets: list[dict[str, Any]], styles: dict[str, dict[str, Any]]) -> None:
    """A line for each contender joins its mean scores. Small dots are seeds."""
    from matplotlib.ticker import NullLocator

    times = [budget["minutes"] for budget in budgets]
    for contender, style in styles.items():
        means = []
        for budget in budgets:
            scores = scores_of(budget["contenders"][contender])
            means.append(mean(scores))
            axis.plot([budget["minutes"]] * len(scores), scores, ".", color=style["color"], alpha=0.6)
        axis.plot(times, means, label=contender, **style)

    axis.set(xlabel="minutes of training at the measured speed", ylabel="test bits per byte", xscale="log")
    axis.set_xticks(times, [f"{minutes:g}" for minutes in times])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.legend(frameon=False)


def plot_by_speed(axis, budget: dict[str, Any], costs: dict[str, Cost], styles: dict[str, dict[str, Any]]) -> None:
    """The winners of one training time, with the frontier in grey.

    Each is at its highest speed of one row, and hollow at its speed without compiled steps.
    """
    from matplotlib.ticker import StrMethodFormatter

    points: list[Point] = []
    for contender, style in styles.items():
        result = budget["contenders"][contender]
        bits = mean(scores_of(result))
        speeds = costs[full_name((contender, result["size"]))]["generated_bytes_per_second"]
        fastest = max(speeds[ONE_ROW], speeds.get(COMPILED, 0))
        if not isfinite(bits):
            continue
        points.append((fastest, bits))
        axis.plot(speeds[ONE_ROW], bits, **style, fillstyle="none")
        axis.plot(fastest, bits, **style)
        note = f"{result['size']}, {budget['minutes']:g} min"
        axis.annotate(note, (fastest, bits), xytext=(9, 0), textcoords="offset points", va="center", fontsize=8)

    # Where speed is enough, the frontier goes down to the next model; below the slowest one it stays.
    best = frontier(points)
    if best:
        best.append((0, best[-1][1]))
        speeds = [speed for speed, _ in best]
        scores = [bits for _, bits in best]
        axis.step(speeds, scores, where="post", color="lightgrey", linewidth=3, zorder=0)
    axis.set(xlabel="bytes/s of generated text, one row (hollow: steps are not compiled)")
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def scores_of(result: dict[str, Any]) -> list[float]:
    """Test bits per byte of a winner by seed, infinite where they are not finite."""
    return [score_or_infinity(bits) for bits in result["test_bits_per_byte"]]
