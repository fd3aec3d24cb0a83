"""Starting the project's programs as a user does, and finding all processes of a run, orphans included."""

import gzip
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.conftest import ROOT, TEXT, TINY
from tests.runs import LAUNCH, LAUNCH_TWO, NO_GPU
from tests.stress.report import Fault

MARK = "STRESS_MARK"  # an environment variable that children inherit, so that orphans are found as well
LAUNCHERS = {0: (sys.executable,), 1: LAUNCH, 2: LAUNCH_TWO}  # by number of processes; 0 = no launcher
# Imports everything, says so, and starts when a line comes: so that a moment can be met within milliseconds.
WAITING = "import runpy, train; print('ready', flush=True); input(); runpy.run_path('train.py', run_name='__main__')"
ENVIRONMENT = {
    "ACCELERATE_USE_CPU": "true",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONUNBUFFERED": "1",
    **NO_GPU,
}


@dataclass
class Started:
    """A program that was started, with the file that holds its output."""

    line: list[str]
    process: subprocess.Popen
    mark: str
    stdout: Path
    stderr: Path

    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait(self, seconds: float) -> int:
        """Its exit code. Raises a Fault if it takes longer."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Fault(f"did not end within {seconds:.0f} s\n{self}") from None

    def error_lines(self) -> list[str]:
        """What it wrote to stderr, without warnings and empty lines."""
        return [line for line in self.written(self.stderr) if not is_warning(line)]

    def written(self, path: Path) -> list[str]:
        """The lines of its stdout or stderr that are not empty."""
        text = path.read_text(encoding="utf-8", errors="backslashreplace")
        return [line for line in text.splitlines() if line.strip()]

    def __str__(self) -> str:
        shown = [f"command: {shlex.join(self.line)}", f"exit code: {self.process.poll()}"]
        shown += [f"stdout: {line}" for line in self.written(self.stdout)[-5:]]
        shown += [f"stderr: {line}" for line in self.written(self.stderr)[-40:]]
        return "\n".join(shown)


def is_warning(line: str) -> bool:
    """Whether a line of stderr is a warning, of the project or of a library."""
    return line.startswith("warning: ") or re.match(r"\S+:\d+: \w+Warning: ", line) is not None


def start(line: list[str], logs: Path, mark: str, **options) -> Started:
    """Start a program in the root of the project. Everything that it starts inherits the mark."""
    logs.mkdir(parents=True, exist_ok=True)
    number = len(list(logs.iterdir())) // 2
    stdout, stderr = logs / f"{number:02d}.stdout", logs / f"{number:02d}.stderr"
    environment = os.environ | ENVIRONMENT | {MARK: mark}
    options = {"stdin": subprocess.DEVNULL} | options
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(line, cwd=ROOT, stdout=out, stderr=err, env=environment, **options)
    return Started(line, process, mark, stdout, stderr)


def start_waiting(arguments: list[str], logs: Path, mark: str) -> Started:
    """Start train.py up to the point where it would read its arguments. `go` lets it go on."""
    started = start([sys.executable, "-c", WAITING, *arguments], logs, mark, stdin=subprocess.PIPE)
    wait_until(lambda: started.stdout.stat().st_size > 0, started, 120)
    return started


def go(started: Started) -> None:
    """Let a program of `start_waiting` go on."""
    assert started.process.stdin is not None
    started.process.stdin.write(b"\n")
    started.process.stdin.close()


def members(mark: str) -> list[psutil.Process]:
    """All living processes with a mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:  # it has just ended, or belongs to somebody else
            continue
    return found


def workers(mark: str) -> list[psutil.Process]:
    """The processes of a run that train, by rank; not its launcher."""
    ranks = {}
    for process in members(mark):
        try:
            words = process.cmdline()
            if any(word.endswith("train.py") for word in words) and "accelerate.commands.launch" not in words:
                ranks[int(process.environ().get("LOCAL_RANK", 0))] = process
        except psutil.Error:
            continue
    return [ranks[rank] for rank in sorted(ranks)]


def kill_all(mark: str) -> None:
    """SIGKILL every process with a mark, and wait until none is left."""
    deadline = time.monotonic() + 30
    while family := members(mark):
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=1)
        if time.monotonic() > deadline:
            raise Fault(f"processes that do not end after SIGKILL: {family}")


def wait_until(happened: Callable[[], bool], started: Started, seconds: float) -> None:
    """Wait for an event while a program runs. Raises a Fault if the program ends first, or it takes too long."""
    deadline = time.monotonic() + seconds
    while not happened():
        if not started.is_running():
            raise Fault(f"it ended too early\n{started}")
        if time.monotonic() > deadline:
            raise Fault(f"nothing happened within {seconds:.0f} s\n{started}")
        time.sleep(0.0005)


def write_text_of(folder: Path, num_bytes: int) -> Path:
    """Write a text with at least this many bytes once it is unpacked. Returns its path."""
    path = folder / "text.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write((TEXT * (num_bytes // len(TEXT) + 1)).encode())
    return path


def tiny_config(folder: Path, text: Path) -> Path:
    """Write the tests' tiny config for a text, with a cache in the same folder."""
    path = folder / "tiny.yaml"
    path.write_text(TINY.replace("name: files", f"name: files, path: {text}, cache_dir: {folder / 'cache'}"))
    return path
