"""What a run prints about its attention at the start, and about itself at the end."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from model import ModelConfig
from training.checkpoints import RunState
from training.config import Config, TrainConfig
from training.run_dir import run_errors
from training.summary import attention_backends, print_summary


def summary(run_dir: Path, best: dict | None, state: RunState, capsys, max_steps: int = 1000) -> dict[str, str]:
    """The summary of a run whose best model has this record, by its first column."""
    if best is not None:
        (run_dir / "model").mkdir(parents=True, exist_ok=True)
        (run_dir / "model" / "training.json").write_text(json.dumps(best))
    print_summary(Config(run_dir=str(run_dir), train=TrainConfig(max_steps=max_steps)), state, bytes_per_step=2048)
    said = capsys.readouterr().out.splitlines()
    return {line[:12].strip(): line[12:] for line in said}


def test_the_summary_has_the_score_and_step_of_the_best_model(tmp_path, capsys):
    best = {"validation_bits_per_byte": 1.23456, "step": 20}
    said = summary(tmp_path / "a run", best, RunState(step=50, seconds=3661.6), capsys)
    assert said["best"] == "1.2346 bits per byte of the validation split, at step 20"
    assert said["trained"] == "50 of 1,000 steps, 102,400 bytes"
    assert said["time"] == "1:01:02, 28 bytes/s"
    assert said["model"] == str(tmp_path / "a run" / "model")
    assert said["sample with"] == f"python generate.py '{tmp_path / 'a run'}' --prompt \"The \""
    assert said["score with"] == f"python evaluate.py '{tmp_path / 'a run'}' --split test"
    assert said["resume with"] == f"accelerate launch train.py --run_dir '{tmp_path / 'a run'}' --resume"


def test_a_run_without_a_validation_has_no_score_and_no_model(tmp_path, capsys):
    said = summary(tmp_path, None, RunState(step=1, seconds=1.0), capsys)
    assert list(said) == ["trained", "time", "resume with"]


@pytest.mark.parametrize("record", [None, [], {}, {"validation_bits_per_byte": "1", "step": 1}], ids=repr)
def test_a_damaged_record_of_the_best_model_is_no_score(tmp_path, capsys, record):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "training.json").write_text(json.dumps(record))
    assert "best" not in summary(tmp_path, None, RunState(step=1, seconds=1.0), capsys)


def test_a_finished_run_is_not_told_how_to_resume(tmp_path, capsys):
    best = {"validation_bits_per_byte": 2.0, "step": 1}
    said = summary(tmp_path, best, RunState(step=1, seconds=1.0), capsys, 1)
    assert list(said) == ["best", "trained", "time", "model", "sample with", "score with"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"window_sizes": (0, None)}, "1x none, 0 of 2048 keys; 4x sdpa, 512 of 512 keys"),
        (
            {"window_sizes": (64, 128), "depth": (4, 2), "attn_depth": (3, None)},
            "1x block_local, 64 of 2048 keys in 3 of 4 layers; 4x block_local, 128 of 512 keys",
        ),
        (
            {"attention": "plain", "attn_depth": 1},
            "1x plain, 2048 of 2048 keys in 1 of 4 layers; 4x plain, 512 of 512 keys in 1 of 4 layers",
        ),
    ],
)
def test_the_header_has_the_attention_backend_of_each_level(arguments, line):
    config = ModelConfig(seq_len=2048, hierarchies=(1, 4), **arguments)
    assert attention_backends(config, "cpu", torch.float32) == line


def test_a_run_that_fails_says_how_to_go_on_with_a_path_that_a_shell_takes(whole, tmp_path, capsys):
    run_dir = tmp_path / "a run; $HOME"
    shutil.copytree(whole, run_dir)
    with pytest.raises(SystemExit) as end, run_errors(run_dir):
        raise OSError("the disk is full")
    assert end.value.code == 1
    command = capsys.readouterr().err.partition("continue with ")[2]
    assert shlex.split(command) == ["--run_dir", str(run_dir), "--resume"]
