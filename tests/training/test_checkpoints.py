"""Which checkpoints are kept, and which model is the best."""

import json
from contextlib import nullcontext
from dataclasses import asdict
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import Accelerator

import train as training_script
from data import Corpus
from training.checkpoints import STATE, RunState, all_checkpoints, load_checkpoint, prune, read_state
from training.config import Config
from utils.errors import UserError


def write_states(run_dir: Path, scores: dict[int, float]) -> None:
    """Checkpoints by step that hold their validation score alone."""
    for step, score in scores.items():
        folder = run_dir / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / STATE).write_text(json.dumps(asdict(RunState(step=step, validation=score))))


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ({1: 3.0, 2: 2.0, 3: 4.0, 4: 5.0}, [4, 3, 2]),
        ({1: nan, 2: 2.0, 3: 4.0, 4: 5.0}, [4, 3, 2]),  # NaN is never the best
        ({1: 3.0, 2: 2.0, 3: nan, 4: nan}, [4, 3, 2]),
        ({1: inf, 2: 3.0, 3: 2.0, 4: 4.0}, [4, 3]),
        ({1: 3.0, 2: 2.0, 3: 4.0, 4: 5.0, 9: 1.0}, [4, 3, 2]),  # a step that the resumed run has not reached
    ],
)
def test_the_newest_two_and_the_best_checkpoint_stay(tmp_path, scores, kept):
    write_states(tmp_path, scores)
    prune(tmp_path, step=4, keep=2)
    assert [read_state(checkpoint).step for checkpoint in all_checkpoints(tmp_path)] == kept


def test_a_state_that_cannot_be_read_is_a_default_one(tmp_path):
    (tmp_path / STATE).write_text('{"step": 3')
    assert read_state(tmp_path) == RunState()


def test_a_checkpoint_of_another_batch_size_is_refused(tmp_path):
    (tmp_path / STATE).write_text(json.dumps(asdict(RunState(step=1, global_batch_size=8))))
    with pytest.raises(UserError, match=r"trained with 8 sequences per step.* this run has 4"):
        load_checkpoint(Accelerator(cpu=True, mixed_precision="no"), tmp_path, 4)


@pytest.mark.parametrize(("score", "saved"), [(1.5, True), (2.0, False), (2.5, False), (nan, False), (inf, False)])
def test_only_a_better_validation_replaces_the_best_model(tmp_path, monkeypatch, score, saved):
    calls = []
    monkeypatch.setattr(training_script, "validation_bits_per_byte", lambda *arguments: score)
    monkeypatch.setattr(training_script, "save_best_model", lambda *arguments: calls.append("save"))
    (tmp_path / "bytes.bin").write_bytes(b"xyz")
    progress = SimpleNamespace(clock=lambda kind: nullcontext(), say=lambda line: None)
    trackers = SimpleNamespace(log=lambda *arguments: None, log_model=lambda *arguments: None)
    run = SimpleNamespace(
        config=Config(run_dir="nowhere"),
        state=RunState(step=7, best_bits_per_byte=2.0),
        corpus=Corpus("text", "a text", tmp_path, sizes={"train": 1, "valid": 1, "test": 1}, sha256={}),
        accelerator=None,
        model=None,
        progress=progress,
        trackers=trackers,
    )
    training_script.validate(run)
    assert (calls == ["save"]) == saved
    assert run.state.best_bits_per_byte == (1.5 if saved else 2.0)
