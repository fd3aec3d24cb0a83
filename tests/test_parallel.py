"""The same results however a run is distributed: processes, accumulation, sharding, compilation, recomputation."""

import json
import shutil

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from tests.conftest import ROOT
from tests.runs import LAUNCH, LAUNCH_TWO, checkpoints, losses, metrics, weights

ONE = {"launcher": ()}
TWO = {"launcher": LAUNCH_TWO, "ACCELERATE_USE_CPU": "true"}
WAYS = {  # processes x sequences a process x accumulation: always 8 sequences a step
    "1x8x1": (ONE, "--train.batch_size=8"),
    "2x4x1": (TWO, "--train.batch_size=4"),
    "1x2x4": (ONE, "--train.batch_size=2", "--train.gradient_accumulation_steps=4"),
    "2x2x2": (TWO, "--train.batch_size=2", "--train.gradient_accumulation_steps=2"),
}
ALL_LOSSES = ("recon", "prophet", "next_latent", "quantizer")
MUON = ("--train.optimizer=muon", "--train.muon_precision=no")  # with AdamW for what is no hidden matrix


def test_processes_and_accumulation_change_only_rounding(train):
    options = [f"--model.{name}_loss_weight=0.1" for name in ALL_LOSSES] + ["--model.ngrams=[2,3]"]
    tolerance = 1e-4
    runs = {}
    for name, (how, *pieces) in WAYS.items():
        run_dir, done = train(name, *MUON, *options, *pieces, **how)
        assert done.returncode == 0, done.stderr
        assert f"{name[0]} process(es)" in done.stdout and "8 × 32 bytes" in done.stdout
        runs[name] = run_dir
    first = runs.pop("1x8x1")
    for other in runs.values():
        for one, same in zip(metrics(first), metrics(other), strict=True):
            for key in ("loss", "bits_per_byte", "reconstruction", "prophet", "next_latent", "quantizer"):
                key = f"train/{key}"
                assert same[key] == pytest.approx(one[key], abs=tolerance), (other.name, one["step"], key)
            for key in ("train/gradient_norm", "levels/activation/1x", "levels/activation/4x"):
                assert same[key] == pytest.approx(one[key], rel=1000 * tolerance), (other.name, one["step"], key)
        for name, tensor in weights(first).items():
            torch.testing.assert_close(weights(other)[name], tensor, atol=10 * tolerance, rtol=100 * tolerance)
        last = [metrics(run)[-1]["validation/bits_per_byte"] for run in (first, other)]
        assert last[1] == pytest.approx(last[0], abs=10 * tolerance)
        samples = [(run / "samples" / "step-00000012.txt").read_text() for run in (first, other)]
        assert samples[0][:60] == samples[1][:60]


def test_a_resume_on_another_number_of_processes_continues_with_the_same_batches(whole, train):
    """To step 6 on two processes, and from there to the end on one."""
    other, done = train("moved", "--train.batch_size=2", "--train.checkpoint_every=6", **TWO)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(checkpoints(other)[-1])
    lines = (other / "metrics.jsonl").read_text().splitlines(keepends=True)
    (other / "metrics.jsonl").write_text("".join(lines[:6]))
    _, done = train("moved", "--resume", "--train.batch_size=2", **ONE)
    assert done.returncode == 2 and "with 4 sequences per step" in done.stderr
    assert "this run has 2: change train.batch_size or train.gradient_accumulation_steps" in done.stderr
    _, done = train("moved", "--resume", "--train.batch_size=4", **ONE)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout and "step-00000006" in done.stdout
    np.testing.assert_allclose(losses(other), losses(whole), atol=1e-5)


def test_activation_checkpointing_changes_no_bit(train):
    runs = []
    for flag in ("false", "true"):
        run_dir, done = train(f"recomputed-{flag}", f"--train.activation_checkpointing={flag}", "--model.dropout=0.1")
        assert done.returncode == 0, done.stderr
        runs.append(run_dir)
    assert losses(runs[0]) == losses(runs[1])
    assert all(torch.equal(weights(runs[0])[name], weights(runs[1])[name]) for name in weights(runs[0]))


