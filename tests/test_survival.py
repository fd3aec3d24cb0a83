"""No training is lost: kills at any moment, damaged checkpoints, signals, full disks, numbers that are not finite."""

import os
import pty
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from tests.conftest import ROOT
from tests.runs import LAUNCH_TWO, NO_GPU, checkpoints, losses, metrics, same, weights
from training.checkpoints import damage, read_state
from training.run_dir import run_errors

LONG = ("--train.max_steps=300", "--train.log_every=1", "--train.checkpoint_every=8", "--train.validate_every=60")
LONG += ("--model.dropout=0.1",)  # so that random states count


def start(workplace: Path, run_dir: Path, *options, launcher=(sys.executable,), **environment) -> subprocess.Popen:
    config = () if "--resume" in options else ("--config", str(workplace / "tiny.yaml"))
    line = [*launcher, "train.py", *config, "--run_dir", str(run_dir), *options]
    environment = os.environ | NO_GPU | environment
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL a launcher and everything it started."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    process.communicate()
    psutil.wait_procs(family)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


AT_A_STEP, WHILE_WRITING = "at a random step", "while a checkpoint is being written"


@pytest.mark.parametrize(
    ("launcher", "kills"),
    [
        ((sys.executable,), (AT_A_STEP, WHILE_WRITING, AT_A_STEP, WHILE_WRITING)),
        (LAUNCH_TWO, (AT_A_STEP, WHILE_WRITING, WHILE_WRITING)),
    ],
    ids=["1 process", "2 processes"],
)
def test_a_run_killed_again_and_again_ends_with_the_same_weights(workplace, launcher, kills):
    environment = {"ACCELERATE_USE_CPU": "true"}
    whole, cut = (workplace / f"{name}-{len(launcher)}" for name in ("through", "killed"))
    process = start(workplace, whole, *LONG, launcher=launcher, **environment)
    said, complained = process.communicate()
    assert process.returncode == 0, complained
    assert f"{2 if launcher is LAUNCH_TWO else 1} process(es)" in said

    chance, half_written = random.Random(0), 0
    for attempt, kill in enumerate(kills):
        writing, lines = cut / "checkpoints" / ".writing", cut / "metrics.jsonl"
        process = start(workplace, cut, *(("--resume",) if attempt else LONG), launcher=launcher, **environment)
        shutil.rmtree(writing, ignore_errors=True)
        before, steps = size(lines), chance.randint(0, 20)
        while process.poll() is None:
            if kill == WHILE_WRITING and size(lines) > before and writing.exists():
                time.sleep(chance.random() * 0.005)  # into the middle of writing
                break
            if kill == AT_A_STEP and size(lines) > before + 200 * steps:
                break
            time.sleep(0.0005)
        assert process.poll() is None, process.communicate()
        kill_all(process)
        half_written += writing.exists()
    assert half_written >= 1

    process = start(workplace, cut, "--resume", launcher=launcher, **environment)
    said, complained = process.communicate()
    assert process.returncode == 0, complained
    assert losses(cut) == losses(whole) and len(losses(cut)) == 300
    assert same(weights(cut), weights(whole))
    optimizers = [torch.load(checkpoints(run)[-1] / "optimizer.bin")["state"] for run in (cut, whole)]
    assert all(same(*states) for states in zip(*(o.values() for o in optimizers), strict=True))


def damage_file(file: Path, how: str, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if how == "deleted":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[: chance.randrange(len(content))])
    else:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "flipped", "deleted"])
