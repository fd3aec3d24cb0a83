"""The race: contenders are what they are taken for, every byte counts once, and a kill changes nothing."""

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
from benchmarks.quality.causality import check_causality, noisy
from benchmarks.quality.clock import speeds
from benchmarks.quality.trials import Entry, Trial, score, scoring
from tests.conftest import ROOT
from training.config import TrainConfig

TINY = {"dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "seq_len": 32}
ENTRIES = {
    ", ".join(names): race.entrant(builder, race.SAME | model, quick=True)
    for names, (builder, model) in race.SIZES.items()
}


@pytest.mark.parametrize("name", ENTRIES)
def test_contenders_predict_the_next_byte_from_all_before_and_pay_for_each(name):
    torch.manual_seed(0)
    contender = ENTRIES[name].build()
    if contender is None:
        pytest.skip("installed by benchmarks/requirements.txt")
    check_causality(name, noisy(contender).eval(), 32, positions=32)
    zeros = torch.zeros(2, 33, dtype=torch.long)  # a byte that two of the peers' own losses leave out
    logits = contender(zeros[:, :-1])
    assert logits.shape == (2, 32, 256)
    torch.testing.assert_close(contender.loss(zeros), F.cross_entropy(logits.flatten(0, 1), zeros[:, 1:].flatten()))


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda logits, ids: logits.roll(-1, dims=1), "depend on bytes from"),  # each knows the byte that it predicts
        (lambda logits, ids: logits + 1e-3 * ids.float().mean(), "depend on bytes from"),  # a little of the whole text
        (lambda logits, ids: F.pad(logits, (0, 0, 1, -1)), "do not depend on byte"),  # predicts what it was to know
        (lambda logits, ids: F.one_hot(ids, 256).float(), "none depends on byte"),  # no memory
    ],
    ids=["future", "mean", "late", "blind"],
)
def test_a_contender_that_is_not_causal_is_named(spoil, complaint):
    class Spoilt(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = noisy(Entry("ours", TINY).build())

        def forward(self, ids):
            return spoil(self.model(ids), ids)

    torch.manual_seed(0)
    with pytest.raises(ValueError, match=f"contender: cheat gives .* {complaint}"):
        check_causality("cheat", Spoilt(), 32)


@pytest.mark.parametrize("size", [2, 31, 32, 33, 48, 49, 1000])
def test_a_score_is_of_every_byte_once(size):
    class Unigram(nn.Module):
        """Each byte has a price of its own, whatever stands before it."""

        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.randn(256, generator=torch.Generator().manual_seed(1)))

        def forward(self, ids):
            assert ids.shape[1] <= 32
            return self.logits.expand(*ids.shape, 256)

    data, model = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8), Unigram()
    bits = -model.logits.log_softmax(dim=0).double().detach().numpy() / np.log(2)
    assert score(model, data, 32) == pytest.approx((8 + bits[data[1:]].sum()) / size, rel=1e-6)
    through = list(scoring(model, data, 32))  # from wherever it is taken up again
    assert all([*scoring(model, data, 32, *one)] == through[i + 1 :] for i, one in enumerate(through))


def test_rates_go_beyond_the_edge_where_the_best_one_stands():
    """Scores are a formula here: size "b" is the better one, and the best rates lie outside of those given."""
    best = {"low": 2.5e-4, "high": 1.6e-2, "within": 2e-3}
    asked = []

    def trial(names, rate, seed, minutes, final):
        assert not final
        asked.append((*names, rate))
        bits = abs(np.log2(rate / best[names[0]])) + (names[1] == "a")
        return SimpleNamespace(key=(*names, rate), bits=bits if rate < 1e-1 else None)

    contest = SimpleNamespace(
        entries=[(contender, size) for contender in best for size in "ab"],
        trial=trial,
        run=lambda trials: {trial.key: {"validation": trial.bits} for _, trial in trials},
    )
    args = SimpleNamespace(rates=[1e-3, 2e-3, 4e-3], seeds=[5], sweep_minutes=1.0, quick=False)
    assert race.sweep(contest, args) == {contender: ("b", pytest.approx(rate)) for contender, rate in best.items()}
    assert ("high", "b", 3.2e-2) in asked and ("low", "b", 1.25e-4) in asked  # seen to be worse
    assert {rate for contender, _, rate in asked if contender == "within"} == set(args.rates)


def test_a_new_entry_is_timed_in_units_of_what_is_known(tmp_path):
    path, options = tmp_path / "speeds.json", {"tokens": 64, "precision": "float32", "threads": 1, "rounds": 3}
    (first,) = speeds({"one": Entry("ours", TINY)}, **options, path=path).values()
    known = json.loads(path.read_text())
    for line in known.values():
        line["bytes_per_second"] *= 1000  # as on a machine a thousand times as fast
    path.write_text(json.dumps(known))
    entries = {"one": Entry("ours", TINY), "two": Entry("ours", TINY, {"weight_decay": 0.0})}
    both = speeds(entries, **options, path=path)
    assert both["one"]["bytes_per_second"] == 1000 * first["bytes_per_second"]
    assert both["two"]["bytes_per_second"] > 50 * first["bytes_per_second"]
    assert speeds(entries, **options, path=path) == both  # and from then on it is known


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Begin a race of miniatures in a folder, or another module's."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(3000)))
    flags = ["--data.name=files", f"--data.path={folder / 'text.txt'}", f"--data.cache_dir={folder / 'cache'}"]
    flags += ["--quick", "--minutes=0.01", "--tokens-per-step=256", "--threads=1", "--rates", "0.004"]
    sweep = ("--contenders", "hierarchical", "--sweep-minutes=0.005", "--seeds", "3")

    def run(out: Path, *options: str, module: str = "race") -> subprocess.Popen:
        command = [sys.executable, "-m", f"benchmarks.{module}", f"--out={out}", *flags, *(options or sweep)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return run


def lines_of(out: Path) -> dict[str, dict]:
    """The lines of a race by key, without the time that they took."""
    lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines)
    return {line["key"]: line | {"seconds": None} for line in lines}