def test_fsdp2_trains_saves_resumes_and_evaluates(train, command):
    """Two sharded processes end as one process does. Their best model is saved unsharded."""
    options = (*MUON, "--train.checkpoint_every=6", "--model.next_latent_loss_weight=0.1")
    options += ("--model.ngrams=[2]", "--model.matches=[3]")
    one, done = train("unsharded", *options)
    assert done.returncode == 0, done.stderr
    sharded = TWO | {"ACCELERATE_USE_FSDP": "true"}
    run_dir, done = train("sharded", "--train.batch_size=2", *options, **sharded)
    assert done.returncode == 0, done.stderr
    assert (checkpoints(run_dir)[-1] / "pytorch_model_fsdp_0" / "__1_0.distcp").is_file()
    tolerance = 1e-4
    np.testing.assert_allclose(losses(run_dir), losses(one), atol=tolerance)
    last = metrics(one)[-1], metrics(run_dir)[-1]
    for key in ("validation/bits_per_byte", "train/gradient_norm", "train/update_ratio"):
        assert last[0][key] == pytest.approx(last[1][key], rel=100 * tolerance)

    scores = [command("evaluate.py", run, "--split", "test").stdout.splitlines()[-1] for run in (one, run_dir)]
    one_score, sharded_score = (json.loads(score)["bits_per_byte"] for score in scores)
    assert one_score == pytest.approx(sharded_score, abs=10 * tolerance)

    through = losses(run_dir)
    shutil.rmtree(checkpoints(run_dir)[-1])
    (run_dir / "metrics.jsonl").unlink()
    _, done = train("sharded", "--resume", **sharded)
    assert done.returncode == 0 and "step-00000006" in done.stdout, done.stderr
    assert [line["train/loss"] for line in metrics(run_dir)] == through[6:]

    _, done = train("sharded", "--resume", "--train.batch_size=4")
    assert done.returncode == 2 and "was written with FSDP, this run is without FSDP" in done.stderr


def test_compiled_blocks_train_the_same_and_compile_once(whole, train):
    run_dir, done = train(
        "compiled", "--train.compile=true", "--train.sample_every=4", TORCH_LOGS="recompiles,graph_code"
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(run_dir), losses(whole), atol=1e-4)
    # two levels and their merge, for training, validation and samples; and what checks the compiler before
    assert done.stderr.count("TRACED GRAPH") == 4
    assert metrics(run_dir)[-1]["validation/bits_per_byte"] == pytest.approx(
        metrics(whole)[-1]["validation/bits_per_byte"], abs=1e-3
    )
    assert weights(run_dir).keys() == weights(whole).keys()


def test_the_launch_configs_start_the_processes_they_promise(train, workplace):
    """The configs for CPUs and for sharding run here; the others are only parsed, as `accelerate launch` does."""
    folder = ROOT / "configs" / "accelerate"
    for name, options in {"cpu": (), "fsdp2": ("--num_processes", "2", "--mixed_precision", "no")}.items():
        launcher = (*LAUNCH, "--config_file", str(folder / f"{name}.yaml"), "--main_process_port", "0", *options)
        run_dir, done = train(f"by-{name}", "--train.max_steps=2", launcher=launcher, ACCELERATE_USE_CPU="true")
        assert done.returncode == 0, done.stderr
        assert "2 process(es)" in done.stdout
        assert (checkpoints(run_dir)[-1] / "pytorch_model_fsdp_0").is_dir() == (name == "fsdp2")
    kinds = {path.stem: load_config_from_file(str(path)).distributed_type for path in folder.glob("*.yaml")}
    assert kinds == {
        "cpu": "MULTI_GPU",
        "ddp": "MULTI_GPU",
        "fsdp2": "FSDP",
        "multi_node": "MULTI_GPU",
        "single_gpu": "NO",
    }


def test_accelerate_s_own_flag_compiles_the_blocks(train):
    launcher = (*LAUNCH, "--dynamo_backend", "inductor")
    _, done = train("dynamo", "--train.max_steps=1", launcher=launcher, TORCH_LOGS="graph_code")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("TRACED GRAPH") == 4


def test_flex_attention_without_a_gpu_is_refused(train):
    _, done = train("flexible", "--model.attention=flex", "--model.dim_head=16")
    assert done.returncode == 2
    message = "error: model.attention: got flex, allowed: any other backend on a device of type cpu"
    assert done.stderr.splitlines()[-1] == message


def test_fp16_without_a_gpu_is_refused(train):
    _, done = train("halves", "--train.mixed_precision=fp16")
    assert (
        done.returncode == 2
        and "train.mixed_precision: got fp16, allowed: no or bf16 on a device of type cpu" in done.stderr
    )
