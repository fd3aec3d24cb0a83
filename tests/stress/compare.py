"""Is a run that was disturbed equal, bit for bit, to one that was not?"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.runs import checkpoints, metrics, same, weights
from tests.stress.report import Fault
from training.checkpoints import damage

TEMPORARY = (".writing*", ".model", "*.tmp")  # names of files and folders that are not yet whole


def check_nothing_left(*folders: Path) -> None:
    """Raise a Fault if a file or folder that was being written is left."""
    for folder in folders:
        for pattern in TEMPORARY:
            if left := sorted(folder.rglob(pattern)):
                raise Fault(f"left behind: {', '.join(map(str, left))}")


def check_checkpoints(run_dir: Path) -> None:
    """Raise a Fault unless there are checkpoints, and the checksums of all of them hold."""
    if not checkpoints(run_dir):
        raise Fault(f"{run_dir} has no checkpoint")
    for checkpoint in checkpoints(run_dir):
        if problem := damage(checkpoint):
            raise Fault(f"{checkpoint}: {problem}")


def check_equal(run_dir: Path, reference: Path) -> None:
    """Raise a Fault unless metrics, weights, optimizer and best model of two runs are equal."""
    check_checkpoints(run_dir)
    mine, theirs = numbers(run_dir), numbers(reference)
    if mine != theirs:
        raise Fault(f"metrics of {run_dir} are not those of {reference}: {first_difference(mine, theirs)}")
    if not same(weights(run_dir), weights(reference)):
        raise Fault(f"weights of {run_dir} are not those of {reference}")
    states, expected = (torch.load(checkpoints(run)[-1] / "optimizer.bin")["state"] for run in (run_dir, reference))
    if not all(same(*pair) for pair in zip(states.values(), expected.values(), strict=True)):
        raise Fault(f"the optimizer of {run_dir} is not that of {reference}")
    if training_record(run_dir) != training_record(reference):
        raise Fault(f"the best model of {run_dir} is {training_record(run_dir)}, not {training_record(reference)}")
    if not same(*(load_file(run / "model" / "model.safetensors") for run in (run_dir, reference))):
        raise Fault(f"the best model's weights in {run_dir} are not those of {reference}")


def numbers(run_dir: Path) -> list[dict]:
    """The lines of metrics.jsonl without times and speeds."""
    return [
        {name: value for name, value in line.items() if name != "seconds" and not name.startswith("speed/")}
        for line in metrics(run_dir)
    ]


def first_difference(mine: list[dict], theirs: list[dict]) -> str:
    for number, (one, other) in enumerate(zip(mine, theirs, strict=False), start=1):
        if one != other:
            return f"line {number} is {one}, not {other}"
    return f"{len(mine)} lines, not {len(theirs)}"


def training_record(run_dir: Path) -> dict:
    """What training.json says of the best model."""
    return json.loads((run_dir / "model" / "training.json").read_text())
