"""Runs are refused where they could do harm, in a line each. In this process, on copies of a finished run."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import evaluate
import generate
import plot
import train as training_script
from tests.runs import checkpoints, content, losses, metrics
from training.checkpoints import MANIFEST, STATE
from training.config import Config
from training.run_dir import open_run_dir
from utils.errors import UserError
from utils.files import sha256
from utils.locks import try_lock


@pytest.fixture
def run_dir(whole, tmp_path):
    """A copy of a finished run of 12 steps, with checkpoints of the steps 0, 5, 10 and 12."""
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture
def program(capsys):
    """Run a program in this process: program(main, argument, …) -> exit code, stdout, stderr."""

    def run(main, *arguments):
        before = {number: signal.getsignal(number) for number in signal.valid_signals() if number}
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
        finally:
            for number, handler in before.items():
                if handler is not None and signal.getsignal(number) != handler:
                    signal.signal(number, handler)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(program):
    """Run a program that must end with exit code 2 and one line, and return that line."""

    def run(main, *arguments) -> str:
        code, _, err = program(main, *arguments)
        lines = err.splitlines()
        assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), (code, err)
        return lines[0]

    return run


def resume(run_dir: Path, *flags: str) -> tuple:
    return (training_script.main, "--run_dir", run_dir, "--resume", *flags)


def mend(checkpoint: Path) -> None:
    """Write the checksums of the files that are there."""
    checksums = {path.name: sha256(path) for path in checkpoint.iterdir() if path.name != MANIFEST}
    (checkpoint / MANIFEST).write_text(json.dumps({"sha256": checksums}))


class TestLock:
    @pytest.mark.parametrize("process", [0, 1, 13])
    def test_a_run_is_refused_while_any_process_of_another_has_a_lock(self, run_dir, refused, process):
        (run_dir / ".locks").mkdir(exist_ok=True)
        lock = try_lock(run_dir / ".locks" / str(process))
        before = content(run_dir)
        line = refused(*resume(run_dir, "--train.max_steps=20"))
        assert f"{run_dir} is in use: process " in line and " trains there" in line
        assert content(run_dir) == before
        lock.release()

    def test_a_fresh_start_is_refused_while_another_has_only_begun(self, workplace, tmp_path, refused):
        (tmp_path / ".locks").mkdir()
        lock = try_lock(tmp_path / ".locks" / "0")
        line = refused(training_script.main, "--config", workplace / "tiny.yaml", "--run_dir", tmp_path)
        assert "is in use: process " in line
        assert content(tmp_path) == {}
        lock.release()

    def test_a_name_that_is_too_long_is_refused(self, workplace, refused, tmp_path):
        line = refused(training_script.main, "--config", workplace / "tiny.yaml", "--run_dir", tmp_path / ("x" * 300))
        assert "allowed: a folder that can be written" in line and "File name too long" in line

    def test_a_fresh_start_on_a_running_run_is_told_who_trains_there(self, workplace, refused, tmp_path):
        (tmp_path / ".locks").mkdir()
        lock = try_lock(tmp_path / ".locks" / "1")  # the main process may be gone
        (tmp_path / "config.yaml").write_text("train: {max_steps: 1}")
        line = refused(training_script.main, "--config", workplace / "tiny.yaml", "--run_dir", tmp_path)
        assert f"is in use: process {os.getpid()} on " in line
        lock.release()

    def test_a_fresh_start_is_refused_if_another_has_trained_since_it_was_checked(self, tmp_path):
        config = Config(run_dir=str(tmp_path))
        open_run_dir(config, 0).release()
        open_run_dir(config, 0).release()  # it has written nothing that counts
        (config.folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
        with pytest.raises(UserError, match="already holds a run"):
            open_run_dir(config, 0)

    def test_it_is_free_after_the_run(self, run_dir, program):
        for steps in (13, 14):
            code, _, err = program(*resume(run_dir, f"--train.max_steps={steps}"))
            assert code == 0, err
        assert len(losses(run_dir)) == 14

    def test_what_kills_left_half_written_is_deleted(self, run_dir, program):
        half_written = [
            run_dir / "checkpoints" / ".writing" / "model.safetensors",
            run_dir / ".model" / "model.safetensors",
            run_dir / ".config.yaml.tmp",
            run_dir / ".corpus.json.tmp",
            run_dir / ".changes.json.tmp",
            run_dir / ".init_from.json.tmp",
            run_dir / "samples" / ".step-00000012.txt.tmp",
            run_dir / ".locks" / ".0-holder.tmp",
        ]
        for path in half_written:
            path.parent.mkdir(exist_ok=True)
            path.write_text("half")
        code, _, err = program(*resume(run_dir, "--train.max_steps=13"))
        assert code == 0, err
        assert not [path for path in run_dir.rglob(".*") if path.name != ".locks"]

    def test_checkpoints_without_a_config_are_not_taken_for_a_free_folder(self, run_dir, workplace, refused):
        (run_dir / "config.yaml").unlink()
        before = content(run_dir)
        line = refused(training_script.main, "--config", workplace / "tiny.yaml", "--run_dir", run_dir)
        assert "holds checkpoints, but no config.yaml" in line
        assert content(run_dir) == before


class TestResume:
    def test_with_every_checkpoint_damaged_is_refused(self, run_dir, refused, program):
        for checkpoint in checkpoints(run_dir):
            (checkpoint / "optimizer.bin").write_bytes(b"")
        before = content(run_dir)
        line = refused(*resume(run_dir))
        assert f"every checkpoint in {run_dir / 'checkpoints'} is damaged" in line
        assert line.count("optimizer.bin does not match its checksum") == 4
        assert content(run_dir) == before

        shutil.rmtree(run_dir / "checkpoints")  # as the line says
        code, out, err = program(*resume(run_dir))
        assert code == 0 and "no checkpoint" in out and "beginning at step 0" in out, err
        assert [path.name for path in checkpoints(run_dir)][-1] == "step-00000012"

    def test_before_the_first_checkpoint_begins_at_step_0(self, run_dir, whole, program):
        for name in ("checkpoints", "model", "samples"):
            shutil.rmtree(run_dir / name)
        (run_dir / "metrics.jsonl").unlink()
        code, out, err = program(*resume(run_dir))
        assert code == 0 and f"no checkpoint in {run_dir} yet: beginning at step 0" in out, err
        assert losses(run_dir) == losses(whole)

    @pytest.mark.parametrize("change", [{"momentum": 0.9}, {"step": "ten"}, {"validation": None}], ids=str)
    def test_of_a_state_that_is_not_understood_is_refused(self, run_dir, refused, change):
        newest = checkpoints(run_dir)[-1]
        (newest / STATE).write_text(json.dumps(json.loads((newest / STATE).read_text()) | change))
        mend(newest)
        before = content(run_dir)
        assert next(iter(change)) in refused(*resume(run_dir, "--train.max_steps=20"))
        assert content(run_dir) == before

    @pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl", "model.safetensors"])
    @pytest.mark.parametrize("kind", ["a pickle that runs code", "a list", "noise"])
    def test_of_files_that_hold_something_else_is_refused(self, run_dir, refused, name, kind, tmp_path):
        newest = checkpoints(run_dir)[-1]
        if kind == "noise":
            (newest / name).write_bytes(bytes(range(256)) * 10)
        else:
            torch.save(RunsCode(tmp_path / "ran") if kind.startswith("a pickle") else [1, 2], newest / name)
        mend(newest)
        line = refused(*resume(run_dir, "--train.max_steps=20"))
        assert f"{newest} cannot be loaded, though its checksums hold" in line
        assert not (tmp_path / "ran").exists()
        assert len(losses(run_dir)) == 12

    def test_with_no_step_left_says_so(self, run_dir, program):
        before = content(run_dir / "checkpoints")
        code, out, err = program(*resume(run_dir))
        assert code == 0 and "step 12 of 12: nothing left to train\n" in out, err
        assert content(run_dir / "checkpoints") == before

    def test_with_fewer_steps_than_it_has_is_refused(self, run_dir, refused):
        line = refused(*resume(run_dir, "--train.max_steps=5"))
        assert "train.max_steps: got 5, allowed: at least 12" in line

    @pytest.mark.parametrize("lines", ["{\n", "null\n", '{"loss": 1}\n', '{"step": "x"}\n', "\0\0\0\n"], ids=repr)
    def test_of_metrics_that_end_in_something_else_is_refused(self, run_dir, refused, lines):
        path = run_dir / "metrics.jsonl"
        path.write_text(path.read_text() + lines)
        before = path.read_bytes()
        line = refused(*resume(run_dir, "--train.max_steps=20"))
        assert f"the last line of {path} has no step" in line
        assert path.read_bytes() == before

    def test_of_metrics_that_are_a_pipe_is_refused(self, run_dir, refused):
        (run_dir / "metrics.jsonl").unlink()
        os.mkfifo(run_dir / "metrics.jsonl")
        assert "metrics.jsonl is no regular file" in refused(*resume(run_dir, "--train.max_steps=20"))

    @pytest.mark.parametrize(
        "text", ["", "null", "[]", "model: [", "model: []", "train: 3", "x: \xff", "- 1"], ids=repr
    )
    @pytest.mark.parametrize("with_config", [False, True])
    def test_of_a_broken_config_is_refused(self, run_dir, workplace, refused, text, with_config):
        (run_dir / "config.yaml").write_bytes(text.encode("latin-1"))
        before = content(run_dir)
        flags = ("--config", str(workplace / "tiny.yaml")) if with_config else ()
        line = refused(*resume(run_dir, *flags))
        assert str(run_dir / "config.yaml") in line or "allowed: settings by name" in line
        assert content(run_dir) == before


class RunsCode:
    """Its pickle creates a file when it is loaded without care."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


