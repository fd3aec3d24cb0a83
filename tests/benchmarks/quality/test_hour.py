"""An hour of a preset, in miniature: a report of what was measured, also after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.quality import hour
from tests.conftest import ROOT
from tests.runs import NO_GPU, checkpoints, metrics


@pytest.fixture
def start(workplace):
    """Start an hour of the tiny config in a folder, of some seconds."""

    def run(folder, *options) -> subprocess.Popen:
        command = [sys.executable, "-m", "benchmarks.quality.hour", "--out", str(folder)]
        command += ["--config", str(workplace / "tiny.yaml"), "--coded-bytes", "100", *options]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | NO_GPU,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return run


def test_an_hour_that_was_killed_goes_on_and_reports_what_it_measured(start, tmp_path, capsys):
    options = ("--minutes", "0.05", "--train.seed=1")
    process = start(tmp_path, *options)
    while process.poll() is None and not checkpoints(tmp_path / "run"):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    known = json.loads((tmp_path / "results.json").read_text())
    assert set(known) == {"conditions", "speed"}

    process = start(tmp_path, *options)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "--resume" in output and "/timing" not in output  # what was known is not measured again

    # The report has what the programs wrote.
    report = json.loads((tmp_path / "report.json").read_text())
    lines = metrics(tmp_path / "run")
    steps = round(3 * known["speed"]["bytes_per_second"] / known["speed"]["bytes_per_step"])
    assert report["training"]["steps"] == lines[-1]["step"] == steps
    validated = [line for line in lines if "validation/bits_per_byte" in line]
    assert [point["bytes"] for point in report["training"]["curve"]] == [line["bytes"] for line in validated]
    test_bytes = report["windows"]["bytes"]
    assert test_bytes == report["carried"]["bytes"] > report["coded"]["bytes"] == 100
    assert report["coded"]["verified"]
    assert all(speed > 0 for speed in report["generation"].values())
    assert report["sample"]["prompt"] == "The " and len(report["sample"]["bytes"]) > 0

    page = (tmp_path / "report.md").read_text()
    assert page in output.replace("·", " ")
    for score in (report["windows"]["bits_per_byte"], report["carried"]["adapted_bits_per_byte"]):
        assert f"{score:.4f}" in page
    assert f"{test_bytes:,} bytes" in page

    # A report that is complete runs nothing again, also on another day, and the folder takes no other plan.
    results = tmp_path / "results.json"
    results.write_text(results.read_text().replace(report["date"], "2001-02-03"))
    process = start(tmp_path, *options)
    output, _ = process.communicate()
    assert process.returncode == 0 and "$ python" not in output
    assert json.loads((tmp_path / "report.json").read_text()) == report | {"date": "2001-02-03"}
    with pytest.raises(SystemExit) as end:
        hour.main(["--out", str(tmp_path), "--minutes", "0.1"])
    complaint = capsys.readouterr().err
    assert end.value.code == 2 and complaint.startswith("error: out: got") and complaint.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--minutes", "0"), "minutes: got 0.0, allowed: above 0"),
        (("--minutes", "nan"), "minutes: got nan, allowed: above 0"),
        (("--coded-bytes", "1"), "coded_bytes: got 1, allowed: 2 or above"),
        (("--train.max_steps=5",), "--train.max_steps cannot be passed on to train.py, as this program decides it"),
        (("--train.seed", "5"), "5: settings of train.py are written as one word, --NAME=VALUE"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        hour.main(["--out", str(tmp_path / "new"), *options])
    assert end.value.code == 2 and capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "new").exists()


def test_a_mistake_in_a_setting_of_training_ends_it(start, tmp_path):
    process = start(tmp_path, "--train.sead=1")
    _, errors = process.communicate()
    assert process.returncode == 2 and "train.sead: no such setting" in errors and "Traceback" not in errors
