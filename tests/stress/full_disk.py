"""Fill a small file system while a run writes to it.

    python -m tests.stress.full_disk --rounds 3 --seed 0         # some 5 minutes
    python -m tests.stress.full_disk --only model --rounds 1

Mounts a tmpfs of a few MB, for which it needs root, or a user namespace of its own (`unshare`), so it runs on Linux
only. A case fills the disk, up to a number of bytes or inodes that is drawn, at a moment when the next write is known:

    metrics      lines are appended to metrics.jsonl
    model        the best model is written
    sample       a sample is written
    checkpoint   a checkpoint is written
    inodes       a checkpoint is written, and there is space, but not for another file
    start        the run directory and its first checkpoint are written
    corpus       the corpus is written to the cache

What must hold: exit code 1 (2 where nothing has been trained yet), and one line on stderr that names the path and the
reason, and the checkpoint that is whole if there is one. Checkpoints, best model and metrics are whole, also after a
--resume on the disk that is still full. With space again, --resume ends as an undisturbed run, bit for bit.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from model import HierarchicalTransformer
from tests.runs import checkpoints
from tests.stress.compare import check_checkpoints, check_equal, check_nothing_left
from tests.stress.programs import Started, kill_all, start, tiny_config, wait_until, write_text_of
from tests.stress.report import Fault, Report

DISK_BYTES = 8 << 20
DISK_INODES = 500
CORPUS_BYTES = 5_000_000
FULL = ("No space left on device", "os error 28")  # as Python and Rust name the reason


@dataclass(frozen=True)
class Kind:
    """What is written when the disk is full."""

    settings: dict[str, int]
    """settings of the run, so that this is the next write"""
    leave: int
    """at most so many bytes, or inodes, are left free"""
    names: str
    """part of the path that the error must name"""


# In every run, each of these is due at the last step. Before, only what a kind asks for.
SELDOM = {"max_steps": 40, "log_every": 1000, "validate_every": 1000, "sample_every": 1000, "checkpoint_every": 1000}
KINDS = {
    "metrics": Kind({"log_every": 1}, leave=3_000, names="metrics.jsonl"),
    "model": Kind({"validate_every": 12}, leave=90_000, names="model"),
    "sample": Kind({"sample_every": 12, "sample_length": 200}, leave=0, names="samples"),
    "checkpoint": Kind({"log_every": 10, "checkpoint_every": 12}, leave=250_000, names="checkpoints"),
    "inodes": Kind({"log_every": 10, "checkpoint_every": 12}, leave=5, names="checkpoints"),
    "start": Kind({}, leave=250_000, names="run"),
    "corpus": Kind({}, leave=CORPUS_BYTES, names="cache"),
}

FIRST_CODES = {"start": (1, 2), "corpus": (2,)}  # exit codes when the disk becomes full; 1 for the others


class Disk:
    """A small file system of its own, which can be filled and emptied."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        options = f"size={DISK_BYTES},nr_inodes={DISK_INODES}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)

    def fill(self, leave: int) -> None:
        """Leave only so many bytes free."""
        free = os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_frsize
        with (self.folder / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(free - leave, 1))

    def fill_inodes(self, leave: int) -> None:
        """Leave only so many inodes free."""
        (self.folder / "ballast").mkdir()
        for number in range(os.statvfs(self.folder).f_favail - leave):
            (self.folder / "ballast" / str(number)).touch()

    def free(self) -> None:
        """Give the space back."""
        ballast = self.folder / "ballast"
        shutil.rmtree(ballast) if ballast.is_dir() else ballast.unlink()

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)


