"""plot.py: the pictures of metrics files, and the errors for files that cannot be drawn."""

import json
from math import exp, nan
from pathlib import Path

import numpy as np
import pytest

from plot import PANELS, draw, loss_range, main, read_metrics, run_names, series, smooth

PNG = b"\x89PNG\r\n\x1a\n"


def curve(steps: int = 60, final: float = 2.0, **more) -> list[dict]:
    """Lines such as train.py writes: a loss that falls from 8 bits per byte, with noise, validated every 20 steps."""
    noise = np.random.default_rng(0).normal(0, 0.1, steps)
    lines = []
    for step in range(1, steps + 1):
        bits = final + (8 - final) * exp(-step / 10) + noise[step - 1]
        line = {"step": step, "train/learning_rate": 1e-3 / step, "train/loss": bits, "train/bits_per_byte": bits}
        line |= {"train/gradient_norm": 1 + 5 / step, "speed/bytes_per_second": 12_000} | more
        if step % 20 == 0:
            line["validation/bits_per_byte"] = final + 10 / step
        lines.append(line)
    return lines


def write(folder: Path, lines: list[dict], end: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return folder


def panels(figure) -> dict:
    """A figure's axes by the key of PANELS that they show."""
    titles = {title: key for key, (title, _) in PANELS.items()}
    return {titles[axis.get_title(loc="left")]: axis for axis in figure.axes}


def labels(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def size_of_png(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(PNG) and len(data) > 10_000
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def test_one_run_is_drawn_into_its_folder_and_several_into_one_file(tmp_path, command):
    one, other = write(tmp_path / "one", curve()), write(tmp_path / "other", curve(final=1.5))
    done = command("plot.py", one)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(one / "metrics.png")
    width, height = size_of_png(one / "metrics.png")
    assert 800 <= width <= 2000 and 600 <= height <= 2000
    assert sorted(path.name for path in one.iterdir()) == ["metrics.jsonl", "metrics.png"]  # nothing temporary

    target = tmp_path / "both.png"
    done = command("plot.py", one, other / "metrics.jsonl", "--output", target)
    assert done.returncode == 0, done.stderr
    size_of_png(target)

    done = command("plot.py", one, tmp_path / "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: run: got ") and done.stderr.count("\n") == 1


def test_the_loss_is_in_bits_and_every_run_has_one_colour_in_all_panels():
    figure = draw({"one": curve(), "other": curve(final=1.5)})
    axes = panels(figure)
    assert set(axes) == set(PANELS)
    assert axes["train/gradient_norm"].get_yscale() == "log"
    assert all(axis.get_xlabel() == "step" and axis.get_ylabel() for axis in axes.values())
    assert axes["train/bits_per_byte"].get_ylabel() == "bits per byte"

    thin, bold, thin_other, _, marks, _ = axes["train/bits_per_byte"].get_lines()
    bits = [line["train/bits_per_byte"] for line in curve()]
    np.testing.assert_allclose(thin.get_ydata(), bits)
    assert len(bold.get_ydata()) == 60
    assert list(marks.get_xdata()) == [20, 40, 60] and list(marks.get_ydata()) == [2.5, 2.25, 2 + 10 / 60]
    assert marks.get_marker() != "None" and marks.get_color() == thin.get_color() != thin_other.get_color()
    colours = [{line.get_color() for line in axis.get_lines()} for axis in axes.values()]
    assert all(len(each) == 2 and each == colours[0] for each in colours)
    entries = dict(zip(labels(figure), figure.legends[0].get_lines(), strict=True))
    assert [line.get_color() for line in entries.values()] == [thin.get_color(), thin_other.get_color()]


def test_the_legend_has_the_best_and_the_last_validation_score():
    lines = curve()
    lines[-1]["validation/bits_per_byte"] = 2.75
    assert labels(draw({"run": lines})) == ["run: validation best 2.2500, last 2.7500 bits per byte"]
    unscored = [{k: v for k, v in line.items() if k != "validation/bits_per_byte"} for line in lines]
    assert labels(draw({"_a $5$ run": unscored})) == [r"_a \$5\$ run"]


@pytest.mark.parametrize("count", [1, 2, 8])
def test_up_to_eight_runs_can_be_told_apart(count):
    figure = draw({f"run-{number}": curve() for number in range(count)})
    lines = figure.legends[0].get_lines()
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == count


def test_a_name_has_as_many_parent_folders_as_it_needs_to_be_unique(tmp_path):
    folders = ["a/seed/run", "b/seed/run", "b/other", "b/rerun/run"]
    paths = [tmp_path / folder / "metrics.jsonl" for folder in folders]
    assert run_names(paths) == ["a/seed/run", "b/seed/run", "other", "rerun/run"]
    assert run_names(paths[:1]) == ["run"]
    same = [tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "old.jsonl"]
    assert len(set(run_names(same))) == 2


def test_null_and_nan_are_left_out_and_a_cut_last_line_too(tmp_path):
    lines = curve(30)
    lines[4] |= {"train/loss": None, "train/bits_per_byte": None, "train/gradient_norm": None}
    lines[9]["train/bits_per_byte"] = nan
    read = read_metrics(write(tmp_path / "run", lines, end='{"step": 31, "train/bits') / "metrics.jsonl")
    assert [line["step"] for line in read] == list(range(1, 31))
    x, y = series(read, "step", "train/bits_per_byte")
    assert list(x) == [step for step in range(1, 31) if step not in (5, 10)] and np.isfinite(y).all()
    thin = panels(draw({"run": read}))["train/bits_per_byte"].get_lines()[0]
    assert list(thin.get_xdata()) == list(x)


def test_a_panel_without_data_is_left_out():
    lines = [
        {k: v for k, v in line.items() if k in ("step", "train/bits_per_byte", "train/learning_rate")}
        for line in curve()
    ]
    assert set(panels(draw({"run": lines}))) == {"train/bits_per_byte", "train/learning_rate"}
    norms = panels(draw({"run": [{"step": step, "train/gradient_norm": 1.0 * (step > 1)} for step in (1, 2, 3)]}))
    assert (
        set(norms) == {"train/gradient_norm"} and norms["train/gradient_norm"].get_ylim()[0] > 0.01
    )  # a 0 has no logarithm
    assert set(panels(draw({"run": [{"step": 1, "validation/bits_per_byte": 3.0}]}))) == {"train/bits_per_byte"}


def test_smoothing_keeps_length_and_range_and_removes_noise():
    generator = np.random.default_rng(0)
    for size in (1, 2, 7, 60, 1000):
        values = generator.normal(3, 1, size)
        smoothed = smooth(values)
        assert len(smoothed) == size
        assert values.min() <= smoothed.min() and smoothed.max() <= values.max()
    assert smoothed.std() < 0.3 * values.std()
    np.testing.assert_array_equal(smooth(np.full(500, 0.1)), np.full(500, 0.1))
    straight = np.linspace(0, 1, 600)
    np.testing.assert_allclose(smooth(straight)[:-10], straight[:-10], atol=1e-9)  # no lag, from the first value on


def test_neither_the_first_steps_nor_a_diverged_run_set_the_scale():
    x = np.arange(1.0, 1001)
    falls = 2 + 6 * np.exp(-x / 20)
    low, high = loss_range([(x, falls)])
    assert 1.8 < low < 2 and 2 < high < 3
    low, high = loss_range([(x, falls), (x[:100], x[:100] ** 2)])
    assert low < 2 and 8 < high < 9
    low, high = loss_range([(x, np.full(1000, 2.0))])
    assert low < 2 < high


def test_time_and_bytes_can_be_the_axis():
    lines = [line | {"seconds": 10.0 * line["step"], "bytes": 2048 * line["step"]} for line in curve()]
    axes = panels(draw({"run": lines}, by="time"))
    thin = axes["train/bits_per_byte"].get_lines()[0]
    assert axes["train/bits_per_byte"].get_xlabel() == "training time (min)" and thin.get_xdata()[-1] == 10
    axes = panels(draw({"run": lines}, by="bytes"))
    thin, _, marks = axes["train/bits_per_byte"].get_lines()
    assert thin.get_xdata()[-1] == 2048 * 60 and list(marks.get_xdata()) == [2048 * step for step in (20, 40, 60)]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["RUN", "--by", "bytes"], ["by: got bytes", "no line of run has 'bytes'", "allowed: step"]),
        (["RUN", "--by", "epoch"], ["by: got epoch", "allowed: step, time, bytes"]),
        (["RUN", "--output", "TMP/picture.txt"], ["output: got", "picture.txt", "allowed: .png"]),
        (["RUN", "--output", "TMP/nowhere/picture.png"], ["output: got", "nowhere", "a folder that exists"]),
        (["RUN", "TMP/none"], ["run: got", "none", "allowed: a run directory or its metrics.jsonl"]),
        (["x" * 300], ["run: got", "xxx", "allowed: a run directory or its metrics.jsonl"]),
        (["/proc/self/mem"], ["run: "]),
        (["TMP/empty"], ["run: got", "no whole line", "allowed: a run of one step or more"]),
        (["TMP/broken"], ["run: got 'what?' in line 2 of", "allowed: JSON objects"]),
        (["TMP/bare"], ["run: got nothing to draw in bare", "allowed: lines with train/bits_per_byte"]),
        ([f"TMP/{number}" for number in range(9)], ["run: got 9 runs", "allowed: 1 to 8"]),
        ([], ["run"]),
    ],
)
def test_an_input_that_cannot_be_drawn_gives_one_line(tmp_path, capsys, arguments, words):
    write(tmp_path / "run", curve())
    write(tmp_path / "empty", [])
    write(tmp_path / "bare", [{"step": 1}])
    write(tmp_path / "broken", curve(1), end='what?\n{"step": 2}\n')
    arguments = [a.replace("TMP", str(tmp_path)).replace("RUN", str(tmp_path / "run")) for a in arguments]
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)
    out, error = capsys.readouterr()
    assert not out and error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in words), error
    assert not list(tmp_path.rglob("*.png")) and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("steps", [[-1.0], [-3.0, -1.0], [0.0], [5.0], [0.0, 1.0, 2.0]])
def test_a_range_is_found_for_any_steps(steps):
    low, high = loss_range([(np.array(steps), np.full(len(steps), 2.0))])
    assert low < 2.0 < high
