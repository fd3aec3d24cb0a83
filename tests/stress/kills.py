"""SIGKILL training runs again and again, with a second train.py on the same run directory at random moments.

    python -m tests.stress.kills --kills 40 --seed 0        # some 10 minutes on two cores
    python -m tests.stress.kills --seed 0 --only 3          # run 3 of that seed alone

Two undisturbed runs, on one process and on two, say how every disturbed one has to end. A disturbed run is killed five
times: its launcher with all processes, its launcher alone, or one process alone. The moments are observed, not timed:
a random step, a checkpoint or the best model half written, and for each run's first kill the corpus half written.

Before other kills, a second train.py may start on the living run, with --resume or anew, and it always starts on the
orphans of a launcher that was killed alone. In most cases the run is stopped (SIGSTOP) meanwhile, so that every
file that the second one touches is seen. After each kill the run is resumed. At the end come races: two fresh starts at
the same moment, of which one trains and the other is refused.

What must hold:
- the second one exits with code 2 and one line, warnings aside, that names a process of the first; a fresh start may
  also be told that there is a run already, which --resume continues;
- weights, optimizer, best model and metrics are in the end equal, bit for bit, to those of the undisturbed run;
- no temporary file and no process is left.
"""

import argparse
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from tests.runs import metrics
from tests.stress.compare import check_equal, check_nothing_left
from tests.stress.programs import (
    LAUNCHERS,
    Started,
    go,
    kill_all,
    members,
    start,
    start_waiting,
    tiny_config,
    wait_until,
    workers,
    write_text_of,
)
from tests.stress.report import Fault, Report

KILLS_OF_A_RUN = 5
SETTINGS = ["--train.log_every=1", "--train.checkpoint_every=7", "--train.validate_every=10"]
SETTINGS += ["--model.dropout=0.1"]  # so that random states count
TEXT_BYTES = 48_000_000  # unpacked, so that there is time for a kill while the corpus is written


@dataclass(frozen=True)
class Kill:
    """One kill of a run."""

    moment: str
    """corpus, step, checkpoint or model"""
    steps: int
    """with moment=step: how many steps after the start"""
    delay: float
    """seconds after the moment"""
    victim: str
    """family, launcher, or the rank of a process: 0 or 1"""
    intruder: str
    """what is started on the living run: resume, fresh or nobody"""
    stopped: bool
    """whether the run is stopped while the intruder is there"""
    orphans: str
    """what happens to the processes of a launcher that is killed alone: they end, or are killed as well"""


@dataclass(frozen=True)
class Plan:
    """A disturbed run."""

    number: int
    processes: int
    kills: list[Kill]