class Case:
    """A run whose disk becomes full."""

    def __init__(self, folder: Path, name: str, config: Path, leave: int):
        self.kind, self.name, self.leave, self.config = KINDS[name], name, leave, config
        folder.mkdir()
        self.logs, self.mark = folder / "logs", str(folder)
        self.disk = Disk(folder / "disk")
        self.run_dir = self.disk.folder / "run"
        self.cache = self.disk.folder / "cache" if name == "corpus" else config.parent / "cache"

    def start(self) -> Started:
        """Start or resume the run."""
        known = (self.run_dir / "config.yaml").exists()
        flags = ["--resume"] if known else settings_of(self.kind, self.config, self.cache)
        line = [sys.executable, "train.py", "--run_dir", str(self.run_dir), *flags]
        return start(line, self.logs, self.mark)

    def run(self, reference: Path) -> None:
        """Fill the disk, look at what is there, and train to the end."""
        self.check_message(self.train_until_full(), FIRST_CODES.get(self.name, (1,)), self.kind.names)
        self.check_files()
        self.check_message(self.start(), (1, 2), "")  # again, while the disk is full
        self.check_files()

        self.disk.free()
        started = self.start()
        if started.wait(120) != 0:
            raise Fault(f"it was not resumed to its end\n{started}")
        check_nothing_left(self.run_dir, self.cache)
        check_equal(self.run_dir, reference)

    def train_until_full(self) -> Started:
        """Start the run, and fill the disk once the first checkpoint is there; or before the start."""
        if self.name in ("start", "corpus"):
            self.disk.fill(self.leave)
            return self.start()
        started = self.start()
        first = self.run_dir / "checkpoints" / "step-00000000" / "manifest.json"
        wait_until(first.exists, started, 120)
        started.process.send_signal(signal.SIGSTOP)
        self.disk.fill_inodes(self.leave) if self.name == "inodes" else self.disk.fill(self.leave)
        started.process.send_signal(signal.SIGCONT)
        return started

    def check_message(self, started: Started, codes: tuple[int, ...], names: str) -> None:
        """One line names the path, the reason and the checkpoint that is whole."""
        code = started.wait(120)
        lines = started.error_lines()
        whole = checkpoints(self.run_dir) if self.run_dir.exists() else []
        if code not in codes:
            raise Fault(f"exit code {code}, not one of {codes}\n{started}")
        if len(lines) != 1 or not lines[0].startswith("error: "):
            raise Fault(f"{len(lines)} lines on stderr, not one error\n{started}")
        if not any(reason in lines[0] for reason in FULL):
            raise Fault(f"the line does not say that the disk is full\n{started}")
        if str(self.disk.folder) not in lines[0] or names not in lines[0]:
            raise Fault(f"the line does not name the path\n{started}")
        if code == 1 and whole and not (f"{whole[-1]} is whole: continue with" in lines[0] and "--resume" in lines[0]):
            raise Fault(f"the line does not name the checkpoint that is whole, {whole[-1].name}\n{started}")

    def check_files(self) -> None:
        """All that is on the disk is whole."""
        check_nothing_left(self.disk.folder)
        if self.name in ("start", "corpus"):
            return
        check_checkpoints(self.run_dir)
        if (self.run_dir / "model").exists():
            HierarchicalTransformer.from_pretrained(self.run_dir / "model")
        *complete, _cut = (self.run_dir / "metrics.jsonl").read_text().split("\n")
        for line in complete:
            json.loads(line)


def settings_of(kind: Kind, config: Path, cache: Path) -> list[str]:
    """The command line of a kind of run."""
    flags = [f"--train.{name}={value}" for name, value in (SELDOM | kind.settings).items()]
    return ["--config", str(config), f"--data.cache_dir={cache}", "--model.dropout=0.1", *flags]


def train_undisturbed(folder: Path, kind: Kind, config: Path) -> Path:
    """A run on a disk with space. Returns its run directory."""
    settings = settings_of(kind, config, config.parent / "cache")
    started = start([sys.executable, "train.py", "--run_dir", str(folder / "run"), *settings], folder, str(folder))
    if started.wait(120) != 0:
        raise Fault(f"the undisturbed run failed\n{started}")
    return folder / "run"


def enter_namespace() -> None:
    """Without the right to mount, start this program again in a user namespace, where it has that right."""
    if can_mount():
        return
    if "STRESS_NAMESPACE" in os.environ or shutil.which("unshare") is None:
        sys.exit("error: cannot mount a tmpfs here; run this as root on Linux")
    os.environ["STRESS_NAMESPACE"] = "entered"
    os.execvp("unshare", ["unshare", "--map-root-user", "--mount", sys.executable, *sys.orig_argv[1:]])


def can_mount() -> bool:
    """Whether this process may mount a file system."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            disk = Disk(Path(folder) / "disk")
        except (OSError, subprocess.CalledProcessError):
            return False
        disk.unmount()
        return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="cases of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS, help="cases of this kind alone")
    args = parser.parse_args(argv)

    enter_namespace()
    report = Report("full_disk", args.seed)
    folder = Path(tempfile.mkdtemp(prefix="full-disk-"))
    config = tiny_config(folder, write_text_of(folder, CORPUS_BYTES))

    references: dict[str, Path] = {}
    for name, number in itertools.product([args.only] if args.only else KINDS, range(args.rounds)):
        kind = KINDS[name]
        key = json.dumps(kind.settings)
        if key not in references:
            references[key] = train_undisturbed(folder / f"undisturbed-{name}", kind, config)
        leave = random.Random(f"{args.seed}-{name}-{number}").randint(0, kind.leave)
        case = Case(folder / f"{name}-{number}", name, config, leave)
        title = f"{name} {number}, with {leave:,} {'inodes' if name == 'inodes' else 'bytes'} left"
        try:
            case.run(references[key])
            report.passed(title, "whole")
        except Fault as fault:
            report.failed(title, fault)
        finally:
            kill_all(case.mark)
            case.disk.unmount()
    shutil.rmtree(folder)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