def test_a_killed_race_ends_as_one_that_ran_through(start, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = start(whole)
    said, complained = process.communicate()
    assert process.returncode == 0, complained
    result = json.loads(said.splitlines()[-1])["contenders"]["hierarchical"]
    assert len(result["test_bits_per_byte"]) == 1 and 0 < result["test_bits_per_byte"][0] < 8
    assert (whole / "race.png").stat().st_size > 10_000 and not list((whole / "states").iterdir())
    *swept, final = lines_of(whole)
    assert swept

    cut.mkdir()
    shutil.copy(whole / "speeds.json", cut)
    process, state = start(cut), cut / "states" / f"{final}.pt"
    while process.poll() is None and not state.exists():
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)  # in the middle of the one that counts
    process.communicate()
    assert process.returncode == -signal.SIGKILL and state.exists()
    with (cut / "runs.jsonl").open("a") as file:
        file.write('{"key": "cut sho')
    process = start(cut)
    again, complained = process.communicate()
    assert process.returncode == 0, complained
    assert lines_of(cut) == lines_of(whole)
    assert again.splitlines()[-1] == said.splitlines()[-1]


def test_every_change_of_the_ablations_is_legal():
    names = [ablations.told(change) for change in ablations.CHANGES]
    assert len(set(names)) == len(names) and "base" not in names
    for change in ablations.CHANGES:
        for quick in (False, True):
            entry = ablations.entry_of(change, quick)
            with torch.device("meta"):
                assert isinstance(entry.build(), Contender)
            assert isinstance(Trial(entry, 1e-3, 0, 100, 1, "float32", "", True).schedule(), TrainConfig)


def test_ablations_are_differences_to_the_base_of_the_same_seeds(start, tmp_path):
    process = start(tmp_path, "--only", "optimizer", "dropout", "--seeds", "0", "1", module="ablations")
    said, complained = process.communicate()
    assert process.returncode == 0, complained
    *rows, last = said.splitlines()[-5:]
    results = json.loads(last)["changes"]
    scores = {name: np.array(result["validation_bits_per_byte"]) for name, result in results.items()}
    assert set(scores) == {"base", "dropout 0.0", "dropout 0.2", "optimizer adamw"}
    assert all(len(set(both)) == 2 for both in scores.values())  # seeds differ, and so do they under a change
    assert not np.intersect1d(scores["base"], np.ravel([scores[name] for name in scores if name != "base"])).size
    for row in rows:
        name, over = next(name for name in scores if name in row), float(row.split()[-3])
        assert over == pytest.approx((scores[name] - scores["base"]).mean(), abs=1e-4)
    assert [float(row.split()[-3]) for row in rows] == sorted(float(row.split()[-3]) for row in rows)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--contenders", "flat", "hare"], "contenders: got hare, allowed: flat, hierarchical"),
        (['--ours={"drop": 0.2}'], "ours: got drop, allowed: num_tokens, ngrams"),
        (['--ours={"dropout": 2}'], "dropout: got 2, allowed: 0 to below 1"),
        (["--tokens-per-step=1000"], "tokens_per_step: got 1000, allowed: multiples of [512, 8192]"),
        (["--data.name=files"], "data.path: got None, allowed for name=files: a file"),
        (["--precision=fp8"], "precision: got fp8, allowed: float32, bf16"),
    ],
)
def test_a_mistake_is_one_line(flags, complaint, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        race.main([f"--out={tmp_path / 'race'}", "--data.name=python", *flags])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and complaint in error
    assert not (tmp_path / "race").exists()


def test_the_map_has_the_better_rate_of_each_length_and_time(start, tmp_path):
    process = start(tmp_path, "--lengths", "32", "64", "--seeds", "0", "--rates", "0.004", "0.4", module="regimes")
    said, complained = process.communicate()
    assert process.returncode == 0, complained
    *rows, _, last = said.splitlines()[-8:]
    places, lines = json.loads(last)["places"], lines_of(tmp_path).values()
    assert [(one["length"], 100 * one["minutes"]) for one in places] == [
        (n, pytest.approx(share)) for n in (32, 64) for share in (1 / 16, 1 / 4, 1)
    ]
    assert (tmp_path / "regimes.png").stat().st_size > 10_000
    for place, row in zip(places, rows, strict=True):
        for name in ("flat", "hierarchical"):
            its = [line for line in lines if line["name"] == f"{name}, {place['length']}"]
            (steps,) = {line["trial"]["steps"] for line in its if line["validation"] == place[name]}
            both = [line["validation"] for line in its if line["trial"]["steps"] == steps]
            assert len(both) == 2 and place[name] == min(both)
        saved = 100 * (1 - place["hierarchical"] / place["flat"])
        assert float(row.split()[-1].rstrip("%")) == pytest.approx(saved, abs=0.051)
