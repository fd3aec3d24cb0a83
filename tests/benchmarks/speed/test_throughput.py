"""The benchmark of throughput: contenders are causal and learn, work is counted as on paper, sections run."""

import argparse

import pytest
import torch

from benchmarks import contenders
from benchmarks.quality.causality import noisy
from benchmarks.speed import throughput
from benchmarks.speed.memory import step_memory

TINY = {"num_tokens": 256, "dim": 32, "depth": 2, "dim_head": 16, "heads": 2, "seq_len": 32}
LEVELS = {"hierarchies": (1, 2), "hierarchical_stride": 1, "window_sizes": (8, 16)}
ARGS = {"rounds": 1, "threads": 1, "device": "cpu", "precisions": ["float32", "bf16"], "batch": 1, "quick": True}
ARGS |= {"large": False, "compile": False}


def build(name: str) -> contenders.Contender:
    contender = {
        "ours": lambda: contenders.ours(**TINY, **LEVELS),
        "reference": lambda: contenders.reference(**TINY, **LEVELS),
        "decoder": lambda: contenders.decoder(**TINY),
    }[name]()
    if contender is None:
        pytest.skip("installed by benchmarks/requirements.txt")
    return contender


@pytest.mark.parametrize("name", ["ours", "reference", "decoder"])
def test_contenders_are_causal_and_learn(name):
    torch.manual_seed(0)
    contender, ids = build(name), contenders.random_ids(2, 32, "cpu")
    noisy(contender)
    with torch.no_grad():
        changed = ids.clone()
        changed[:, 20:] = 1 + changed[:, 20:] % 255
        before, after = contender(ids[:, :32]), contender(changed[:, :32])
    assert before.shape == (2, 32, 256)
    torch.testing.assert_close(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20:], after[:, 20:])
    for bf16 in (False, True):
        step, loss = contenders.training_step(contender, ids, bf16), contender.loss(ids)
        assert loss.shape == ()
        for _ in range(20):
            step()
        assert contender.loss(ids) < loss


@pytest.mark.parametrize("window", [None, 8])
def test_flops_are_those_on_paper(window):
    dim, n = 32, 64  # whole blocks of a window, so that no padding counts
    contender = contenders.ours(**TINY | {"window_sizes": window, "seq_len": n})
    layer = 4 * dim**2 + 2 * 4 * dim**2
    pairs = sum(min(i + 1, window or n) for i in range(n)) / n
    forward = 2 * (2 * (layer + 2 * dim * pairs) + 256 * dim)
    assert contenders.count_flops(contender, n) == pytest.approx(3 * forward)
    parts = throughput.flops_by_part(contenders.flops_by_module(contender, n))
    assert sum(parts.values()) == pytest.approx(3 * forward)
    assert parts["logits"] == pytest.approx(3 * 2 * 256 * dim)


def test_parts_cover_every_kind_of_work():
    config = TINY | {"hierarchies": (1, 4), "recon_loss_weight": 0.1}
    contender = contenders.ours(**config)
    parts = throughput.flops_by_part(contenders.flops_by_module(contender, 32))
    assert {"level 1: compress", "level 0: attention", "merges", "loss: reconstruction", "logits"} <= parts.keys()
    assert all(flops > 0 for flops in parts.values())
    assert sum(parts.values()) == pytest.approx(contenders.count_flops(contender, 32))


def test_two_levels_have_as_many_parameters_as_one():
    parameters = contenders.count_parameters(contenders.ours(**throughput.FLAT))
    config = throughput.two_levels(parameters, depth=throughput.FLAT["depth"], window_sizes=(64, None))
    assert contenders.count_parameters(contenders.ours(**config)) == pytest.approx(parameters, rel=0.03)


def test_sections_run(monkeypatch, capsys):
    monkeypatch.setattr(throughput, "STEP", TINY | LEVELS)
    monkeypatch.setattr(throughput, "FLAT", TINY)
    results = throughput.step(argparse.Namespace(**ARGS))
    assert set(results) >= {"ours, float32", "ours, bf16"}
    assert all(result["bytes_per_second"] > 0 and result["share_of_peak"] > 0 for result in results.values())
    assert "of the peak" in capsys.readouterr().out


def test_a_missing_peer_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(contenders, "reference", lambda **config: contenders.missing("it"))
    monkeypatch.setattr(throughput, "STEP", TINY | LEVELS)
    results = throughput.step(argparse.Namespace(**ARGS))
    assert set(results) == {"ours, float32", "ours, bf16"}
    assert results["ours, bf16"]["ratio"] is None
    assert "it is not installed" in capsys.readouterr().out


def test_longer_steps_take_more_memory():
    sizes = [step_memory("ours", TINY | {"dim": 64, "seq_len": n}, 4, False, 1) for n in (256, 1024)]
    assert 0 < 2 * sizes[0] < sizes[1]
