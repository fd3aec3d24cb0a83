"""Draw one or several runs into one picture: `python plot.py runs/a runs/b`.

Reads each run's metrics.jsonl: the loss in bits per byte with the validation scores, the learning rate, the throughput
and the gradient's norm, one colour a run. Figures that no run has are left out. A run may still be going on.
"""

import json
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from training.command_line import Parser, user_errors
from utils.files import replace

# The palette of Okabe and Ito, made for the colour-blind, with a grey for its yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^v<>P"
MARK: dict[str, Any] = {"markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.7}
FORMATS = (".png", ".svg", ".pdf")
AXES = {"step": ("step", "step"), "time": ("seconds", "training time"), "bytes": ("bytes", "bytes trained on")}
PANELS = {  # what is drawn of a line: its title, and its axis with the unit
    "train/bits_per_byte": ("Training loss (thin: each step, bold: smoothed) and validation (marks)", "bits per byte"),
    "train/learning_rate": ("Learning rate", "rate"),
    "speed/bytes_per_second": ("Throughput", "bytes per second"),
    "train/gradient_norm": ("Gradient norm", "L2 norm (log scale)"),
}


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="plot.py", description=__doc__)
    parser.add_argument("run", type=str, nargs="+", help="run directories, or metrics.jsonl files")
    parser.add_argument("--output", type=str, help="RUN/metrics.png for one run, runs.png for several when left out")
    parser.add_argument("--by", type=str, default="step", help="what the horizontal axis shows: step, time or bytes")
    args = parser.parse_args(argv)

    with user_errors():
        if args.by not in AXES:
            raise ValueError(f"by: got {args.by}, allowed: {', '.join(AXES)}")
        paths = [Path(run) / "metrics.jsonl" if Path(run).is_dir() else Path(run) for run in args.run]
        paths = list({path.resolve(): path for path in paths}.values())  # a run named twice is drawn once
        if len(paths) > len(COLOURS):
            raise ValueError(f"run: got {len(paths)} runs, allowed: 1 to {len(COLOURS)}")
        output = Path(args.output or (paths[0].with_name("metrics.png") if len(paths) == 1 else "runs.png"))
        runs = dict(zip(run_names(paths), map(read_metrics, paths), strict=True))
        if output.suffix not in FORMATS or not output.parent.is_dir():
            raise ValueError(f"output: got {output}, allowed: {', '.join(FORMATS)}, in a folder that exists")
        save(draw(runs, args.by), output)
    print(output)


def run_names(paths: list[Path]) -> list[str]:
    """For each file the name of its folder, with as many parents as it takes to tell it from the others."""
    folders, names = [path.resolve().parent.parts for path in paths], []
    for path, mine in zip(paths, folders, strict=True):
        tails = [mine[-depth:] for depth in range(1, len(mine) + 1)]
        unique = [tail for tail in tails if sum(other[-len(tail) :] == tail for other in folders) == 1]
        names.append("/".join(unique[0]) if unique else str(path))  # two files may share a folder
    return names


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl, less a last one that a kill, or a run that is just writing it, left unfinished."""
    if not path.is_file():
        raise ValueError(f"run: got {path}, which is no file, allowed: a run directory or its metrics.jsonl")
    texts, lines = path.read_text(encoding="utf-8", errors="replace").splitlines(), []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(dict(json.loads(text)))
        except (ValueError, TypeError):
            if number < len(texts):
                raise ValueError(f"run: got {text[:40]!r} in line {number} of {path}, allowed: JSON objects") from None
    if not lines:
        raise ValueError(f"run: got {path}, which has no whole line, allowed: a run of one step or more")
    return lines


def series(lines: list[dict], x: str, y: str, unit: float = 1) -> tuple[np.ndarray, np.ndarray]:
    """Two keys' values, the first in a unit, from the lines where both are finite numbers: a skipped step has null."""
    pairs = [(line.get(x), line.get(y)) for line in lines]
    pairs = [pair for pair in pairs if all(isinstance(value, int | float) and isfinite(value) for value in pair)]
    xs, ys = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return xs / unit, ys


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean of a thirtieth of the run around each value, and of less near the beginning and the end."""
    index, total = np.arange(len(values)), np.concatenate([[0.0], np.cumsum(values)])
    left = np.minimum(index, len(values) // 60)
    right = np.minimum(left, len(values) - 1 - index)  # as few as on the left at the beginning, where a loss is steep
    means = (total[index + right + 1] - total[index - left]) / (left + right + 1)
    return np.clip(means, values.min(), values.max())  # against rounding


def loss_range(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """The bits per byte to show: all that comes after the first steps, up to the 8 of a model that knows nothing."""
    begin = 0.05 * max(x.max() for x, _ in curves)
    later = [y[x >= min(begin, x.max() / 2)] for x, y in curves]  # at least the second half of a run that was short
    low, high = min(np.quantile(y, 0.002) for y in later), max(np.quantile(y, 0.998) for y in later)
    high = max(min(high, 8.0), low + 0.05)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def unit_of_time(seconds: float) -> tuple[int, str]:
    """What an axis so long counts in: how many seconds that is, and its name."""
    return (1, "s") if seconds < 300 else (60, "min") if seconds < 7200 else (3600, "h")


def save(figure, path: Path) -> None:
    """Write a matplotlib Figure in one step, in the format of the file's suffix."""
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format=path.suffix[1:], dpi=120)
    replace(temporary, path)


