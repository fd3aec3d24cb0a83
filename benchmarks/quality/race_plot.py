"""The picture of a race: validation bits per byte against time, work and bytes, a colour for each contender."""

from math import isfinite, nan
from pathlib import Path
from statistics import mean

from plot import COLOURS, MARKERS, save, unit_of_time


def mean_curve(runs: list[dict]) -> list[float]:
    """Bits per byte at each point, over the seeds of one contender; NaN where one of them is not finite."""
    scores = [
        [nan if point["bits_per_byte"] is None else point["bits_per_byte"] for point in run["curve"]] for run in runs
    ]
    return [mean(points) for points in zip(*scores, strict=True)]


def plot(results: dict[str, dict], path: Path) -> None:
    """Write the picture of contenders by name, each with its `runs`, `size`, `bytes_per_second` and `flops_per_byte`.

    Thin lines are seeds, bold ones their mean. The first fifth of a run, where all fall steeply, may leave the picture.
    """
    import matplotlib  # heavy, and needed here alone

    matplotlib.use("agg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    seen = {name: [point["bytes"] for point in result["runs"][0]["curve"]] for name, result in results.items()}
    end = max(seen[name][-1] / result["bytes_per_second"] for name, result in results.items())
    unit, unit_name = unit_of_time(end)
    panels = {  # what a byte is on each horizontal axis
        f"training time by the clock ({unit_name})": lambda result: 1 / result["bytes_per_second"] / unit,
        "training FLOPs": lambda result: result["flops_per_byte"],
        "bytes trained on": lambda result: 1,
    }
    figure = Figure(figsize=(13, 5), layout="constrained")
    axes, later = figure.subplots(1, len(panels), sharey=True), []
    for axis, (label, worth) in zip(axes, panels.items(), strict=True):
        for (name, result), colour, marker in zip(results.items(), COLOURS, MARKERS, strict=False):
            x = [worth(result) * number for number in seen[name]]
            for run in result["runs"]:
                axis.plot(x, mean_curve([run]), color=colour, linewidth=0.5, alpha=0.6)
            curve = mean_curve(result["runs"])
            style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.6}
            axis.plot(x, curve, label=f"{name}, {result['size']}: {curve[-1]:.4f}", **style)
            later += curve[len(curve) // 5 :]
        axis.set(xlabel=label, xlim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6))
        if axis is not axes[0]:
            axis.xaxis.set_major_formatter(EngFormatter())
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    later = [bits for bits in later if isfinite(bits)] or [0.0, 8.0]
    margin = 0.05 * (max(later) - min(later)) or 0.05
    axes[0].set(ylabel="validation bits per byte", ylim=(min(later) - margin, max(later) + margin))
    handles, labels = axes[0].get_legend_handles_labels()
    title = "A byte's cost after the same time of training (in the legend: at its end)"
    figure.legend(handles, labels, title=title, loc="outside upper center", ncols=3, frameon=False)
    save(figure, path)
