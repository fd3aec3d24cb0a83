"""train.py and evaluate.py as users run them: real processes on a small corpus."""

import json
import re
import subprocess
from dataclasses import fields
from math import log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

import train as training_script
from data import DataConfig, open_corpus
from model import HierarchicalTransformer
from tests.conftest import ROOT
from tests.runs import losses, metrics
from training.config import SECTIONS


def test_a_run_learns_and_leaves_everything_in_its_directory(whole):
    curve = losses(whole)
    assert len(curve) == 12 and curve[-1] < curve[0] - 0.5
    for last, line in zip([0, 3, 6, 9], metrics(whole)[2::3], strict=True):  # speed is that of the steps themselves
        steps = metrics(whole)[last : last + 3]
        longest = steps[-1]["seconds"] - (metrics(whole)[last - 1]["seconds"] if last else 0)
        assert 3 * 128 / (longest + 0.002) < line["speed/bytes_per_second"]
    scores = [line["validation/bits_per_byte"] for line in metrics(whole) if "validation/bits_per_byte" in line]
    assert len(scores) == 2 and scores[1] < scores[0]
    assert [p.name for p in sorted((whole / "checkpoints").iterdir())] == [f"step-{n:08d}" for n in (0, 5, 10, 12)]
    assert "│" in (whole / "samples" / "step-00000012.txt").read_text()
    settings = yaml.safe_load((whole / "config.yaml").read_text())
    assert settings["model"]["dim"] == [16, 24] and settings["train"]["weight_decay"] == 0.1
    assert {p.name for p in (whole / "model").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "training.json",
    }
    best = json.loads((whole / "model" / "training.json").read_text())
    assert best["step"] == 12 and best["validation_bits_per_byte"] == scores[1]
    assert (whole / "config.yaml").read_text().startswith(f"# code version {best['code_version']}\n")


def test_it_prints_what_will_run_how_it_ended_and_what_to_type_next(whole):
    said = (whole / "printed.txt").read_text()
    for expected in ("cpu, 1 process", "float32", "level 4x", "FLOPs to train on a byte", "valid 1,"):
        assert expected in said
    best = min(line["validation/bits_per_byte"] for line in metrics(whole) if "validation/bits_per_byte" in line)
    assert f"best        {best:.4f} bits per byte of the validation split, at step 12\n" in said
    assert "trained     12 of 12 steps, 1,536 bytes\n" in said and f"model       {whole / 'model'}\n" in said
    assert f"python generate.py {whole}" in said and f"python evaluate.py {whole}" in said


@pytest.mark.parametrize("stride", [32, 7])
def test_evaluate_scores_every_byte_once(whole, workplace, command, stride):
    done = command("evaluate.py", whole, "--split", "test", "--stride", stride)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    settings = yaml.safe_load((whole / "config.yaml").read_text())
    data = torch.from_numpy(open_corpus(DataConfig(**settings["data"]))["test"].astype(np.int64))
    assert result["bytes"] == len(data)

    model = HierarchicalTransformer.from_pretrained(whole / "model")
    nats, scored = log(256), 1
    with torch.no_grad():
        for start in range(0, len(data), stride):  # byte after byte, each from the window that first reaches it
            start = min(start, len(data) - 33)
            nll = F.cross_entropy(
                model(data[None, start : start + 32])[0], data[start + 1 : start + 33], reduction="none"
            )
            new = start + 33 - scored
            nats += nll[32 - new :].double().sum().item() if new else 0
            scored += new
    assert scored == len(data)
    assert result["bits_per_byte"] == pytest.approx(nats / log(2) / len(data), abs=2e-5)


