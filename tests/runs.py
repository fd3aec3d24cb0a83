"""Reading the files of a run, and launching one on two processes."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}  # for results that do not depend on the machine
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch")
# `--num_processes 2 --cpu` silently runs one process (accelerate issue 2741); with ACCELERATE_USE_CPU=true this runs
# two, with gloo.
LAUNCH_TWO = (*LAUNCH, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir: Path) -> list[float]:
    lines = metrics(run_dir)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))  # every step once, in order
    return [line["train/loss"] for line in lines]


def checkpoints(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "checkpoints").glob("step-*"))


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(run_dir)[-1] / "model.safetensors")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def content(folder: Path) -> dict[str, bytes]:
    """What each file of a run holds, by its path, except for the locks."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".locks" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
