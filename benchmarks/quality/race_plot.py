"""The picture of a race: validation bits per byte against training time, FLOPs and bytes, a colour per contender."""

from collections.abc import Callable
from math import isfinite, nan
from pathlib import Path
from statistics import mean
from typing import Any

from plot import COLOURS, MARKERS, save, unit_of_time


def mean_curve(runs: list[dict]) -> list[float]:
    """Bits per byte at each point of the curve, averaged over seeds; NaN where one of them is not finite."""
    curves = []
    for run in runs:
        bits = [point["bits_per_byte"] for point in run["curve"]]
        curves.append([nan if value is None else value for value in bits])
    return [mean(points) for points in zip(*curves, strict=True)]


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the curves of contenders and write them to a file.

    Thin lines are seeds, thick lines their means. The vertical axis fits the curves without their first fifth, where
    all of them fall steeply.

    Args:
        results: by contender, each with `runs`, `size`, `bytes_per_second` and `flops_per_byte`.
    """
    import matplotlib  # slow to import, and only needed here

    matplotlib.use("agg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    bytes_seen = {name: [point["bytes"] for point in result["runs"][0]["curve"]] for name, result in results.items()}
    longest = max(bytes_seen[name][-1] / result["bytes_per_second"] for name, result in results.items())
    unit, unit_name = unit_of_time(longest)

    # Each panel has another horizontal axis: its label, and how much one byte adds to it.
    panels: dict[str, Callable[[dict[str, Any]], float]] = {
        f"training time at the measured speed ({unit_name})": lambda result: 1 / result["bytes_per_second"] / unit,
        "training FLOPs": lambda result: result["flops_per_byte"],
        "bytes trained on": lambda result: 1,
    }

    figure = Figure(figsize=(13, 5), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    later_bits: list[float] = []
    for axis, (label, per_byte) in zip(axes, panels.items(), strict=True):
        # The curves.
        for (name, result), colour, marker in zip(results.items(), COLOURS, MARKERS, strict=False):
            x = [per_byte(result) * count for count in bytes_seen[name]]
            for run in result["runs"]:
                axis.plot(x, mean_curve([run]), color=colour, linewidth=0.5, alpha=0.6)
            curve = mean_curve(result["runs"])
            axis.plot(
                x,
                curve,
                label=f"{name}, {result['size']}: {curve[-1]:.4f}",
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=1.6,
            )
            later_bits += curve[len(curve) // 5 :]

        # The horizontal axis.
        axis.set(xlabel=label, xlim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6))
        if axis is not axes[0]:
            axis.xaxis.set_major_formatter(EngFormatter())
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)

    # The vertical axis, which all panels share.
    finite = [bits for bits in later_bits if isfinite(bits)] or [0.0, 8.0]
    low, high = min(finite), max(finite)
    margin = 0.05 * (high - low) or 0.05
    axes[0].set(ylabel="validation bits per byte", ylim=(low - margin, high + margin))

    handles, labels = axes[0].get_legend_handles_labels()
    title = "Validation bits per byte after equal training time (the legend gives the final values)"
    figure.legend(handles, labels, title=title, loc="outside upper center", ncols=3, frameon=False)
    save(figure, path)
