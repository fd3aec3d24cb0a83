"""Run trials in processes of their own, several at a time, and append a line for each to a file of results.

The folder of a race holds `runs.jsonl`, with a line for each finished trial, and `states/`, with the state of each
unfinished one. Calling `run_trials` again continues where the last call was interrupted.
"""

import json
import multiprocessing
import os
import signal
import sys
from dataclasses import asdict
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.quality.trials import Trial, run_trial
from data import DataConfig
from training.command_line import user_errors

Result = dict[str, Any]  # a line of runs.jsonl: key, name, validation, curve, test, seconds and trial


def run_trials(trials: list[tuple[str, Trial]], data: DataConfig, folder: Path, jobs: int) -> dict[str, Result]:
    """Run all trials that have no result yet.

    Ends the program when a trial fails, or at Ctrl-C; the same call continues from there.

    Args:
        trials: each with its contender's name.
        data: the corpus that all of them train on.
        folder: an existing folder, for the results and the states.
        jobs: how many trials run at once.

    Returns the results of all trials in the folder, by the trials' keys.
    """
    states = folder / "states"
    states.mkdir(exist_ok=True)
    done = read_results(folder / "runs.jsonl")
    remove_stale_states(states, done)

    missing: dict[str, tuple[str, Trial]] = {}
    for name, trial in trials:
        if trial.key not in done:
            missing[trial.key] = name, trial

    try:
        run_in_processes(list(missing.values()), data, folder, jobs)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from here", file=sys.stderr)
        sys.exit(130)
    return read_results(folder / "runs.jsonl")


def run_in_processes(trials: list[tuple[str, Trial]], data: DataConfig, folder: Path, jobs: int) -> None:
    """Run each trial in a process of its own, `jobs` at a time. Ends the program when one of them fails."""
    context = process_context()
    waiting = list(trials)
    running: dict[Any, tuple[str, BaseProcess]] = {}  # by the process's sentinel, which can be waited for
    while waiting or running:
        # Start as many as may run.
        while waiting and len(running) < jobs:
            name, trial = waiting.pop(0)
            process = context.Process(target=run_and_record, args=(name, trial, data, folder), daemon=True)
            process.start()
            running[process.sentinel] = name, process

        # Wait until at least one has ended.
        for sentinel in wait(list(running)):
            name, process = running.pop(sentinel)
            process.join()
            code = process.exitcode
            if code:
                print(f"error: {name} ended with exit code {code}; the same command continues", file=sys.stderr)
                sys.exit(2 if code == 2 else 1)


def process_context() -> SpawnContext | ForkServerContext:
    """How processes start: forked from a server that has already imported the libraries and done nothing else.

    On macOS a forked process cannot use Metal, so each starts from scratch there.
    """
    if sys.platform == "darwin":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.quality.trial_runner"])
    return context


def run_and_record(name: str, trial: Trial, data: DataConfig, folder: Path) -> None:
    """Run one trial, append its line to runs.jsonl, and print its scores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    state = folder / "states" / f"{trial.key}.pt"
    with user_errors():
        result = run_trial(name, trial, data, state)

    line = {"key": trial.key, "name": name, **result, "trial": asdict(trial)}
    with (folder / "runs.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    state.unlink(missing_ok=True)

    scores = [f"{split} {result[split]:.4f}" for split in ("validation", "test") if result.get(split)]
    print(
        f"trained {name}: learning rate {trial.learning_rate:g}, seed {trial.seed}, {trial.steps:,} steps in "
        f"{result['seconds']:.0f} s, bits per byte: {', '.join(scores) or 'not finite'}",
        flush=True,
    )


def read_results(path: Path) -> dict[str, Result]:
    """The lines of runs.jsonl by key. A last line that a kill left incomplete is removed from the file."""
    if not path.exists():
        return {}
    text, newline, _incomplete = path.read_bytes().rpartition(b"\n")
    os.truncate(path, len(text + newline))

    results = {}
    for line in text.splitlines():
        result = json.loads(line)
        results[result["key"]] = result
    return results


def remove_stale_states(states: Path, done: dict[str, Result]) -> None:
    """Delete files that a kill left behind: half-written ones, and the states of trials that have their result."""
    for file in states.iterdir():
        if file.suffix != ".pt" or file.stem in done:
            file.unlink()