class TestBrokenModel:
    """evaluate.py and generate.py say in a line what is wrong with RUN_DIR/model."""

    BROKEN: ClassVar = {
        "[]": "no settings by name",
        "null": "no settings by name",
        "": "config.json cannot be read",
        '{"dim": 16': "config.json cannot be read",
        "[" * 100_000: "config.json cannot be read",
        '{"momentum": 3}': "momentum, and there is no such setting",
        '{"dim": "wide"}': "dim: got wide",
        '{"depth": 100000}': "depth: got 100000, allowed: at most",
        '{"depth": [1, 1000000000000]}': "depth: got [1, 1000000000000], allowed: at most",
        '{"dim": 100000000}': "has shape",
        '{"dim": [16, 24], "hierarchies": [1, 4]}': "has shape",
        "{}": "has shape",
    }

    @pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:30])
    def test_config(self, run_dir, refused, text):
        (run_dir / "model" / "config.json").write_text(text)
        for line in (
            refused(generate.main, run_dir, "--prompt", "a", "--device", "cpu"),
            refused(evaluate.main, run_dir),
        ):
            assert f"the weights in {run_dir / 'model'} do not fit its config.json: " in line
            assert self.BROKEN[text] in line

    def test_weights(self, run_dir, refused):
        path = run_dir / "model" / "model.safetensors"
        whole, tensors = path.read_bytes(), load_file(path)
        several = [whole[:100], whole[:-1], b"", b"\xff" * 1000, whole[:8] + b"[" + whole[9:]]
        for broken in several:
            path.write_bytes(broken)
            assert "do not fit" in refused(generate.main, run_dir, "--prompt", "a", "--device", "cpu")
        name = next(iter(tensors))
        save_file({key: value for key, value in tensors.items() if key != name}, path)
        assert f"{name} has shape None" in refused(generate.main, run_dir, "--prompt", "a", "--device", "cpu")

    @pytest.mark.parametrize("card", ["---\na: [\n---\n", "---\n- 1\n---\n", "\xff", ""], ids=repr)
    def test_a_card_that_is_no_card_does_no_harm(self, run_dir, program, card):
        (run_dir / "model" / "README.md").write_bytes(card.encode("latin-1"))
        code, out, err = program(generate.main, run_dir, "--prompt", "a", "--length", "1", "--device", "cpu")
        assert code == 0 and out.startswith("a"), err

    @pytest.mark.parametrize(
        "text", ["", "null", "data: 3", "data: {nome: files}", "data: {name: 3}", "a: [", "data: []"]
    )
    def test_config_yaml_for_evaluate(self, run_dir, refused, text):
        (run_dir / "config.yaml").write_text(text)
        assert "config.yaml" in refused(evaluate.main, run_dir)

    @pytest.mark.parametrize(
        "text",
        ["", "null\n", "[]\n", "3\n{}\n", "{}\n", "\0\n\0\n", '{"step": "a"}\n', "[" * 100_000 + "\n{}\n"],
        ids=lambda text: repr(text)[:20],
    )
    def test_metrics_for_plot(self, run_dir, refused, text):
        (run_dir / "metrics.jsonl").write_text(text)
        refused(plot.main, run_dir)


def test_skipped_steps_at_the_end_leave_the_healthy_checkpoint(workplace, tmp_path, program):
    """The weights explode at once; the run ends before it has skipped too many steps to go on."""
    flags = ("--train.learning_rate=1e30", "--train.checkpoint_every=4", "--train.max_skipped_steps=50")
    run_dir = tmp_path / "run"
    code, out, err = program(training_script.main, "--config", workplace / "tiny.yaml", "--run_dir", run_dir, *flags)
    assert code == 0, err
    skipped = sum("offsets" in line for line in metrics(run_dir))
    assert 8 <= skipped <= 11
    assert f"no checkpoint of step 12, because the last {skipped} step(s) were skipped\n" in out
    assert [path.name for path in checkpoints(run_dir)] == ["step-00000000"]
    assert not (run_dir / "model").exists()  # no validation was finite
