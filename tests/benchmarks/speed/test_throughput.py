"""The throughput benchmark: contenders are causal and learn, FLOPs match those on paper, and sections run."""

from dataclasses import replace

import pytest
import torch

from benchmarks import contenders
from benchmarks.flops import count_flops, flops_by_module
from benchmarks.quality.causality_check import add_noise_to_weights
from benchmarks.speed import model_sections
from benchmarks.speed.memory import step_memory
from benchmarks.speed.model_sections import (
    FLAT,
    compare_with_reference,
    flops_by_part,
    measure_optimizers,
    two_levels_of_size,
)
from benchmarks.speed.options import Options
from benchmarks.speed.training_steps import Entry, print_speeds, time_training_steps

TINY = {"num_tokens": 256, "dim": 32, "depth": 2, "dim_head": 16, "heads": 2, "seq_len": 32}
LEVELS = {"hierarchies": (1, 2), "hierarchical_stride": 1, "window_sizes": (8, 16)}
OPTIONS = Options(
    device="cpu",
    threads=1,
    rounds=1,
    precisions=["float32", "bf16"],
    batch=1,
    large=False,
    compile=False,
    quick=True,
)


def build(name: str) -> contenders.Contender:
    if name == "ours":
        contender = contenders.ours(**TINY, **LEVELS)
    elif name == "reference":
        contender = contenders.reference(**TINY, **LEVELS)
    else:
        contender = contenders.decoder(**TINY)
    if contender is None:
        pytest.skip("installed by benchmarks/requirements.txt")
    return contender


@pytest.mark.parametrize("name", ["ours", "reference", "decoder"])
def test_contenders_are_causal_and_learn(name):
    torch.manual_seed(0)
    contender = add_noise_to_weights(build(name))
    ids = contenders.random_ids(2, 32, "cpu")

    # Logits before byte 20 do not depend on bytes from there on; the later ones do.
    with torch.no_grad():
        changed = ids.clone()
        changed[:, 20:] = 1 + changed[:, 20:] % 255
        before, after = contender(ids[:, :32]), contender(changed[:, :32])
    assert before.shape == (2, 32, 256)
    torch.testing.assert_close(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20:], after[:, 20:])

    for bf16 in (False, True):
        step = contenders.training_step(contender, ids, bf16)
        loss = contender.loss(ids)
        assert loss.shape == ()
        for _ in range(20):
            step()
        assert contender.loss(ids) < loss


@pytest.mark.parametrize("window", [None, 8])
def test_flops_match_those_on_paper(window):
    dim, n = 32, 64  # n is a multiple of the window, so that no padding counts
    contender = contenders.ours(**TINY | {"window_sizes": window, "seq_len": n})
    weights_per_layer = 4 * dim**2 + 2 * 4 * dim**2  # attention and feed-forward
    pairs = sum(min(i + 1, window or n) for i in range(n)) / n
    forward = 2 * (2 * (weights_per_layer + 2 * dim * pairs) + 256 * dim)
    assert count_flops(contender, n) == pytest.approx(3 * forward)
    parts = flops_by_part(flops_by_module(contender, n))
    assert sum(parts.values()) == pytest.approx(3 * forward)
    assert parts["logits"] == pytest.approx(3 * 2 * 256 * dim)


def test_every_module_with_flops_belongs_to_a_part():
    config = TINY | {"hierarchies": (1, 4), "recon_loss_weight": 0.1}
    contender = contenders.ours(**config)
    parts = flops_by_part(flops_by_module(contender, 32))
    assert {"level 1: compress", "level 0: attention", "merges", "loss: reconstruction", "logits"} <= parts.keys()
    assert all(flops > 0 for flops in parts.values())
    assert sum(parts.values()) == pytest.approx(count_flops(contender, 32))


def test_two_levels_have_as_many_parameters_as_one():
    parameters = contenders.count_parameters(contenders.ours(**FLAT))
    config = two_levels_of_size(parameters, depth=FLAT["depth"], window_sizes=(64, None))
    assert contenders.count_parameters(contenders.ours(**config)) == pytest.approx(parameters, rel=0.03)


def test_sections_run(monkeypatch, capsys):
    monkeypatch.setattr(model_sections, "STEP", TINY | LEVELS)
    results = compare_with_reference(OPTIONS)
    assert set(results) >= {"ours, float32", "ours, bf16"}
    assert all(result["bytes_per_second"] > 0 and result["share_of_peak"] > 0 for result in results.values())
    assert "share of peak" in capsys.readouterr().out


def test_the_optimizer_section_times_the_parts_of_a_preset_s_step(capsys):
    results = measure_optimizers(OPTIONS)
    assert set(results) == {"quickstart"} and set(results["quickstart"]) == {"float32", "bf16"}
    for seconds in results["quickstart"].values():
        assert 0 < seconds["orthogonalisation"] < seconds["optimizer"] < seconds["step"]
        assert 0 < seconds["floor"] < seconds["step"]
    output = capsys.readouterr().out
    assert "share of peak" in output and "share of optimizer" in output


def test_a_missing_package_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(contenders, "reference", lambda **config: contenders.report_missing("it"))
    monkeypatch.setattr(model_sections, "STEP", TINY | LEVELS)
    results = compare_with_reference(OPTIONS)
    assert set(results) == {"ours, float32", "ours, bf16"}
    assert results["ours, bf16"]["ratio"] is None
    assert "it is not installed" in capsys.readouterr().out


def test_each_precision_is_timed_alone(capsys):
    """A table without a baseline, in one precision."""
    entries = {"ours": Entry(contenders.ours(**TINY), 1, 32)}
    results = time_training_steps(entries, replace(OPTIONS, precisions=["float32"]))
    assert set(results) == {"ours, float32"}
    print_speeds(results)
    assert "ours, float32" in capsys.readouterr().out


def test_longer_steps_take_more_memory():
    short, long = (step_memory("ours", TINY | {"dim": 64, "seq_len": n}, 4, False, 1) for n in (256, 1024))
    assert 0 < 2 * short < long
