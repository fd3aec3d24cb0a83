"""Which checkpoints are kept, and which model is the best."""

import json
import shutil
import warnings
from contextlib import nullcontext
from dataclasses import asdict, fields
from math import inf, isfinite, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator

import train as training_script
from data import Corpus
from training.checkpoints import (
    MANIFEST,
    STATE,
    RunState,
    all_checkpoints,
    checkpoint_to_resume,
    damage,
    load_checkpoint,
    prune,
    read_state,
    step_of,
)
from training.config import Config
from utils.errors import UserError
from utils.files import sha256


def in_short(content: Any) -> str:
    return str(content)[:20]


def write_states(run_dir: Path, scores: dict[int, Any]) -> None:
    """Checkpoints by step that hold their state alone, with a validation score, which may be no number."""
    for step, score in scores.items():
        folder = run_dir / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        write_state(folder, asdict(RunState(step=step)) | {"validation": score})


def write_state(checkpoint: Path, state: Any) -> None:
    """A checkpoint's state, and a manifest whose checksums hold."""
    (checkpoint / STATE).write_text(json.dumps(state))
    mend(checkpoint)


def mend(checkpoint: Path) -> None:
    """Write the checksums of the files that are there."""
    checksums = {path.name: sha256(path) for path in checkpoint.iterdir() if path.name != MANIFEST}
    (checkpoint / MANIFEST).write_text(json.dumps({"sha256": checksums}))


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ({1: 3.0, 2: 2.0, 3: 4.0, 4: 5.0}, [4, 3, 2]),
        ({1: nan, 2: 2.0, 3: 4.0, 4: 5.0}, [4, 3, 2]),  # NaN is never the best
        ({1: 3.0, 2: 2.0, 3: nan, 4: nan}, [4, 3, 2]),
        ({1: inf, 2: 3.0, 3: 2.0, 4: 4.0}, [4, 3]),
        ({1: nan, 2: nan, 3: nan, 4: nan}, [4, 3]),
        ({1: 3.0, 2: 2.0, 3: 4.0, 4: 5.0, 9: 1.0}, [4, 3, 2]),  # a step that the resumed run has not reached
    ],
)
def test_the_newest_two_and_the_best_checkpoint_stay(tmp_path, scores, kept):
    write_states(tmp_path, scores)
    prune(tmp_path, step=4, keep=2)
    assert [step_of(checkpoint) for checkpoint in all_checkpoints(tmp_path)] == kept


NO_SCORES = [nan, inf, -inf, -1.0, None, "1.0", [1.0], {"bits": 1.0}, True]


@pytest.mark.parametrize("broken", [1, 3, 4])
@pytest.mark.parametrize("score", NO_SCORES, ids=str)
def test_what_is_no_score_never_costs_the_best_checkpoint(tmp_path, score, broken):
    write_states(tmp_path, {1: 3.0, 2: 2.0, 3: 4.0, 4: 5.0} | {broken: score})
    prune(tmp_path, step=4, keep=2)
    assert [step_of(checkpoint) for checkpoint in all_checkpoints(tmp_path)] == [4, 3, 2]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, '{"validation": 1.0}', None], ids=in_short)
def test_nor_does_a_state_that_cannot_be_read(tmp_path, content):
    write_states(tmp_path, {1: 3.0, 2: 2.0, 3: 4.0, 4: 5.0})
    state = tmp_path / "checkpoints" / "step-00000003" / STATE
    state.unlink() if content is None else state.write_text(content)
    prune(tmp_path, step=4, keep=2)
    assert [step_of(checkpoint) for checkpoint in all_checkpoints(tmp_path)] == [4, 3, 2]


NAMES = "checkpoints are folders named step-00000000"