def test_a_damaged_checkpoint_is_skipped_and_the_run_ends_the_same(whole, workplace, train, how):
    chance, run_dir = random.Random(how), workplace / how
    newest = checkpoints(whole)[-1]
    assert damage(newest) is None
    for file in sorted(newest.iterdir()):  # any damage to any file is noticed
        for trial in range(20):
            copy = workplace / "copy" / newest.name
            shutil.copytree(newest, copy)
            damage_file(copy / file.name, how, chance)
            assert file.name in damage(copy) or "manifest.json" in file.name, (file, trial)
            shutil.rmtree(copy)

    shutil.copytree(whole, run_dir)
    shutil.rmtree(checkpoints(run_dir)[-1])
    victim = chance.choice(sorted(checkpoints(run_dir)[-1].iterdir()))
    damage_file(victim, how, chance)
    text = (run_dir / "metrics.jsonl").read_text()
    (run_dir / "metrics.jsonl").write_text(text[: int(len(text) * 0.6)])  # and a line is cut off, too
    _, done = train(how, "--resume")
    assert done.returncode == 0, done.stderr
    assert "skipping damaged checkpoint" in done.stderr and "step-00000010" in done.stderr
    assert victim.name in done.stderr
    assert "resuming from" in done.stdout and "step-00000005" in done.stdout
    assert losses(run_dir) == losses(whole)
    assert same(weights(run_dir), weights(whole))


