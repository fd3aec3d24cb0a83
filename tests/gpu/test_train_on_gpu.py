"""Training runs on a CUDA GPU, and evaluation and generation from them. Skipped without a GPU."""

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
LOOKUPS = [
    "--model.ngrams=[2,3]",
    "--model.matches=[3,5]",
    "--model.word_matches=[0,1]",
    "--model.matches_per_context=2",
]
FLOAT32 = "--train.mixed_precision=no"


@pytest.fixture(scope="module")
def run(workplace):
    """Train for twelve steps with windows and lookups.

    run(name, *options, **environment) returns the run directory and the finished process.
    """

    def start(name, *options, launcher=(sys.executable,), **environment):
        settings = ("--config", workplace / "tiny.yaml", *WINDOWED, *LOOKUPS)
        if "--resume" in options:
            settings = ()  # a resumed run reads its settings from the run directory
        line = [*launcher, ROOT / "train.py", "--run_dir", workplace / name, *settings, *options]
        done = subprocess.run(
            [str(word) for word in line], capture_output=True, text=True, cwd=ROOT, env=os.environ | environment
        )
        assert done.returncode == 0, done.stderr
        return workplace / name, done

    return start


@pytest.fixture(scope="module")
def float32_run(run):
    """The directory of a run in float32 on the GPU, to compare others with."""
    run_dir, _ = run("gpu-float32", FLOAT32)
    return run_dir


def test_training_on_gpu_matches_training_on_cpu(run, float32_run):
    cpu_run, done = run("cpu-float32", FLOAT32, ACCELERATE_USE_CPU="true")
    assert "device      cpu" in done.stdout
    np.testing.assert_allclose(losses(float32_run), losses(cpu_run), atol=1e-3)

    last, last_on_cpu = metrics(float32_run)[-1], metrics(cpu_run)[-1]
    assert last["validation/bits_per_byte"] == pytest.approx(last_on_cpu["validation/bits_per_byte"], abs=1e-2)
    assert last["speed/peak_memory_gib"] > 0
    assert last["speed/mfu"] > 0


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (["--train.mixed_precision=auto"], 0.05),
        (["--train.mixed_precision=fp16"], 0.05),
        ([FLOAT32, "--train.tf32=true"], 0.02),
        ([FLOAT32, "--train.compile=true"], 1e-3),
        (["--train.mixed_precision=bf16", "--train.compile=true"], 0.05),
        ([FLOAT32, "--train.activation_checkpointing=true"], 1e-3),
        ([FLOAT32, "--train.compile=true", "--train.activation_checkpointing=true"], 1e-3),
    ],
    ids=lambda options: " ".join(options) if isinstance(options, list) else "",
)
def test_precision_compilation_and_checkpointing_hardly_change_losses(run, float32_run, options, tolerance):
    name = "gpu-" + "-".join(option.split(".")[-1] for option in options)
    run_dir, done = run(name, *options)

    setting = options[0].split("=")[1]
    precision = {"no": "float32", "auto": "bf16"}.get(setting, setting)
    assert "device      cuda" in done.stdout
    assert f"precision   {precision}" in done.stdout
    assert "recompile_limit" not in done.stderr
    np.testing.assert_allclose(losses(run_dir), losses(float32_run), atol=tolerance)


def test_muon_lowers_the_loss(run):
    run_dir, _ = run("gpu-muon", "--train.optimizer=muon")
    assert losses(run_dir)[-1] < losses(run_dir)[0] - 1


@pytest.mark.parametrize(
    ("name", "option", "precision"),
    [("single_gpu", "auto", "bf16"), ("ddp", "auto", "bf16"), ("fsdp2", "auto", "bf16"), ("fsdp2", "fp16", "fp16")],
)
def test_launch_configs_train_on_one_gpu(run, float32_run, name, option, precision):
    config = ROOT / "configs" / "accelerate" / f"{name}.yaml"
    launcher = (*LAUNCH, "--config_file", str(config), "--num_processes", "1", "--main_process_port", "0")
    run_dir, done = run(f"gpu-by-{name}-{option}", f"--train.mixed_precision={option}", launcher=launcher)
    assert f"precision   {precision}" in done.stdout
    np.testing.assert_allclose(losses(run_dir), losses(float32_run), atol=0.05)
    assert (run_dir / "model" / "model.safetensors").is_file()


def test_a_stopped_run_resumes(run, float32_run, workplace):
    stopped = workplace / "gpu-resumed"
    shutil.copytree(float32_run, stopped)

    # stop after step 10: without the last checkpoint and the last lines of metrics
    shutil.rmtree(checkpoints(stopped)[-1])
    lines = (stopped / "metrics.jsonl").read_text().splitlines(keepends=True)
    (stopped / "metrics.jsonl").write_text("".join(lines[:10]))

    _, done = run("gpu-resumed", "--resume")
    assert "step-00000010" in done.stdout
    np.testing.assert_allclose(losses(stopped), losses(float32_run), atol=1e-4)  # sums on a GPU are not deterministic


def test_a_trained_model_can_be_scored_coded_and_sampled(float32_run, command):
    visible = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}

    # scores
    scores = {}
    for device in ("cuda", "cpu"):
        done = command("evaluate.py", float32_run, "--split", "test", "--device", device, **visible)
        assert done.returncode == 0, done.stderr
        scores[device] = json.loads(done.stdout.splitlines()[-1])["bits_per_byte"]
    assert scores["cuda"] == pytest.approx(scores["cpu"], abs=1e-4)

    # entropy coding
    done = command("evaluate.py", float32_run, "--verify", "--limit", "2000", **visible)
    assert done.returncode == 0, done.stderr
    assert '"verified": true' in done.stdout

    # samples
    done = command(
        "generate.py", float32_run, "--prompt", "12 times ", "--length", "40", "--temperature", "0", **visible
    )
    assert done.returncode == 0, done.stderr
    assert "12 times " in done.stdout