def test_only_folders_with_the_name_of_a_checkpoint_are_pruned_or_resumed(tmp_path, capsys):
    write_states(tmp_path, {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0})
    folder = tmp_path / "checkpoints"
    others = [folder / name for name in ("step-00000001.bak", "step-9", "step-x", "step-00000020.bak", "step-")]
    for other in others:
        shutil.copytree(folder / "step-00000001", other)
    others.append(folder / "step-00000099")
    others[-1].write_text("a file")
    prune(tmp_path, step=4, keep=1)
    assert [step_of(checkpoint) for checkpoint in all_checkpoints(tmp_path)] == [4, 1]
    assert all(other.exists() for other in others)
    assert checkpoint_to_resume(tmp_path) == folder / "step-00000004"
    lines = capsys.readouterr().err.splitlines()
    assert sorted(lines) == sorted(f"warning: passing over {path}: {NAMES}" for path in others)


def test_a_checkpoint_moved_elsewhere_is_pruned_as_a_link(tmp_path):
    write_states(tmp_path, {1: 3.0, 2: 2.0})
    link, elsewhere = tmp_path / "checkpoints" / "step-00000001", tmp_path / "elsewhere"
    link.rename(elsewhere)
    link.symlink_to(elsewhere)
    prune(tmp_path, step=2, keep=1)
    assert not link.is_symlink() and (elsewhere / STATE).is_file()


def test_steps_of_more_digits_than_names_are_padded_to_are_newer(tmp_path):
    write_states(tmp_path, {99_999_999: 2.0, 100_000_000: 2.0})
    assert [step_of(checkpoint) for checkpoint in all_checkpoints(tmp_path)] == [100_000_000, 99_999_999]


def test_a_state_is_read_as_it_was_written(tmp_path):
    state = RunState(step=3, seconds=1.5, validation=nan, best_bits_per_byte=inf, tracker_ids={"wandb": "a"})
    write_state(tmp_path, asdict(state))
    assert repr(read_state(tmp_path)) == repr(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"momentum": 1}, "has the field momentum, which this version of the code does not know"),
        ({"step": None}, "step in .*: got null, allowed: a whole number, 0 or above"),
        ({"step": "3"}, "step in .*: got 3, allowed"),
        ({"step": 3.0}, "step in .*: got 3.0, allowed"),
        ({"step": True}, "step in .*: got true, allowed"),
        ({"step": -3}, "step in .*: got -3, allowed"),
        ({"seconds": "now"}, "seconds in .*: got now, allowed: a number"),
        ({"seconds": nan}, "seconds in .*: got nan, allowed: a number"),
        ({"seconds": inf}, "seconds in .*: got inf, allowed: a number"),
        ({"seconds": -1.0}, "seconds in .*: got -1.0, allowed: a number"),
        ({"validation": None}, "validation in .*: got null, allowed: a number"),
        ({"validation": [1]}, r"validation in .*: got \[1\], allowed: a number"),
        ({"tracker_ids": []}, r"tracker_ids in .*: got \[\], allowed: texts by name"),
        ({"tracker_ids": {"wandb": 3}}, "tracker_ids in .*: got {wandb: 3}, allowed: texts by name"),
    ],
    ids=str,
)
def test_a_state_that_is_not_understood_is_refused(tmp_path, change, message):
    write_state(tmp_path, asdict(RunState(step=3)) | change)
    with pytest.raises(UserError, match=message) as refused:
        read_state(tmp_path)
    assert len(refused.value.mistakes) == 1 and str(tmp_path / STATE) in str(refused.value)


@pytest.mark.parametrize("name", [each.name for each in fields(RunState)])
def test_a_state_of_an_older_version_is_refused(tmp_path, name):
    state = asdict(RunState(step=3))
    del state[name]
    write_state(tmp_path, state)
    with pytest.raises(UserError, match=f"lacks the field {name}"):
        read_state(tmp_path)


