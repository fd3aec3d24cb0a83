"""Draw one or several runs into one picture: `python plot.py runs/a runs/b`.

Reads each run's metrics.jsonl, and draws the loss with the validation scores in bits per byte, the learning rate, the
throughput and the gradient norm, in one colour per run. Panels without data are left out. A run may still be training.
"""

import json
import os
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from training.command_line import Parser, user_errors
from utils.errors import Mistake, UserError, reading_errors
from utils.files import replace, user_path
from utils.terminal import one_line, run_program, say

# The palette of Okabe and Ito for colour-blind readers, with grey instead of yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^v<>P"
MARK: dict[str, Any] = {"markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.7}
FORMATS = (".png", ".svg", ".pdf")
AXES = {"step": ("step", "step"), "time": ("seconds", "training time"), "bytes": ("bytes", "bytes trained on")}
PANELS = {  # key: title of the panel, and label of its vertical axis
    "train/bits_per_byte": ("Training loss (thin: each step, bold: smoothed) and validation (marks)", "bits per byte"),
    "train/learning_rate": ("Learning rate", "rate"),
    "speed/bytes_per_second": ("Throughput", "bytes per second"),
    "train/gradient_norm": ("Gradient norm", "L2 norm (log scale)"),
}

LOSS, VALIDATION, NORM = "train/bits_per_byte", "validation/bits_per_byte", "train/gradient_norm"
NOISY = (LOSS, NORM)  # drawn as they are in thin lines, and smoothed in bold ones

Curve = tuple[np.ndarray, np.ndarray]  # x and y, (n) each


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="plot.py", description=__doc__)
    parser.add_argument("run", type=str, nargs="+", help="run directories, or metrics.jsonl files")
    parser.add_argument("--output", type=str, help="RUN/metrics.png for one run, runs.png for several when left out")
    parser.add_argument("--by", type=str, default="step", help="what the horizontal axis shows: step, time or bytes")
    args = parser.parse_args(argv)

    with user_errors():
        # -- the files, one per run
        paths = [user_path(run) for run in args.run]
        paths = [path / "metrics.jsonl" if os.path.isdir(path) else path for path in paths]
        paths = list({os.path.realpath(path): path for path in paths}.values())  # a run named twice is drawn once
        if len(paths) > len(COLOURS):
            raise UserError(Mistake("run", f"{len(paths)} runs", f"1 to {len(COLOURS)}"))

        # -- the picture
        if args.by not in AXES:
            raise UserError(Mistake("by", args.by, ", ".join(AXES)))
        default = paths[0].with_name("metrics.png") if len(paths) == 1 else "runs.png"
        output = user_path(args.output) if args.output else Path(default)
        runs = dict(zip(run_names(paths), map(read_metrics, paths), strict=True))
        if output.suffix not in FORMATS or not output.parent.is_dir():
            raise UserError(Mistake("output", output, f"{', '.join(FORMATS)}, in a folder that exists"))
        save(draw(runs, args.by), output)
    say(output)