def wait_for_steps(process: subprocess.Popen, run_dir: Path) -> None:
    """Wait until a run has written its first metrics."""
    while not size(run_dir / "metrics.jsonl"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


ENDLESS = ("--train.max_steps=2000000", "--train.checkpoint_every=1000000", "--train.validate_every=1000000")
ENDLESS += ("--train.log_every=1",)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resume_continues_at_the_next_step(workplace, train, number):
    run_dir = workplace / f"stopped-{number}"
    process = start(workplace, run_dir, *ENDLESS)
    wait_for_steps(process, run_dir)
    if number == signal.SIGINT:  # until then a resume is refused, and does no harm
        _, refused = train(run_dir.name, "--resume")
        in_use = f"error: {run_dir} is in use: process {process.pid} on {socket.gethostname()} trains there"
        assert refused.returncode == 2 and refused.stderr.startswith(in_use) and refused.stderr.count("\n") == 1

    process.send_signal(number)
    said, complained = process.communicate()
    assert process.returncode == 128 + number and "saving" in complained and "--resume" in said
    at = len(losses(run_dir))
    assert [p.name for p in checkpoints(run_dir)] == ["step-00000000", f"step-{at:08d}"]

    _, done = train(run_dir.name, "--resume", f"--train.max_steps={at + 3}")
    assert done.returncode == 0, done.stderr
    assert len(losses(run_dir)) == at + 3
    assert read_state(checkpoints(run_dir)[-1]).step == at + 3


def test_sigusr1_saves_and_goes_on_and_a_closed_terminal_saves_and_exits(workplace):
    """The run leads a session with a terminal, as in ssh. Closing the terminal sends SIGHUP, and breaks its output."""
    run_dir = workplace / "hung-up"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        line = [
            sys.executable,
            "train.py",
            "--config",
            str(workplace / "tiny.yaml"),
            "--run_dir",
            str(run_dir),
            *ENDLESS,
        ]
        os.execve(sys.executable, line, os.environ | NO_GPU)

    def wait_until(happened: Callable[[], bool]) -> None:
        while not happened():
            if select.select([terminal], [], [], 0.001)[0]:  # the run must not wait for a reader
                assert os.read(terminal, 1 << 16)

    wait_until(lambda: size(run_dir / "metrics.jsonl") > 0)
    os.kill(pid, signal.SIGUSR1)
    wait_until(lambda: len(checkpoints(run_dir)) == 2)
    saved = read_state(checkpoints(run_dir)[-1]).step
    assert damage(checkpoints(run_dir)[-1]) is None
    wait_until(lambda: len(losses(run_dir)) > saved + 2)  # it has gone on

    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    at = len(losses(run_dir))
    assert at > saved + 2 and [read_state(each).step for each in checkpoints(run_dir)] == [saved, at]


def test_a_run_whose_launcher_was_killed_keeps_others_out_until_all_its_processes_are_gone(workplace, train):
    run_dir = workplace / "orphaned"
    two = {"launcher": LAUNCH_TWO, "ACCELERATE_USE_CPU": "true"}
    launcher = start(workplace, run_dir, *ENDLESS, **two)
    wait_for_steps(launcher, run_dir)
    family = psutil.Process(launcher.pid).children(recursive=True)
    ranks = {int(each.environ()["RANK"]): each for each in family if "RANK" in each.environ()}
    launcher.kill()
    try:
        # -- both go on; a start on two processes is refused in a line of the first, without a traceback of the second
        _, refused = train("orphaned", "--resume", **two)
        errors = [line for line in refused.stderr.splitlines() if "error: " in line]
        assert refused.returncode != 0 and len(errors) == 1, refused.stderr
        assert f"{run_dir} is in use: process {ranks[0].pid} on " in errors[0]
        assert "a traceback that follows is the launcher's" in refused.stderr and "[rank" not in refused.stderr

        # -- only the second is left, waiting for the first
        ranks[1].suspend()
        ranks[0].kill()
        ranks[0].wait()
        _, refused = train("orphaned", "--resume", "--train.batch_size=8")
        assert refused.returncode == 2 and f"is in use: process {ranks[1].pid} on " in refused.stderr
    finally:
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        launcher.communicate()
        psutil.wait_procs(family)

    steps = len(metrics(run_dir)) + 3
    _, done = train("orphaned", "--resume", "--train.batch_size=8", f"--train.max_steps={steps}")
    assert done.returncode == 0, done.stderr
    assert len(losses(run_dir)) == steps


def test_of_two_fresh_starts_at_once_one_trains(workplace):
    run_dir = workplace / "at-once"
    processes = [start(workplace, run_dir) for _ in range(2)]
    complaints = [process.communicate()[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2], complaints
    for process, complaint in zip(processes, complaints, strict=True):
        if process.returncode:
            assert complaint.count("\n") == 1 and ("is in use: process" in complaint or "already holds" in complaint)
    assert len(losses(run_dir)) == 12


def test_a_stop_waits_for_the_end_of_skipped_steps_and_keeps_the_healthy_checkpoint(workplace):
    run_dir = workplace / "skipping"
    flags = ("--train.learning_rate=1e30", "--train.max_skipped_steps=1000000", "--train.checkpoint_every=4")
    process = start(workplace, run_dir, *ENDLESS, *flags)
    wait_for_steps(process, run_dir)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    while "saving and exiting after the next one that is not" not in process.stdout.readline():
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)  # a second signal exits at once
    process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert [p.name for p in checkpoints(run_dir)] == ["step-00000000"]


def test_a_stopped_launcher_lets_its_processes_save(workplace):
    """The launcher forwards SIGTERM, and waits."""
    run_dir, steps = workplace / "launched", ("--train.max_steps=20000", "--train.checkpoint_every=20000")
    quiet = ("--train.validate_every=20000", "--train.log_every=1")
    process = start(workplace, run_dir, *steps, *quiet, launcher=LAUNCH_TWO, ACCELERATE_USE_CPU="true")
    while not size(run_dir / "metrics.jsonl"):
        assert process.poll() is None, process.communicate()
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    psutil.wait_procs(family)
    assert process.returncode != 0
    last = checkpoints(run_dir)[-1]
    assert read_state(last).step == len(losses(run_dir)) > 0 and damage(last) is None


def test_a_second_signal_exits_at_once(workplace):
    run_dir = workplace / "stopped-twice"
    process = start(workplace, run_dir, *ENDLESS, "--train.batch_size=2048")  # steps take long, also on a busy machine
    wait_for_steps(process, run_dir)
    os.kill(process.pid, signal.SIGSTOP)  # both signals arrive before the step ends
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert [p.name for p in checkpoints(run_dir)] == ["step-00000000"]


def test_only_the_newest_and_the_best_checkpoints_stay(workplace, train):
    """The learning rate rises so far that the second validation is worse than the first."""
    options = ("--train.max_steps=24", "--train.checkpoint_every=4", "--train.validate_every=4")
    options += ("--train.warmup_steps=1000", "--train.learning_rate=400", "--train.keep_checkpoints=2")
    run_dir, done = train("worse", *options)
    assert done.returncode == 0, done.stderr
    scores = {line["step"]: line["validation/bits_per_byte"] for line in metrics(run_dir) if line["step"] % 4 == 0}
    best = min(scores, key=scores.get)
    assert best < 20
    assert [p.name for p in checkpoints(run_dir)] == [f"step-{n:08d}" for n in (best, 20, 24)]


class TestFailures:
    """One line with the failure and how to resume, exit code 1, and a whole last checkpoint."""

    def is_one_line(self, done, *expected):
        assert done.returncode == 1, done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in done.stderr
        for text in expected:
            assert text in lines[0]

    def test_of_a_disk_that_fills_up(self, whole, workplace, train):
        """Files may not grow past 200 KiB, which a checkpoint of the same run at a larger width does."""
        limited = ("bash", "-c", 'ulimit -f 200; exec "$0" "$@"', sys.executable)
        _, done = train("filled", "--model.dim=[64,96]", launcher=limited)
        self.is_one_line(done, "cannot write", "checkpoints")
        assert not (workplace / "filled" / "checkpoints" / ".writing").exists()

        shutil.copytree(whole, workplace / "filling")
        limited = ("bash", "-c", 'ulimit -f 20; exec "$0" "$@"', sys.executable)
        _, done = train("filling", "--resume", "--train.max_steps=20", launcher=limited)
        last = checkpoints(workplace / "filling")[-1]
        self.is_one_line(done, "cannot write", f"{last} is whole: continue with", "--resume")
        assert last.name == "step-00000012" and damage(last) is None
        _, done = train("filling", "--resume", "--train.max_steps=20")
        assert done.returncode == 0 and len(losses(workplace / "filling")) == 20

        # -- the file of metrics grows past 400 KiB, amid a line; checkpoints do not
        path = workplace / "filling" / "metrics.jsonl"
        lines = path.read_text().splitlines()
        lines[0] = lines[0].removesuffix("}") + f', "note": "{" " * (400 * 1024 - size(path) - 200)}"}}'
        path.write_text("\n".join(lines) + "\n")
        limited = ("bash", "-c", 'ulimit -f 400; exec "$0" "$@"', sys.executable)
        _, done = train("filling", "--resume", "--train.max_steps=24", launcher=limited)
        self.is_one_line(done, "File too large", "is whole: continue with", "--resume")
        assert size(path) == 400 * 1024 and not path.read_bytes().endswith(b"\n")
        _, done = train("filling", "--resume", "--train.max_steps=24")
        assert done.returncode == 0 and len(losses(workplace / "filling")) == 24

    def test_of_a_gpu_that_is_lost(self, whole, capsys):
        with pytest.raises(SystemExit) as ended, run_errors(whole):
            raise torch.AcceleratorError("CUDA error: the device is gone")
        assert ended.value.code == 1
        last = checkpoints(whole)[-1]
        assert f"error: CUDA error: the device is gone; {last} is whole: continue with" in capsys.readouterr().err

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
    def test_of_a_folder_that_cannot_be_written(self, train):
        _, done = train("/proc/runs")
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "/proc/runs" in done.stderr

    def test_of_numbers_that_are_not_finite(self, workplace, train):
        """Checkpoints are due at steps 4 and 8, which are skipped. The healthy one stays, and is the newest."""
        flags = ("--train.max_skipped_steps=10", "--train.checkpoint_every=4", "--train.keep_checkpoints=1")
        run_dir, done = train("diverged", "--train.learning_rate=1e30", *flags)
        self.is_one_line(done, "10 steps in a row", "not finite", "step-00000000 is whole: continue with")
        assert [p.name for p in checkpoints(run_dir)] == ["step-00000000"]
        lines = metrics(run_dir)
        assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
        for line in lines[-10:]:
            assert line["train/loss"] is None and len(line["offsets"]) == 4
        assert all("offsets" not in line for line in lines[:-10])
        assert all(tensor.isfinite().all() for tensor in weights(run_dir).values())