def test_a_tilde_is_the_home_folder_in_every_path(whole, workplace, train, command):
    home = {"HOME": str(workplace)}
    run_dir, done = train("at-home", "--run_dir=~/at-home", "--train.max_steps=1", **home)
    assert done.returncode == 0 and (run_dir / "config.yaml").is_file(), done.stderr
    _, done = train("at-home", "--run_dir=~/at-home", "--resume", "--train.max_steps=2", **home)
    assert done.returncode == 0 and len(losses(run_dir)) == 2, done.stderr
    assert command("generate.py", "~/whole", "--prompt=a", "--length=1", **home).returncode == 0
    assert command("generate.py", "~/whole", "--score=~/tiny.yaml", **home).returncode == 0
    assert command("evaluate.py", "~/whole", "--file=~/tiny.yaml", **home).returncode == 0
    assert command("plot.py", "~/whole", "--output=~/tilde.png", **home).returncode == 0
    assert (workplace / "tilde.png").is_file() and not (ROOT / "~").exists()


def test_a_sample_continues_the_first_whole_line_or_the_only_one():
    assert training_script.first_line(b"half a line\na whole line\n") == b"a whole line\n"
    assert training_script.first_line(b"one line\n") == b"one line\n"
    assert training_script.first_line(b"no end") == b"no end"
    assert len(training_script.first_line(b"x" * 100)) == 64


class TestWrongInput:
    """One line on stderr that names the field, the value and what is allowed; exit code 2; nothing written."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--model.seq_len=4096"], "data.path: the valid split"),
            (["--data.path=nowhere.txt"], "data.path: got nowhere.txt, allowed: a file, folder or glob that exists"),
            (["--data.name=enwik8"], "text.txt is not enwik8: got"),
            (["--data.name=enwik8", "--data.head=true"], "does not begin as enwik8 does"),
            (["--run_dir=/dev/null"], "run_dir: got /dev/null, allowed: a folder that can be written"),
            (["--resume"], "holds no run to resume"),
            (["--train.trackers=[abacus]"], "train.trackers: got [abacus], allowed: any of wandb, trackio"),
        ],
        ids=lambda value: None if isinstance(value, str) else " ".join(value),
    )
    def test_of_train(self, workplace, train, arguments, message):
        if "--resume" in arguments:
            arguments = ["--config", str(workplace / "tiny.yaml"), *arguments]
        run_dir, done = train("wrong", *arguments)
        self.is_one_line(done, message)
        assert not run_dir.exists()

    def test_of_a_run_directory_that_is_taken(self, whole, train):
        before = (whole / "metrics.jsonl").read_bytes()
        _, done = train("whole")
        self.is_one_line(done, "already holds a run: continue it with --resume, or choose another --run_dir")
        _, done = train("whole", "--resume", "--model.depth=2", "--train.seed=7")
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert f"model.depth: got 2, allowed: 1, as in {whole / 'config.yaml'}" in done.stderr
        assert f"train.seed: got 7, allowed: 0, as in {whole / 'config.yaml'}" in done.stderr
        assert (whole / "metrics.jsonl").read_bytes() == before

    def test_of_evaluate(self, whole, command, tmp_path):
        self.is_one_line(command("evaluate.py", tmp_path), "is no run directory with a trained model")
        self.is_one_line(command("evaluate.py", whole, "--stride", "33"), "stride: got 33, allowed: 1 to context = 32")
        self.is_one_line(command("evaluate.py", whole, "--split", "nine"), "split")

    @staticmethod
    def is_one_line(done: subprocess.CompletedProcess, message: str):
        assert done.returncode == 2, done.stdout + done.stderr
        lines = [line for line in done.stderr.splitlines() if line]
        assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], done.stderr


def test_help_explains_every_setting_with_its_default(command):
    done = command("train.py", "--help", COLUMNS="500")
    assert done.returncode == 0
    said = {text.split()[0]: " ".join(text.split()[1:]) for text in done.stdout.split("\n  --")}
    for section, kind in SECTIONS.items():
        for setting in fields(kind):
            assert re.search(r"[a-z]{3}.* default: ", said[f"{section}.{setting.name}"]), setting.name
    assert "default: null" in said["run_dir"] and "default: false" in said["resume"]