def run_names(paths: list[Path]) -> list[str]:
    """For each file the name of its folder, with as many parent folders as it takes to be unique."""
    folders = [Path(os.path.realpath(path)).parent.parts for path in paths]
    names = []
    for path, parts in zip(paths, folders, strict=True):
        tails = [parts[-depth:] for depth in range(1, len(parts) + 1)]
        unique = [tail for tail in tails if sum(other[-len(tail) :] == tail for other in folders) == 1]
        names.append("/".join(unique[0]) if unique else str(path))  # two files may be in the same folder
    return names


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl, without an incomplete last one, which a kill or a running program leaves.

    Raises:
        UserError: when there is no such file, or it has no line, or one that is no JSON object.
    """
    if not os.path.isfile(path):
        raise UserError(Mistake("run", f"{path}, which is no file", "a run directory or its metrics.jsonl"))
    with reading_errors("run", path):
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(dict(json.loads(text)))
        except (ValueError, TypeError, RecursionError) as error:
            if number < len(texts):
                got = f"{text[:40]!r} in line {number} of {path}"
                raise UserError(Mistake("run", got, "JSON objects")) from error
    if not lines:
        raise UserError(Mistake("run", f"{path}, which has no whole line", "a run of one step or more"))
    return lines


def series(lines: list[dict], x: str, y: str, unit: float = 1) -> Curve:
    """The values of two keys, the first one divided by `unit`, from lines where both are finite."""
    pairs = [(line.get(x), line.get(y)) for line in lines]
    pairs = [pair for pair in pairs if all(isinstance(value, int | float) and isfinite(value) for value in pair)]
    xs, ys = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return xs / unit, ys


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean over a thirtieth of the run around each value, and over less near both ends."""
    index, total = np.arange(len(values)), np.concatenate([[0.0], np.cumsum(values)])
    left = np.minimum(index, len(values) // 60)
    right = np.minimum(left, len(values) - 1 - index)  # symmetric, so that a steep loss is not shifted
    means = (total[index + right + 1] - total[index - left]) / (left + right + 1)
    return np.clip(means, values.min(), values.max())  # against rounding


def loss_range(curves: list[Curve]) -> tuple[float, float]:
    """The range of bits per byte to show: everything after the first steps, up to the 8 of an untrained model."""
    begin = 0.05 * max(x.max() for x, _ in curves)
    later = [y[x >= min(begin, (x.min() + x.max()) / 2)] for x, y in curves]  # at least the second half of a short run
    low, high = min(np.quantile(y, 0.002) for y in later), max(np.quantile(y, 0.998) for y in later)
    high = max(min(high, 8.0), low + 0.05)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def unit_of_time(seconds: float) -> tuple[int, str]:
    """The unit of time for an axis of a length in seconds: its seconds, and its name."""
    return (1, "s") if seconds < 300 else (60, "min") if seconds < 7200 else (3600, "h")


def save(figure, path: Path) -> None:
    """Write a matplotlib Figure in one step, in the format of the file's suffix."""
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format=path.suffix[1:], dpi=120)
    replace(temporary, path)


def draw(runs: dict[str, list[dict]], by: str = "step"):
    """The matplotlib Figure of runs, given as name: lines.

    Raises:
        UserError: when a run lacks the key that `by` reads, or no run has anything to draw.
    """
    import matplotlib  # slow to import, and only needed here

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    # -- the horizontal axis
    key, x_label = AXES[by]
    check_axis(runs, by)
    end = max(series(lines, key, key)[0].max() for lines in runs.values())
    unit = 1
    if by == "time":
        unit, unit_name = unit_of_time(end)
        x_label += f" ({unit_name})"

    # -- the curves of every panel, by run
    curves = {panel: find_curves(runs, key, panel, unit) for panel in (*PANELS, VALIDATION)}
    scores = curves.pop(VALIDATION)
    large = [LOSS] if curves[LOSS] or scores else []
    small = [panel for panel in curves if panel != LOSS and curves[panel]]
    if not large + small:
        raise UserError(Mistake("run", f"nothing to draw in {', '.join(runs)}", f"lines with {', '.join(curves)}"))

    # -- the loss over the full width, the others in a row below it
    rows: list[Any] = [row for row in (large * max(1, len(small)), small) if row]
    heights = [4.8 if row[0] in large else 2.6 for row in rows]
    figure = Figure(figsize=(11, sum(heights) + 0.6 + 0.2 * len(runs)), layout="constrained")
    axes = figure.subplot_mosaic(rows, height_ratios=heights)
    looks = dict(zip(runs, zip(COLOURS, MARKERS, strict=True), strict=False))
    for panel, axis in axes.items():
        axis.set(xlabel=x_label, xlim=(0, 1.01 * end / unit or 1))
        draw_panel(axis, panel, curves[panel], looks)
        if panel == LOSS:
            draw_scores(axis, scores, looks)
            axis.set_ylim(loss_range([*curves[LOSS].values(), *scores.values()]))
        format_ticks(axis, panel, by)
    draw_legend(figure, scores, looks)
    return figure


