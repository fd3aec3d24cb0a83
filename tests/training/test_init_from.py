"""A run that begins from trained weights: whose they are, which settings come with them, and what is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file

from model import HierarchicalTransformer, ModelConfig
from tests.runs import LAUNCH_TWO, checkpoints, losses, metrics, same, weights
from training.config import load_config
from training.init_from import Source, check_shapes, find_source
from utils.errors import UserError
from utils.files import sha256

MODEL = {"dim": (16, 24), "depth": 2, "seq_len": 32, "dim_head": 8, "heads": 2, "hierarchies": (1, 4)}


@pytest.fixture
def begin(workplace, train_here):
    """Begin a run: begin(name, source, …) -> its directory and the lines that it prints. It repeats no model."""
    settings = yaml.safe_load((workplace / "tiny.yaml").read_text())
    del settings["model"]
    settings["train"]["max_steps"] = 2
    (workplace / "no-model.yaml").write_text(yaml.safe_dump(settings))

    def run(name, source, *arguments):
        shutil.rmtree(workplace / name, ignore_errors=True)
        config = ("--config", str(workplace / "no-model.yaml"))
        return workplace / name, train_here(name, *config, "--init_from", str(source), *arguments)

    return run


@pytest.fixture
def source(tmp_path):
    """A saved model of MODEL."""
    HierarchicalTransformer(**MODEL).save_pretrained(tmp_path / "model")
    return Source("it", tmp_path / "model", ModelConfig(**MODEL))


def test_a_run_begins_with_the_weights_and_the_model_settings_of_another(whole, begin):
    run_dir, said = begin("init-tuned", whole)
    first = checkpoints(run_dir)[0]
    assert same(load_file(first / "model.safetensors"), load_file(whole / "model" / "model.safetensors"))
    assert torch.load(first / "optimizer.bin")["state"] == {}
    settings = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert settings["init_from"] == str(whole)
    assert settings["model"] == yaml.safe_load((whole / "config.yaml").read_text())["model"]
    record = json.loads((run_dir / "init_from.json").read_text())
    assert record["sha256"] == sha256(whole / "model" / "model.safetensors")

    # the score before the first step is that of the source, and the first step is a first one
    before, *steps = metrics(run_dir)
    best = json.loads((whole / "model" / "training.json").read_text())
    assert before == {
        "step": 0,
        "bytes": 0,
        "seconds": 0.0,
        "validation/bits_per_byte": best["validation_bits_per_byte"],
    }
    assert f"step 0: validation {best['validation_bits_per_byte']:.4f} bits per byte" in said
    assert f"weights     those of {whole / 'model'}" in said
    assert [line["step"] for line in steps] == [1, 2]
    assert steps[0]["train/learning_rate"] == metrics(whole)[0]["train/learning_rate"]


def test_the_source_stays_the_best_model_when_training_only_makes_it_worse(whole, begin):
    run_dir, said = begin("init-worse", whole, "--train.learning_rate=3", "--train.warmup_steps=0")
    assert same(load_file(run_dir / "model" / "model.safetensors"), load_file(whole / "model" / "model.safetensors"))
    assert any(line.startswith("best ") and line.endswith("at step 0") for line in said)


def test_given_settings_replace_those_of_the_source_and_are_said(whole, begin):
    given = ("--model.seq_len=48", "--model.window_sizes=[16,null]", "--model.dropout=0.1")
    run_dir, said = begin("init-longer", whole, *given)
    assert [line for line in said if line.startswith("changed ")] == [
        "changed     model.dropout: 0.0 -> 0.1",
        "changed     model.seq_len: 32 -> 48",
        "changed     model.window_sizes: [8, null] -> [16, null]",
    ]
    model = json.loads((run_dir / "model" / "config.json").read_text())
    assert (model["seq_len"], model["window_sizes"], model["dim"]) == (48, [16, None], [16, 24])


def test_a_resume_needs_the_source_no_more(whole, workplace, begin, train_here, capsys):
    shutil.copytree(whole / "model", workplace / "init-lent")
    run_dir, _ = begin("init-began", workplace / "init-lent")
    shutil.rmtree(workplace / "init-lent")
    said = train_here("init-began", "--resume", f"--init_from={workplace / 'init-lent'}", "--train.max_steps=3")
    assert not any(line.startswith(("weights ", "step 0")) for line in said)
    assert [line["step"] for line in metrics(run_dir)] == [0, 1, 2, 3]
    with pytest.raises(SystemExit):
        train_here("init-began", "--resume", f"--init_from={whole}")
    assert f"init_from: got {whole}, allowed: {workplace / 'init-lent'}, as in" in capsys.readouterr().err


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_from_the_source_again(whole, begin, train_here):
    run_dir, _ = begin("init-killed", whole)
    ended = weights(run_dir)
    for checkpoint in checkpoints(run_dir):
        shutil.rmtree(checkpoint)
    (run_dir / "metrics.jsonl").unlink()
    train_here("init-killed", "--resume")
    assert same(weights(run_dir), ended) and [line["step"] for line in metrics(run_dir)] == [0, 1, 2]


def test_two_sharded_processes_begin_with_the_same_weights(whole, workplace, train):
    sharded = {"launcher": LAUNCH_TWO, "ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true"}
    flags = (f"--init_from={whole}", "--train.max_steps=1", "--train.batch_size=2")
    run_dir, done = train("init-sharded", *flags, **sharded)
    assert done.returncode == 0, done.stderr
    score = json.loads((whole / "model" / "training.json").read_text())["validation_bits_per_byte"]
    assert metrics(run_dir)[0]["validation/bits_per_byte"] == pytest.approx(score, abs=1e-6)


class TestSource:
    def test_it_is_a_run_a_folder_or_a_repository(self, whole, tmp_path, monkeypatch):
        cache = tmp_path / "models--someone--tiny"  # as the hub library lays it out
        (cache / "refs").mkdir(parents=True)
        (cache / "refs" / "main").write_text("abc")
        shutil.copytree(whole / "model", cache / "snapshots" / "abc")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        folders = [find_source(str(name)).folder for name in (whole, whole / "model", "someone/tiny")]
        assert folders == [whole / "model", whole / "model", cache / "snapshots" / "abc"]

    def test_anything_else_is_one_line(self, whole, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").touch()
        shutil.copytree(whole, tmp_path / "young", ignore=shutil.ignore_patterns("model"))
        shutil.copytree(whole / "model", tmp_path / "model")
        for name in ("empty", "file", "nowhere"):
            with pytest.raises(
                UserError, match=f"init_from: got {tmp_path / name}, allowed: a run directory, a folder"
            ):
                find_source(str(tmp_path / name))
        with pytest.raises(UserError, match="init_from: got nobody/nothing, allowed: a run directory, a folder"):
            find_source("nobody/nothing")
        with pytest.raises(UserError, match="young has no model yet"):
            find_source(str(tmp_path / "young"))
        for config in ("", "[]", "null", '{"dim": "wide"}', '{"colour": 1}', "{", "[" * 100_000):
            (tmp_path / "model" / "config.json").write_text(config)
            with pytest.raises(UserError, match=r"config\.json is no config of a model here"):
                find_source(str(tmp_path / "model"))

    def test_a_depth_that_cannot_be_that_of_the_weights_is_refused_at_once(self, source):
        config = ModelConfig(**(MODEL | {"depth": 5_000}))
        for pair in ((source, config), (replace(source, config=config), ModelConfig(**MODEL))):
            with pytest.raises(UserError, match=r"model.depth: got 5000, allowed: at most \d+, as there are no more"):
                check_shapes(*pair)

    def test_damaged_weights_are_one_line(self, source):
        file = source.folder / "model.safetensors"
        content = file.read_bytes()
        for damaged in (b"", content[: len(content) // 2], b"\xff" * 64):
            file.write_bytes(damaged)
            with pytest.raises(UserError, match=r"model.safetensors cannot be read"):
                check_shapes(source, source.config)


class TestShapes:
    @pytest.mark.parametrize(
        ("change", "blamed"),
        [
            ({"dim": (16, 32)}, ["model.dim: got [16, 32], allowed: [16, 24], as in FOLDER"]),
            ({"depth": 3, "seq_len": 64}, ["model.depth: got 3, allowed: 2, as in FOLDER"]),
            (
                {"window_sizes": (0, None), "dropout": 0.5},
                ["model.window_sizes: got [0, null], allowed: null, as in FOLDER"],
            ),
            ({"ngrams": (2,), "heads": 4}, ["model.ngrams: got [2], ", "model.heads: got 4, allowed: 2"]),
            ({"hierarchies": (1, 2, 4), "dim": 16}, ["model.hierarchies: got [1, 2, 4], ", "model.dim: got 16, "]),
            ({"recon_loss_weight": 0.1}, ["model.recon_loss_weight: got 0.1, allowed: 0.0"]),
        ],
        ids=str,
    )
    def test_the_settings_that_give_another_shape_are_named(self, source, change, blamed):
        with pytest.raises(UserError) as error:
            check_shapes(source, ModelConfig(**MODEL | change))
        lines = sorted(map(str, error.value.mistakes))
        assert len(lines) == len(blamed)
        for line, beginning in zip(lines, sorted(blamed), strict=True):
            assert line.startswith(beginning.replace("FOLDER", str(source.folder)))

    @pytest.mark.parametrize(
        "change", [{"seq_len": 64}, {"window_sizes": (4, 2)}, {"dropout": 0.5}, {"attention": "plain"}]
    )
    def test_other_settings_fit(self, source, change):
        check_shapes(source, ModelConfig(**MODEL | change))

    def test_weights_that_do_not_fit_their_own_config_are_named(self, source):
        config = json.loads((source.folder / "config.json").read_text())
        HierarchicalTransformer(**config | {"dim": [16, 32]}).save_pretrained(source.folder)
        with pytest.raises(UserError, match=r"do not fit: levels\.1\..* is \(.*\) instead of \(.*; \d+ more differ"):
            check_shapes(source, source.config)


class TestCommandLine:
    def test_another_mistake_makes_no_false_ones(self, whole, capsys):
        fits_the_source_alone = "--model.window_sizes=[16,null]"
        with pytest.raises(SystemExit):
            load_config([f"--init_from={whole}", fits_the_source_alone, "--train.max_stepz=3"])
        assert capsys.readouterr().err.splitlines() == [
            "error: train.max_stepz: no such setting; the nearest is train.max_steps"
        ]

    def test_a_config_file_replaces_the_source_and_may_name_it(self, whole, tmp_path):
        (tmp_path / "mine.yaml").write_text(f"init_from: {whole}\nmodel: {{dropout: 0.2, seq_len: 40}}")
        config = load_config(["--config", str(tmp_path / "mine.yaml"), "--model.seq_len=48"])
        assert (config.model.dropout, config.model.seq_len, config.model.dim) == (0.2, 48, (16, 24))

    def test_a_printed_config_has_the_model_of_the_source(self, whole, capsys):
        with pytest.raises(SystemExit):
            load_config([f"--init_from={whole}", "--print_config"])
        assert yaml.safe_load(capsys.readouterr().out)["model"]["dim"] == [16, 24]

    def test_it_trains_as_from_random_weights_without_it(self, whole, workplace, train_here):
        train_here("init-none")
        assert losses(workplace / "init-none") == losses(whole)
        assert not (workplace / "init-none" / "init_from.json").exists()
