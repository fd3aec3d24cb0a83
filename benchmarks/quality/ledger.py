"""Trials in processes of their own, several at a time, and what came of them: a line each in a file that only grows."""

import json
import multiprocessing
import os
import signal
import sys
from dataclasses import asdict
from multiprocessing.connection import wait
from pathlib import Path

from benchmarks.quality.trials import Trial, run_trial
from data import DataConfig
from training.command_line import user_errors


def run_all(trials: list[tuple[str, Trial]], data: DataConfig, folder: Path, jobs: int) -> dict[str, dict]:
    """Of trials, each with its contender's name: what came of them, by key. Those that have their line are done.

    Ends the program when a trial fails, or at Ctrl-C; the same call goes on where it was.
    """
    path, states = folder / "runs.jsonl", folder / "states"
    states.mkdir(exist_ok=True)
    done = read(path)
    for file in states.iterdir():
        if file.suffix != ".pt" or file.stem in done:  # half written, or a process ended right after its line
            file.unlink()
    missing = list({trial.key: (name, trial) for name, trial in trials if trial.key not in done}.values())

    # Forked from a process that has the libraries loaded and nothing else; what Metal needs does not survive a fork.
    context = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "forkserver")
    context.set_forkserver_preload(["benchmarks.quality.ledger"])
    running: dict = {}
    try:
        while missing or running:
            while missing and len(running) < jobs:
                name, trial = missing.pop(0)
                process = context.Process(target=work, args=(name, trial, data, folder), daemon=True)
                process.start()
                running[process.sentinel] = name, process
            for sentinel in wait(list(running)):
                name, process = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    code = process.exitcode
                    print(f"error: {name} ended with exit code {code}; the same command goes on", file=sys.stderr)
                    sys.exit(2 if code == 2 else 1)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
    return read(path)


def work(name: str, trial: Trial, data: DataConfig, folder: Path) -> None:
    """Run one trial, write its line, and say how it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this
    state = folder / "states" / f"{trial.key}.pt"
    with user_errors():
        result = run_trial(name, trial, data, state)
    line = {"key": trial.key, "name": name, **result, "trial": asdict(trial)}
    with (folder / "runs.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    state.unlink(missing_ok=True)
    scores = ", ".join(f"{split} {result[split]:.4f}" for split in ("validation", "test") if result.get(split))
    print(
        f"trained {name}: rate {trial.learning_rate:g}, seed {trial.seed}, {trial.steps:,} steps in "
        f"{result['seconds']:.0f} s, {scores or 'not finite'}",
        flush=True,
    )


def read(path: Path) -> dict[str, dict]:
    """The lines by key, less a last one that a kill cut short, which goes."""
    if not path.exists():
        return {}
    whole = path.read_bytes().rpartition(b"\n")
    os.truncate(path, len(whole[0] + whole[1]))
    return {line["key"]: line for line in map(json.loads, whole[0].splitlines())}
