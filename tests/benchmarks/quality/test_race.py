"""Races: contenders are causal, every byte is scored once, and a kill does not change the results."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.contenders import Contender
from benchmarks.quality import ablations, race
from benchmarks.quality.causality_check import add_noise_to_weights, check_causality
from benchmarks.quality.entries import SHARED, SIZES, make_entry
from benchmarks.quality.search import find_best
from benchmarks.quality.training_speeds import training_speeds
from benchmarks.quality.trials import Entry, Trial, score, scoring
from tests.conftest import ROOT
from training.config import TrainConfig

TINY = {"dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "seq_len": 32}
ENTRIES = {
    ", ".join(names): make_entry(builder, SHARED | model, quick=True) for names, (builder, model) in SIZES.items()
}


# -- Causality


@pytest.mark.parametrize("name", ENTRIES)
def test_contenders_are_causal_and_their_loss_counts_every_byte(name):
    torch.manual_seed(0)
    contender = ENTRIES[name].build()
    if contender is None:
        pytest.skip("installed by benchmarks/requirements.txt")
    check_causality(name, add_noise_to_weights(contender).eval(), 32, positions=32)

    zeros = torch.zeros(2, 33, dtype=torch.long)  # a byte that the own losses of two libraries ignore
    logits = contender(zeros[:, :-1])
    assert logits.shape == (2, 32, 256)
    torch.testing.assert_close(contender.loss(zeros), F.cross_entropy(logits.flatten(0, 1), zeros[:, 1:].flatten()))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda logits, ids: logits.roll(-1, dims=1), "depend on bytes from"),  # each knows the byte it predicts
        (lambda logits, ids: logits + 1e-3 * ids.float().mean(), "depend on bytes from"),  # a little of the whole text
        (lambda logits, ids: F.pad(logits, (0, 0, 1, -1)), "do not depend on byte"),  # one byte late
        (lambda logits, ids: F.one_hot(ids, 256).float(), "no logits after .* depend on byte"),  # no memory
    ],
    ids=["future", "mean", "late", "no memory"],
)
def test_a_contender_that_is_not_causal_is_named(spoil, message):
    class Spoilt(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = add_noise_to_weights(Entry("ours", TINY).build())

        def forward(self, ids):
            return spoil(self.model(ids), ids)

    torch.manual_seed(0)
    with pytest.raises(ValueError, match=f"^cheat .*{message}"):
        check_causality("cheat", Spoilt(), 32)


# -- Scores, speeds and the search for learning rates


@pytest.mark.parametrize("size", [2, 31, 32, 33, 48, 49, 1000])
def test_a_score_counts_every_byte_once(size):
    class Unigram(nn.Module):
        """Each byte has a fixed cost, whatever precedes it."""

        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.randn(256, generator=torch.Generator().manual_seed(1)))

        def forward(self, ids):
            assert ids.shape[1] <= 32
            return self.logits.expand(*ids.shape, 256)

    data = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    model = Unigram()
    bits = -model.logits.log_softmax(dim=0).double().detach().numpy() / np.log(2)
    assert score(model, data, 32) == pytest.approx((8 + bits[data[1:]].sum()) / size, rel=1e-6)

    # Scoring can continue after any batch.
    whole = list(scoring(model, data, 32))
    for i, progress in enumerate(whole):
        assert list(scoring(model, data, 32, *progress)) == whole[i + 1 :]


def test_learning_rates_are_searched_beyond_the_given_ones_if_the_best_is_at_the_edge():
    """Scores are a formula here: size "b" is better, and two of the best rates are outside of the given ones."""
    best = {"low": 2.5e-4, "high": 1.6e-2, "within": 2e-3}
    tried = []

    def plan_trial(names, rate, seed, minutes, final):
        assert not final
        tried.append((*names, rate))
        contender, size = names
        bits = abs(np.log2(rate / best[contender])) + (size == "a")
        return bits if rate < 1e-1 else None

    fake_race = SimpleNamespace(
        entries=[(contender, size) for contender in best for size in "ab"],
        plan_trial=plan_trial,
        run_trials=lambda planned: {key: {"validation": bits} for key, bits in planned.items()},
    )
    rates = [1e-3, 2e-3, 4e-3]
    found = find_best(fake_race, rates, seed=5, minutes=1.0, widen=True)
    assert found == {contender: ("b", pytest.approx(rate)) for contender, rate in best.items()}
    assert list(found) == list(best)
    assert ("high", "b", 3.2e-2) in tried and ("low", "b", 1.25e-4) in tried  # tried and found to be worse
    assert {rate for contender, _, rate in tried if contender == "within"} == set(rates)


def test_a_new_entry_is_timed_relative_to_known_ones(tmp_path):
    path = tmp_path / "speeds.json"
    options = {"tokens_per_step": 64, "precision": "float32", "threads": 1, "rounds": 3, "path": path}
    (first,) = training_speeds({"one": Entry("ours", TINY)}, **options).values()

    # Pretend that the first entry was timed when this machine was a thousand times as fast.
    known = json.loads(path.read_text())
    for line in known.values():
        line["bytes_per_second"] *= 1000
    path.write_text(json.dumps(known))

    entries = {"one": Entry("ours", TINY), "two": Entry("ours", TINY, {"weight_decay": 0.0})}
    both = training_speeds(entries, **options)
    assert both["one"]["bytes_per_second"] == 1000 * first["bytes_per_second"]
    assert both["two"]["bytes_per_second"] > 50 * first["bytes_per_second"]
    assert training_speeds(entries, **options) == both  # from then on it is known


# -- Whole races, in miniature


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start a race of miniatures that writes to a folder, or another module of benchmarks.quality."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(3000)))
    flags = ["--data.name=files", f"--data.path={folder / 'text.txt'}", f"--data.cache_dir={folder / 'cache'}"]
    flags += ["--quick", "--minutes=0.01", "--tokens-per-step=256", "--threads=1", "--rates", "0.004"]
    race_flags = ["--contenders", "hierarchical", "--sweep-minutes=0.005", "--seeds", "3"]

    def run(out: Path, *options: str, module: str = "race") -> subprocess.Popen:
        command = [sys.executable, "-m", f"benchmarks.quality.{module}", f"--out={out}", *flags]
        command += options or race_flags
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return run


def read_runs(out: Path) -> dict[str, dict]:
    """The lines of runs.jsonl by key, without the seconds that they took."""
    lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines)
    return {line["key"]: line | {"seconds": None} for line in lines}


def test_a_killed_race_continues_to_the_same_results(start, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    result = json.loads(output.splitlines()[-1])["contenders"]["hierarchical"]
    assert len(result["test_bits_per_byte"]) == 1 and 0 < result["test_bits_per_byte"][0] < 8
    assert (whole / "race.png").stat().st_size > 10_000 and not list((whole / "states").iterdir())
    *short_trials, final_trial = read_runs(whole)
    assert short_trials

    # Kill a race with the same speeds in the middle of its final trial, and while a line is being written.
    killed.mkdir()
    shutil.copy(whole / "speeds.json", killed)
    process = start(killed)
    state = killed / "states" / f"{final_trial}.pt"
    while process.poll() is None and not state.exists():
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and state.exists()
    with (killed / "runs.jsonl").open("a") as file:
        file.write('{"key": "cut sho')

    process = start(killed)
    output_again, errors = process.communicate()
    assert process.returncode == 0, errors
    assert read_runs(killed) == read_runs(whole)
    assert output_again.splitlines()[-1] == output.splitlines()[-1]


def test_every_change_of_the_ablations_is_legal():
    names = [ablations.name_of(change) for change in ablations.CHANGES]
    assert len(set(names)) == len(names) and "base" not in names
    for change in ablations.CHANGES:
        for quick in (False, True):
            entry = ablations.changed_entry(change, quick)
            with torch.device("meta"):
                assert isinstance(entry.build(), Contender)
            assert isinstance(Trial(entry, 1e-3, 0, 100, 1, "float32", "", True).schedule(), TrainConfig)


def test_ablations_are_differences_from_the_base_of_the_same_seeds(start, tmp_path):
    process = start(tmp_path, "--only", "optimizer", "dropout", "--seeds", "0", "1", module="ablations")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    *rows, last = output.splitlines()[-5:]
    results = json.loads(last)["changes"]
    scores = {name: np.array(result["validation_bits_per_byte"]) for name, result in results.items()}
    assert set(scores) == {"base", "dropout 0.0", "dropout 0.2", "optimizer adamw"}

    # Each seed has another score, with a change and without.
    assert all(len(set(by_seed)) == 2 for by_seed in scores.values())
    changed = np.ravel([scores[name] for name in scores if name != "base"])
    assert not np.intersect1d(scores["base"], changed).size

    # The last column reads "+0.0123 ± 0.0045".
    differences = [float(row.split()[-3]) for row in rows]
    for row, difference in zip(rows, differences, strict=True):
        name = next(name for name in scores if name in row)
        assert difference == pytest.approx((scores[name] - scores["base"]).mean(), abs=1e-4)
    assert differences == sorted(differences)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--contenders", "flat", "hare"], "contenders: got hare, allowed: flat, hierarchical"),
        (['--ours={"drop": 0.2}'], "ours: got drop, allowed: num_tokens, embed_dim, ngrams"),
        (['--ours={"dropout": 2}'], "dropout: got 2, allowed: 0 to below 1"),
        (["--tokens-per-step=1000"], "tokens_per_step: got 1000, allowed: multiples of [512, 8192]"),
        (["--data.name=files"], "data.path: got null, allowed: a file, folder or glob"),
        (["--data.name=files", "--data.path=missing.txt"], "missing.txt"),
        (["--precision=fp8"], "precision: got fp8, allowed: float32, bf16"),
    ],
)
def test_a_mistake_of_the_user_is_one_line(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        race.main([f"--out={tmp_path / 'race'}", "--data.name=python", *flags])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and message in error
    assert not (tmp_path / "race").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "text.txt").write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(3000)))
    data = ["--data.name=files", f"--data.path={tmp_path / 'text.txt'}", f"--data.cache_dir={tmp_path / 'cache'}"]
    with pytest.raises(SystemExit) as ended:
        race.main([f"--out={tmp_path / 'file' / 'race'}", *data, "--quick", "--contenders", "flat"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and "--out: cannot make the folder" in error


def test_the_map_shows_the_better_learning_rate_of_each_length_and_time(start, tmp_path):
    process = start(tmp_path, "--lengths", "32", "64", "--seeds", "0", "--rates", "0.004", "0.4", module="regimes")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    *rows, _, last = output.splitlines()[-8:]
    results = json.loads(last)["places"]
    lines = read_runs(tmp_path).values()
    assert [(result["length"], 100 * result["minutes"]) for result in results] == [
        (n, pytest.approx(share)) for n in (32, 64) for share in (1 / 16, 1 / 4, 1)
    ]
    assert (tmp_path / "regimes.png").stat().st_size > 10_000

    for result, row in zip(results, rows, strict=True):
        for name in ("flat", "hierarchical"):
            own = [line for line in lines if line["name"] == f"{name}, {result['length']}"]
            (steps,) = {line["trial"]["steps"] for line in own if line["validation"] == result[name]}
            both_rates = [line["validation"] for line in own if line["trial"]["steps"] == steps]
            assert len(both_rates) == 2 and result[name] == min(both_rates)
        saved = 100 * (1 - result["hierarchical"] / result["flat"])
        assert float(row.split()[-1].rstrip("%")) == pytest.approx(saved, abs=0.051)
