"""The race on a text that is read at most once: costs of use, the frontier, a race in miniature, and refusals."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality import frontier
from benchmarks.quality.cost_of_use import LENGTH, Continuation, costs_of_use, read, state_bytes
from benchmarks.quality.frontier_plot import frontier as frontier_of
from benchmarks.quality.trials import Entry
from data import DataConfig, open_corpus
from model import HierarchicalTransformer

TINY = {"dim": 16, "depth": 2, "heads": 2, "dim_head": 8, "seq_len": 32}
TWO_LEVELS = TINY | {"hierarchies": (1, 4), "window_sizes": (4, None), "ngrams": (2, 3), "matches": (3,)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("corpus"), 1500)


def write_text(folder: Path, count: int) -> DataConfig:
    """A corpus of some lines."""
    (folder / "text.txt").write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(count)))
    return DataConfig("files", path=str(folder / "text.txt"), cache_dir=str(folder / "cache"))


def flags_of(data: DataConfig, out: Path, *flags: str) -> list[str]:
    """The command line of a race of miniatures."""
    corpus = ["--data.name=files", f"--data.path={data.path}", f"--data.cache_dir={data.cache_dir}"]
    options = ["--quick", "--rates", "0.004", "--tokens-per-step=256", "--threads=1", "--rounds=2"]
    return [f"--out={out}", *corpus, *options, *flags]


# -- Costs of use


@pytest.mark.parametrize("model", [TINY, TWO_LEVELS], ids=["flat", "two levels"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_continuation_reads_the_text_and_not_what_it_draws(model, rows):
    torch.manual_seed(0)
    model = HierarchicalTransformer(**model).eval()
    text = torch.randint(0, 256, (rows, 20 + 2 * LENGTH))
    continuation = Continuation(model, text, 20)
    for call in (1, 2):
        continuation()
        with torch.no_grad():
            logits = model(text[:, : 20 + call * LENGTH])[:, -1]
        torch.testing.assert_close(continuation.logits[:, -1], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [4, 16])
def test_a_state_grows_with_the_window_and_not_with_the_text(window):
    def measure(window: int, length: int) -> int:
        model = HierarchicalTransformer(**TINY, window_sizes=window).eval()
        return state_bytes(read(model, torch.zeros(1, length, dtype=torch.long)))

    keys_and_values = 2 * TINY["depth"] * TINY["heads"] * TINY["dim_head"] * 4  # bytes of one position in float32
    assert measure(window, 100) == measure(window, 1000)
    assert measure(2 * window, 100) - measure(window, 100) == window * keys_and_values


def test_costs_are_measured_once_for_the_same_models(data, tmp_path):
    corpus = open_corpus(data)
    options = {"contexts": (64, 256), "threads": 1, "rounds": 1, "compiled": False, "path": tmp_path / "costs.json"}
    entries = {"flat": Entry("ours", TINY), "two levels": Entry("ours", TWO_LEVELS)}
    costs = costs_of_use(entries, corpus, **options)
    assert costs_of_use(entries, corpus, **options) == costs  # timings would differ
    assert set(costs) == set(entries)
    for cost in costs.values():
        assert set(cost["generated_bytes_per_second"]) == {"1 row", "16 rows"}
        assert cost["state_bytes"]["64"] == cost["state_bytes"]["256"] > 0  # both are beyond seq_len

    longer = costs_of_use({"flat": Entry("ours", TINY)}, corpus, **options | {"contexts": (64, 300)})
    assert list(longer["flat"]["state_bytes"]) == ["64", "300"]


# -- The frontier


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_the_frontier_holds_what_nothing_else_beats(points):
    kept = frontier_of(points)
    for speed, bits in kept:
        assert not any(s >= speed and b <= bits and (s, b) != (speed, bits) for s, b in points)
    for speed, bits in points:
        assert any(s >= speed and b <= bits for s, b in kept)
    assert kept == sorted(kept, reverse=True)


def test_a_miniature_race_reports_every_time_with_its_seeds_and_the_costs(data, tmp_path, capsys):
    frontier.main(flags_of(data, tmp_path, "--minutes", "0.002", "0.001", "--seeds", "3", "4"))
    *_, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert (tmp_path / "frontier.png").stat().st_size > 10_000

    short, long = report["budgets"]
    assert (short["minutes"], long["minutes"]) == (0.001, 0.002)
    runs = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    for budget, seeds in ((short, [3]), (long, [3, 4])):
        assert list(budget["contenders"]) == ["flat", "hierarchical"]
        for contender, result in budget["contenders"].items():
            assert f"{contender}, {result['size']}" in report["costs"]
            assert result["share_of_text"] == result["bytes"] / report["sizes"]["train"] <= 1
            assert result["bytes"] == pytest.approx(60 * budget["minutes"] * result["bytes_per_second"], abs=256)
            steps = result["bytes"] // 256
            own = [r for r in runs if r["trial"]["final"] and r["name"] == f"{contender}, {result['size']}"]
            scores = {r["trial"]["seed"]: r["test"] for r in own if r["trial"]["steps"] == steps}
            assert result["test_bits_per_byte"] == [scores[seed] for seed in seeds]


# -- What it refuses


@pytest.mark.parametrize(
    ("count", "minutes", "parts"),
    [
        (1500, 1000, ["minutes: ", " would train on ", " bytes in 1000 minutes, ", " has {train:,} bytes"]),
        (400, 0.0001, ["data.path: the validation split of ", " has {valid:,} bytes, allowed: at least 1,024"]),
    ],
    ids=["training", "prompts"],
)
def test_a_text_that_is_too_short_is_refused_in_one_line(count, minutes, parts, tmp_path, capsys):
    data = write_text(tmp_path, count)
    with pytest.raises(SystemExit) as ended:
        frontier.main(flags_of(data, tmp_path / "out", f"--minutes={minutes}"))
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    sizes = open_corpus(data).sizes
    assert [part for part in parts if part.format(**sizes) not in error] == []
    assert not (tmp_path / "out" / "runs.jsonl").exists()