def check_axis(runs: dict[str, list[dict]], by: str) -> None:
    """Raise a UserError if a run has no values for the horizontal axis, and name the axes that it has values for."""
    key, _ = AXES[by]
    for name, lines in runs.items():
        if not len(series(lines, key, key)[0]):
            others = ", ".join(other for other, (k, _) in AXES.items() if len(series(lines, k, k)[0]))
            raise UserError(Mistake("by", f"{by}, but no line of {name} has {key!r}", others or "none"))


def find_curves(runs: dict[str, list[dict]], x_key: str, panel: str, unit: float) -> dict[str, Curve]:
    """The curve of a panel for each run that has one."""
    curves = {}
    for name, lines in runs.items():
        x, y = series(lines, x_key, panel, unit)
        if panel == NORM:
            x, y = x[y > 0], y[y > 0]  # its axis is logarithmic
        if len(x):
            curves[name] = x, y
    return curves


def draw_panel(axis, panel: str, curves: dict[str, Curve], looks: dict[str, tuple[str, str]]) -> None:
    """Draw the curves of one panel, by run, each in its colour."""
    title, y_label = PANELS[panel]
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_ylabel(y_label)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)

    for name, (x, y) in curves.items():
        style: dict[str, Any] = {"color": looks[name][0], "marker": "." if len(x) == 1 else ""}
        if panel in NOISY:
            axis.plot(x, y, linewidth=0.5, alpha=0.35 if len(looks) == 1 else 0.2, **style)
            y = np.exp(smooth(np.log(y))) if panel == NORM else smooth(y)
        axis.plot(x, y, linewidth=1.5, **style)

    if panel not in NOISY:
        axis.set_ylim(0, 1.1 * max(np.quantile(y, 0.99) for _, y in curves.values()) or 1)


def draw_scores(axis, scores: dict[str, Curve], looks: dict[str, tuple[str, str]]) -> None:
    """Draw the validation scores, by run, as lines with marks."""
    for name, (x, y) in scores.items():
        colour, marker = looks[name]
        axis.plot(x, y, marker, color=colour, zorder=3, **MARK)


def format_ticks(axis, panel: str, by: str) -> None:
    """Choose where both axes have ticks, and how their numbers are written."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    plain = StrMethodFormatter("{x:,.10g}")
    ticks = MaxNLocator(nbins=10 if panel == LOSS else 4, steps=[1, 2, 5, 10], integer=by != "time")
    axis.xaxis.set_major_locator(ticks)
    axis.xaxis.set_major_formatter(EngFormatter() if by == "bytes" else plain)

    if panel == NORM:
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
        axis.yaxis.set_minor_formatter(NullFormatter())
    if panel != LOSS:
        axis.yaxis.set_major_formatter(EngFormatter() if panel == "speed/bytes_per_second" else plain)


def in_legend(name: str) -> str:
    """The name of a run as matplotlib should show it. A $ would start a formula."""
    return one_line(name).replace("$", r"\$")


def draw_legend(figure, scores: dict[str, Curve], looks: dict[str, tuple[str, str]]) -> None:
    """A legend of the runs with their validation scores, and a title above it."""
    from matplotlib.lines import Line2D

    entries = {}
    for name, (colour, marker) in looks.items():
        text = in_legend(name)
        if name in scores:
            _, values = scores[name]
            text += f": validation best {values.min():.4f}, last {values[-1]:.4f} bits per byte"
        entries[text] = Line2D([], [], color=colour, marker=marker if name in scores else "", **MARK)

    runs = list(looks)
    title = "Training of " + (f"{len(runs)} runs" if len(runs) > 1 else in_legend(runs[0]))
    style = {"loc": "outside upper center", "frameon": False, "title_fontsize": 13}
    figure.legend(list(entries.values()), list(entries), title=title, **style)


if __name__ == "__main__":
    run_program(main)
