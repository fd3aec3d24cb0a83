"""Runs of train.py on a CUDA GPU, and what is done with them. Skipped where there is none."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.runs import LAUNCH, checkpoints, losses, metrics

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
WINDOWED = ["--model.dim=[32,48]", "--model.seq_len=256", "--model.dim_head=16", "--model.window_sizes=[24,40]"]
LOOKUPS = ["--model.ngrams=[2,3]", "--model.matches=[3,5]", "--model.word_matches=[0,1]", "--model.match_places=2"]
EXACT = "--train.mixed_precision=no"


@pytest.fixture(scope="module")
def run(workplace):
    """A run of twelve steps with windows and lookups: run(name, *options, **environment) -> its directory, and it."""

    def go(name, *options, launcher=(sys.executable,), **environment):
        settings = () if "--resume" in options else ("--config", workplace / "tiny.yaml", *WINDOWED, *LOOKUPS)
        line = [*launcher, ROOT / "train.py", "--run_dir", workplace / name, *settings, *options]
        done = subprocess.run(
            [str(word) for word in line], capture_output=True, text=True, cwd=ROOT, env=os.environ | environment
        )
        assert done.returncode == 0, done.stderr
        return workplace / name, done

    return go


@pytest.fixture(scope="module")
def exact(run):
    """In float32 on the GPU."""
    return run("gpu-exact", EXACT)[0]


def test_a_gpu_learns_what_a_cpu_does(run, exact):
    cpu, done = run("gpu-not", EXACT, ACCELERATE_USE_CPU="true")
    assert "device      cpu" in done.stdout
    np.testing.assert_allclose(losses(exact), losses(cpu), atol=1e-3)
    one, other = metrics(exact)[-1], metrics(cpu)[-1]
    assert one["validation/bits_per_byte"] == pytest.approx(other["validation/bits_per_byte"], abs=1e-2)
    assert one["speed/peak_memory_gib"] > 0 and one["speed/mfu"] > 0


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (["--train.mixed_precision=auto"], 0.05),
        (["--train.mixed_precision=fp16"], 0.05),
        ([EXACT, "--train.tf32=true"], 0.02),
        ([EXACT, "--train.compile=true"], 1e-3),
        (["--train.mixed_precision=bf16", "--train.compile=true"], 0.05),
        ([EXACT, "--train.activation_checkpointing=true"], 1e-3),
        ([EXACT, "--train.compile=true", "--train.activation_checkpointing=true"], 1e-3),
    ],
    ids=lambda options: " ".join(options) if isinstance(options, list) else "",
)
def test_every_way_to_train_learns_the_same(run, exact, options, tolerance):
    run_dir, done = run("gpu-" + "-".join(option.split(".")[-1] for option in options), *options)
    precision = {"no": "float32", "auto": "bf16"}.get(given := options[0].split("=")[1], given)
    assert "device      cuda" in done.stdout and f"precision   {precision}" in done.stdout
    assert "recompile_limit" not in done.stderr
    np.testing.assert_allclose(losses(run_dir), losses(exact), atol=tolerance)


def test_muon_learns(run, exact):
    run_dir, _ = run("gpu-muon", "--train.optimizer=muon")
    assert losses(run_dir)[-1] < losses(run_dir)[0] - 1


@pytest.mark.parametrize("name", ["single_gpu", "ddp", "fsdp2"])
def test_the_launch_configs_train_on_one_gpu(run, exact, name):
    config = ROOT / "configs" / "accelerate" / f"{name}.yaml"
    launcher = (*LAUNCH, "--config_file", str(config), "--num_processes", "1", "--main_process_port", "0")
    run_dir, done = run(f"gpu-by-{name}", "--train.mixed_precision=auto", launcher=launcher)
    assert "precision   bf16" in done.stdout
    np.testing.assert_allclose(losses(run_dir), losses(exact), atol=0.05)
    assert (run_dir / "model" / "model.safetensors").is_file()


def test_a_run_goes_on_where_it_stopped(run, exact, workplace):
    stopped = workplace / "gpu-resumed"
    shutil.copytree(exact, stopped)
    shutil.rmtree(checkpoints(stopped)[-1])
    lines = (stopped / "metrics.jsonl").read_text().splitlines(keepends=True)
    (stopped / "metrics.jsonl").write_text("".join(lines[:10]))
    _, done = run("gpu-resumed", "--resume")
    assert "step-00000010" in done.stdout
    np.testing.assert_allclose(losses(stopped), losses(exact), atol=1e-4)  # a GPU's sums differ from run to run


def test_what_was_trained_is_scored_coded_and_sampled(exact, command):
    visible, scores = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}, {}
    for device in ("cuda", "cpu"):
        done = command("evaluate.py", exact, "--split", "test", "--device", device, **visible)
        assert done.returncode == 0, done.stderr
        scores[device] = json.loads(done.stdout.splitlines()[-1])["bits_per_byte"]
    assert scores["cuda"] == pytest.approx(scores["cpu"], abs=1e-4)
    done = command("evaluate.py", exact, "--verify", "--limit", "2000", **visible)
    assert done.returncode == 0 and '"verified": true' in done.stdout, done.stderr
    done = command("generate.py", exact, "--prompt", "12 times ", "--length", "40", "--temperature", "0", **visible)
    assert done.returncode == 0 and "12 times " in done.stdout, done.stderr