def draw(runs: dict[str, list[dict]], by: str = "step"):
    """The matplotlib Figure of runs, given as name: lines.

    Raises:
        ValueError: when a run lacks what `by` reads, or no run has a figure to draw.
    """
    import matplotlib  # heavy, and needed here alone

    matplotlib.use("agg")
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    # -- what to draw: every panel's curves by run, (x, y) each
    key, x_label = AXES[by]
    for name, lines in runs.items():
        if not len(series(lines, key, key)[0]):
            others = ", ".join(other for other, (k, _) in AXES.items() if len(series(lines, k, k)[0]))
            raise ValueError(f"by: got {by}, but no line of {name} has {key!r}, allowed: {others or 'none'}")
    end, unit = max(series(lines, key, key)[0].max() for lines in runs.values()), 1
    if by == "time":
        unit, unit_name = unit_of_time(end)
        x_label += f" ({unit_name})"
    panels = {}
    for panel in (*PANELS, "validation/bits_per_byte"):
        found = {name: series(lines, key, panel) for name, lines in runs.items()}
        panels[panel] = {name: (x / unit, y) for name, (x, y) in found.items() if len(x)}
    norms = {name: (x[y > 0], y[y > 0]) for name, (x, y) in panels["train/gradient_norm"].items()}
    panels["train/gradient_norm"] = {name: (x, y) for name, (x, y) in norms.items() if len(x)}  # its axis has no 0
    scores = panels.pop("validation/bits_per_byte")
    large = ["train/bits_per_byte"] if panels["train/bits_per_byte"] or scores else []
    small = [panel for panel in panels if panel != "train/bits_per_byte" and panels[panel]]
    if not large + small:
        raise ValueError(f"run: got no figure to draw in {', '.join(runs)}, allowed: lines with {', '.join(panels)}")

    # -- the loss over the full width, the others in a row below it
    rows: list[Any] = [row for row in (large * max(1, len(small)), small) if row]
    heights = [4.8 if row[0] in large else 2.6 for row in rows]
    figure = Figure(figsize=(11, sum(heights) + 0.6 + 0.2 * len(runs)), layout="constrained")
    axes = figure.subplot_mosaic(rows, height_ratios=heights)
    looks = dict(zip(runs, zip(COLOURS, MARKERS, strict=True), strict=False))
    plain = StrMethodFormatter("{x:,.10g}")
    for panel, axis in axes.items():
        title, y_label = PANELS[panel]
        axis.set_title(title, fontsize=10, loc="left")
        axis.set(xlabel=x_label, ylabel=y_label, xlim=(0, 1.01 * end / unit or 1))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        for name, (x, y) in panels[panel].items():
            style: dict[str, Any] = {"color": looks[name][0], "marker": "." if len(x) == 1 else ""}
            if panel in ("train/bits_per_byte", "train/gradient_norm"):
                axis.plot(x, y, linewidth=0.5, alpha=0.35 if len(runs) == 1 else 0.2, **style)
                y = smooth(y) if panel in large else np.exp(smooth(np.log(y)))
            axis.plot(x, y, linewidth=1.5, **style)

        if panel == "train/bits_per_byte":
            for name, (x, y) in scores.items():
                axis.plot(x, y, looks[name][1], color=looks[name][0], zorder=3, **MARK)
            axis.set_ylim(loss_range([*panels[panel].values(), *scores.values()]))
        elif panel == "train/gradient_norm":
            axis.set_yscale("log")
            low, high = axis.get_ylim()
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
            axis.yaxis.set_minor_formatter(NullFormatter())
        else:
            axis.set_ylim(0, 1.1 * max(np.quantile(y, 0.99) for _, y in panels[panel].values()) or 1)
        ticks = MaxNLocator(nbins=10 if panel in large else 4, steps=[1, 2, 5, 10], integer=by != "time")
        axis.xaxis.set_major_locator(ticks)
        axis.xaxis.set_major_formatter(EngFormatter() if by == "bytes" else plain)
        if panel in small:
            axis.yaxis.set_major_formatter(EngFormatter() if panel == "speed/bytes_per_second" else plain)

    # -- the name of each run, and how well it did; a $ begins no formula
    entries = {}
    for name, (colour, marker) in looks.items():
        text = name.replace("$", r"\$")
        if name in scores:
            values = scores[name][1]
            text += f": validation best {values.min():.4f}, last {values[-1]:.4f} bits per byte"
        entries[text] = Line2D([], [], color=colour, marker=marker if name in scores else "", **MARK)
    title = "Training of " + (f"{len(runs)} runs" if len(runs) > 1 else next(iter(runs)).replace("$", r"\$"))
    style = {"loc": "outside upper center", "frameon": False, "title_fontsize": 13}
    figure.legend(list(entries.values()), list(entries), title=title, **style)
    return figure


if __name__ == "__main__":
    main()