def draw_plan(seed: int, number: int, count: int, steps: int) -> Plan:
    """The plan of a run of some steps with `count` kills. A pure function of its arguments."""
    chance = random.Random(f"{seed}-{number}")
    processes = 1 + number % 2
    kills = []
    for i in range(count):
        moment = "corpus" if i == 0 else chance.choice(["step", "step", "checkpoint", "model"])
        longest = {"corpus": 0.4, "checkpoint": 0.005, "model": 0.005}
        is_last = i == count - 1
        kills.append(
            Kill(
                moment=moment,
                steps=chance.randint(0, steps // 8),  # so that there are steps for all kills
                delay=chance.random() * longest.get(moment, 0.0),
                victim=chance.choice(["family", "launcher", "0", "1"][: 2 + processes]),
                intruder="nobody" if moment == "corpus" else chance.choice(["resume", "fresh", "nobody"]),
                stopped=chance.random() < 0.6,
                orphans=chance.choice(["end", "are killed"] if is_last else ["are killed"]),
            )
        )
    return Plan(number, processes, kills)


class DisturbedRun:
    """A run directory with a cache of its own, and the processes that train in it."""

    def __init__(self, folder: Path, config: Path, processes: int, steps: int):
        self.processes, self.config, self.steps = processes, config, steps
        self.run_dir, self.cache, self.logs = folder / "run", folder / "cache", folder / "logs"
        self.mark, self.intruder_mark = f"{folder}", f"{folder} intruder"
        folder.mkdir()

    def arguments(self, kind: str) -> list[str]:
        """The command line of a fresh start or a resume."""
        if kind == "resume":
            return ["--run_dir", str(self.run_dir), "--resume"]
        folders = [f"--data.cache_dir={self.cache}", "--run_dir", str(self.run_dir)]
        return ["--config", str(self.config), *folders, f"--train.max_steps={self.steps}", *SETTINGS]

    def start(self) -> Started:
        """Start the run, or resume it if it has begun."""
        kind = "resume" if (self.run_dir / "config.yaml").exists() else "fresh"
        return start([*LAUNCHERS[self.processes], "train.py", *self.arguments(kind)], self.logs, self.mark)

    def survive(self, kill: Kill) -> bool:
        """Start, be disturbed, and be killed; False if the run has ended before."""
        wants_intruder = kill.intruder != "nobody" or kill.victim == "launcher"
        kind = "resume" if kill.intruder == "nobody" else kill.intruder
        intruder = start_waiting(self.arguments(kind), self.logs, self.intruder_mark) if wants_intruder else None

        started = self.start()
        try:
            self.wait_for(kill, started)
        except Fault:
            if started.process.poll() != 0:
                raise
            kill_all(self.intruder_mark)
            return False
        if intruder is not None and kill.victim != "launcher":
            self.refuse(intruder, kill.stopped)
        self.strike(kill.victim, started)

        if kill.victim == "launcher":
            if intruder is not None and (self.run_dir / "config.yaml").exists():
                self.refuse(intruder, kill.stopped)
            if kill.orphans == "are killed":
                kill_all(self.mark)
        kill_all(self.intruder_mark)
        self.wait_for_the_end()
        return True

    def wait_for(self, kill: Kill, started: Started) -> None:
        """Wait until the moment of a kill."""
        lines = self.run_dir / "metrics.jsonl"
        before = count_lines(lines)
        if kill.moment == "corpus":
            wait_until(lambda: any(self.cache.glob(".writing*")), started, 120)
        elif kill.moment == "step":
            wait_until(lambda: count_lines(lines) > before + kill.steps, started, 120)
        else:
            pattern = "checkpoints/.writing*" if kill.moment == "checkpoint" else ".model"
            # what an earlier kill left does not count, so the first step comes first
            wait_until(lambda: count_lines(lines) > before and any(self.run_dir.glob(pattern)), started, 120)
        time.sleep(kill.delay)

    def strike(self, victim: str, started: Started) -> None:
        """SIGKILL a victim."""
        if victim == "family":
            kill_all(self.mark)
        elif victim == "launcher":
            started.process.kill()
            started.process.wait()
        else:
            ranks = workers(self.mark)
            if len(ranks) == self.processes:  # else the run has just ended
                ranks[int(victim)].kill()

    def refuse(self, intruder: Started, stopped: bool) -> None:
        """Let a second train.py go on, and check that it is refused, and touches nothing of the living run."""
        before = {}
        family = members(self.mark)
        if stopped:
            for process in family:
                process.send_signal(signal.SIGSTOP)
            before = self.files()
        pids = [process.pid for process in family]
        go(intruder)
        intruder.wait(60)
        after = self.files()
        still_runs = all(is_alive(process) for process in family)
        if stopped:
            for process in family:
                process.send_signal(signal.SIGCONT)

        if not still_runs:  # it has ended before it could be disturbed, which is no fault while it was not stopped
            if stopped:
                raise Fault(f"a process of the run ended while the second one was there\n{intruder}")
            return
        check_refusal(intruder, pids)
        if stopped and after != before:
            changed = sorted(str(path) for path, _ in set(after.items()) ^ set(before.items()))
            raise Fault(f"the second one touched {', '.join(changed)}\n{intruder}")

    def files(self) -> dict[Path, tuple[int, int]]:
        """Size and time of each file of the run and its cache, except for locks."""
        found = {}
        for path in [*self.run_dir.rglob("*"), *self.cache.rglob("*")]:
            if path.is_file() and "lock" not in path.name:
                found[path] = path.stat().st_size, path.stat().st_mtime_ns
        return found

    def wait_for_the_end(self) -> None:
        """Wait until all processes have ended, as those do that have lost another one."""
        deadline = time.monotonic() + 120
        while family := members(self.mark):
            if time.monotonic() > deadline:
                raise Fault(f"processes go on: {family}")
            time.sleep(0.05)

    def finish(self) -> None:
        """Resume the run to its end."""
        started = self.start()
        if started.wait(180) != 0:
            raise Fault(f"it was not resumed to its end\n{started}")
        self.wait_for_the_end()

    def check_end(self, reference: Path) -> None:
        """Check that the run ended as the undisturbed one, and left nothing else."""
        check_nothing_left(self.run_dir, self.cache)
        check_equal(self.run_dir, reference)


def check_refusal(intruder: Started, pids: list[int]) -> None:
    """Check that a second train.py ended with code 2 and one line that names the first one, of the given processes."""
    lines = intruder.error_lines()
    if intruder.wait(0) != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
        raise Fault(f"a second train.py was not refused with code 2 and one line, while {pids} were alive\n{intruder}")
    named = re.search(r"process (\d+)", lines[0])
    if named is None or int(named[1]) not in pids:
        raise Fault(f"the line names none of the processes {pids}\n{intruder}")


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def count_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def train_undisturbed(folder: Path, config: Path, processes: int, steps: int) -> Path:
    """A run that nothing happens to. Returns its run directory."""
    run = DisturbedRun(folder, config, processes, steps)
    run.finish()
    if f"{processes} process(es)" not in next(run.logs.glob("*.stdout")).read_text():
        raise Fault(f"not on {processes} process(es)")
    if [line["step"] for line in metrics(run.run_dir)] != list(range(1, steps + 1)):
        raise Fault(f"{run.run_dir} has not one line a step")
    return run.run_dir


def disturb(run: DisturbedRun, plan: Plan, reference: Callable[[int], Path], report: Report) -> int:
    """Kill a run as planned, and train it to its end. Returns how many kills it survived; a failure counts as one.

    Args:
        reference: the run directory of an undisturbed run on a number of processes.
    """
    survived = 0
    title = f"run {plan.number} on {plan.processes} process(es)"
    case = title
    try:
        for i, kill in enumerate(plan.kills):
            case = f"{title}, kill {i}, {kill}"
            if not run.survive(kill):
                report.passed(case, "ended before its kill")
                break
            report.passed(case, "survived")
            survived += 1
        case = title
        run.finish()
        run.check_end(reference(plan.processes))
        report.passed(case, "equal in the end")
    except Fault as fault:
        report.failed(case, fault)
        survived += 1  # so that the program ends
    finally:
        kill_all(run.mark)
        kill_all(run.intruder_mark)
    return survived


def race(run: DisturbedRun, reference: Path, chance: random.Random) -> None:
    """Two fresh starts at the same moment, or up to half a second apart."""
    both = [start_waiting(run.arguments("fresh"), run.logs, run.mark) for _ in range(2)]
    go(both[0])
    time.sleep(chance.choice([0.0, chance.random() * 0.5]))
    go(both[1])
    codes = [started.wait(120) for started in both]
    if sorted(codes) != [0, 2]:
        raise Fault(f"two fresh starts ended with {codes}, not one with 0 and one with 2\n{both[0]}\n{both[1]}")
    first, second = both if codes[0] == 0 else both[::-1]
    check_refusal(second, [first.process.pid])
    run.check_end(reference)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--races", type=int, default=4)
    parser.add_argument("--steps", type=int, default=160, help="steps of a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of a single run")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all runs and their output")
    args = parser.parse_args(argv)

    report = Report("kills", args.seed)
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    print(f"runs are in {folder}", flush=True)
    config = tiny_config(folder, write_text_of(folder, TEXT_BYTES))

    @cache
    def reference(processes: int) -> Path:
        """The run directory of a run that nothing happened to."""
        return train_undisturbed(folder / f"undisturbed-{processes}", config, processes, args.steps)

    # -- disturbed runs
    survived, number = 0, args.only or 0
    while survived < args.kills and (args.only is None or number == args.only):
        plan = draw_plan(args.seed, number, min(args.kills, KILLS_OF_A_RUN), args.steps)
        run = DisturbedRun(folder / f"run-{number}", config, plan.processes, args.steps)
        survived += disturb(run, plan, reference, report)
        number += 1

    # -- two fresh starts at once
    for number in range(args.races):
        run = DisturbedRun(folder / f"race-{number}", config, 0, args.steps)
        try:
            race(run, reference(1), random.Random(f"{args.seed}-race-{number}"))
            report.passed(f"race {number}", "raced")
        except Fault as fault:
            report.failed(f"race {number}", fault)
        finally:
            kill_all(run.mark)

    if not report.faults and not args.keep:
        shutil.rmtree(folder)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