@pytest.mark.parametrize("content", ['{"step": 3', "[]", "null", "3", "", "[" * 100_000, b"\xff"], ids=in_short)
def test_a_state_that_is_no_state_is_refused(tmp_path, content):
    (tmp_path / STATE).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=STATE):
        read_state(tmp_path)


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        ({"sha256": []}, "lists no checksums"),
        ({"sha256": {}}, "lists no checksums"),
        ({"sha256": None}, "lists no checksums"),
        ({}, "lists no checksums"),
        (None, "lists no checksums"),
        ([], "lists no checksums"),
        ("sha256", "lists no checksums"),
        ({"sha256": {STATE: None}}, f"{STATE} does not match its checksum"),
        ({"sha256": {STATE: ["a"]}}, f"{STATE} does not match its checksum"),
    ],
    ids=str,
)
def test_a_manifest_of_another_form_is_damage(tmp_path, manifest, problem):
    (tmp_path / STATE).write_text("{}")
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert problem in damage(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "inner/../../secret", "{absolute}", "inner", ".", "", "a\0b"])
def test_a_manifest_names_only_files_of_its_checkpoint(tmp_path, name):
    checkpoint = tmp_path / "step-00000001"
    (checkpoint / "inner").mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_text("outside")
    name = name.format(absolute=secret)
    (checkpoint / STATE).write_text("{}")
    checksums = {STATE: sha256(checkpoint / STATE), name: sha256(secret)}
    (checkpoint / MANIFEST).write_text(json.dumps({"sha256": checksums}))
    assert damage(checkpoint) == f"{name} is missing"


def test_if_every_checkpoint_is_damaged_all_are_named(tmp_path):
    assert checkpoint_to_resume(tmp_path) is None
    write_states(tmp_path, {1: 3.0, 2: 2.0})
    (tmp_path / "checkpoints" / "step-00000001" / STATE).write_text("{}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint_to_resume(tmp_path) == tmp_path / "checkpoints" / "step-00000002"
    (tmp_path / "checkpoints" / "step-00000002" / MANIFEST).unlink()
    with pytest.raises(UserError) as refused:
        checkpoint_to_resume(tmp_path)
    (line,) = refused.value.mistakes
    assert f"step-00000001: {STATE} does not match its checksum" in line
    assert "step-00000002: " in line and "manifest.json cannot be read (No such file or directory)" in line
    assert f"delete {tmp_path / 'checkpoints'} to begin again at step 0" in line


def test_a_checkpoint_of_another_batch_size_is_refused(tmp_path):
    write_state(tmp_path, asdict(RunState(step=1, global_batch_size=8)))
    with pytest.raises(UserError, match=r"trained with 8 sequences per step.* this run has 4"):
        load_checkpoint(Accelerator(cpu=True, mixed_precision="no"), tmp_path, 4)


@pytest.mark.parametrize("best", [2.0, nan, inf])
@pytest.mark.parametrize("score", [1.5, 2.0, 2.5, nan, inf, -inf])
def test_only_a_better_validation_replaces_the_best_model(tmp_path, monkeypatch, score, best):
    saved = isfinite(score) and (score < 2.0 or not isfinite(best))
    calls = []
    monkeypatch.setattr(training_script, "validation_bits_per_byte", lambda *arguments: score)
    monkeypatch.setattr(training_script, "save_best_model", lambda *arguments: calls.append("save"))
    (tmp_path / "bytes.bin").write_bytes(b"xyz")
    progress = SimpleNamespace(clock=lambda kind: nullcontext(), say=lambda line: None)
    trackers = SimpleNamespace(log=lambda *arguments: None, log_model=lambda *arguments: None)
    run = SimpleNamespace(
        config=Config(run_dir="nowhere"),
        state=RunState(step=7, best_bits_per_byte=best),
        corpus=Corpus("text", "a text", tmp_path, sizes={"train": 1, "valid": 1, "test": 1}, sha256={}),
        accelerator=None,
        model=None,
        progress=progress,
        trackers=trackers,
    )
    training_script.validate(run)
    assert (calls == ["save"]) == saved
    assert repr(run.state.best_bits_per_byte) == repr(score if saved else best)
