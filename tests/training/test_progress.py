"""What a run prints while it trains, on a terminal and elsewhere."""

import os
import subprocess
import sys
import termios
import time

import pytest

from tests.conftest import ROOT
from training.config import TrainConfig
from training.progress import Progress


def test_the_time_left_counts_everything_to_come():
    config = TrainConfig(max_steps=100, validate_every=30, sample_every=0, checkpoint_every=50, validate_bytes=3000)
    progress = Progress(config, 40, bytes_per_step=500, shown=False)
    progress.step_seconds.extend([1.0, 3.0])
    validation = 2 * 3000 / 500 / 3  # none yet: a third of the training time on as many bytes
    assert progress.seconds_left() == pytest.approx(60 * 2 + 3 * validation)
    progress.last_seconds = {"validation": 7.0, "sample": 11.0, "checkpoint": 13.0}
    # validations at 60, 90 and 100, a sample at 100, checkpoints at 50 and 100
    assert progress.seconds_left() == pytest.approx(60 * 2 + 3 * 7 + 11 + 2 * 13)
    progress.step = 100
    assert progress.seconds_left() == 0


def test_a_step_is_timed_without_validations_samples_and_checkpoints(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    progress = Progress(TrainConfig(max_steps=9, sample_every=0), 5, bytes_per_step=10**9, shown=False)
    with progress.clock("checkpoint"):
        wait(7)
    wait(100)  # the first step, in which libraries load
    progress.advance()
    assert list(progress.step_seconds) == [100] and progress.last_seconds == {"checkpoint": 7}
    for seconds in (2, 4):
        for part in (5, 6):  # two parts of one validation
            with progress.clock("validation"):
                wait(part)
        wait(seconds)
        progress.advance()
    assert list(progress.step_seconds) == [2, 4] and progress.last_seconds["validation"] == 11
    assert progress.seconds_left() == 1 * 3 + 7 + 11  # no sample yet, so the last one is left out
    with progress.clock("sample"):
        wait(30)
    wait(3)
    progress.advance()
    assert progress.seconds_left() == 0
    progress.step = 8
    assert progress.seconds_left() == 1 * 3 + 7 + 30 + 11


def test_a_terminal_shows_the_time_left_and_a_file_gets_plain_lines(workplace, command):
    options = ["train.py", "--config", str(workplace / "tiny.yaml"), "--train.max_steps=4", "--run_dir"]
    terminal, end = os.openpty()
    termios.tcsetwinsize(end, (40, 120))
    line = [sys.executable, *options, str(workplace / "terminal")]
    process = subprocess.Popen(line, cwd=ROOT, stdout=end, stderr=end, stdin=subprocess.DEVNULL)
    os.close(end)
    shown = ""
    while chunk := read(terminal):
        shown += chunk
    assert process.wait() == 0
    assert " 4/4 steps, " in shown and "00:00 left, loss " in shown and "\033[1;32m" in shown

    done = command(*options, workplace / "plain")
    assert done.stderr == "" and "\033" not in done.stdout and "left" not in done.stdout
    assert "step 4: validation " in done.stdout and "--- sample at step 4 ---" in done.stdout


def read(terminal: int) -> str:
    """What a terminal shows next; "" when every process that wrote to it has exited."""
    try:
        return os.read(terminal, 65536).decode(errors="replace")
    except OSError:  # Linux raises it at the end
        return ""
