"""evaluation/heatmap.py and `generate.py --heatmap`: the page shows every byte, its cost and the level gains."""

import json
from html.parser import HTMLParser
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

import generate
from evaluation.heatmap import MAX_BYTES, characters, validation_score, write_heatmap
from evaluation.level_ablation import level_replaced_by_mean, measure_means
from tests.model.models import build
from utils.errors import UserError

ODD = bytes(range(256)) + "</script><!-- & <b>naïve</b> € 😀 e\u0301\u200b\t".encode() + b"\xe2\x82 \xed\xa0\x80\r\n"


class Page(HTMLParser):
    """A page as a browser parses it: its elements, in order, and its data."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []  # elements that are not closed yet
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open, f"not closed: {self.open}"
        self.data = json.loads(self.text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"] and self.tags[-1][1].get("id") == "data":
            self.text = data


@pytest.fixture
def page(tmp_path):
    def write(model, text: bytes) -> Page:
        write_heatmap(tmp_path / "page.html", model, np.frombuffer(text, np.uint8), tmp_path, Path("odd.txt"))
        return Page(tmp_path / "page.html")

    return write


def test_the_page_has_every_byte_and_loads_nothing(page):
    written = page(build(depth=1, hierarchies=(1, 4), dim=(16, 24)), ODD)
    data = written.data
    assert bytes(data["bytes"]) == ODD
    assert sum(data["sizes"]) == len(ODD) and len(data["sizes"]) == len(data["glyphs"])
    assert [len(data[name]) for name in ("bits", "likely", "chances")] == [len(ODD), 5 * len(ODD) - 5, 5 * len(ODD) - 5]
    assert [tag for tag, _ in written.tags].count("script") == 2
    assert {tag for tag, _ in written.tags}.isdisjoint({"b", "link", "img", "iframe", "base"})
    assert not any({"src", "href", "srcset"} & attributes.keys() for _, attributes in written.tags)
    policy = [attributes["content"] for _, attributes in written.tags if "http-equiv" in attributes]
    assert policy and policy[0].startswith("default-src 'none'")
    assert "http" not in written.source.replace("http-equiv", "")


@pytest.mark.parametrize(
    "text, shown",
    [
        (b"a b", [("a", 1), (" ", 1), ("b", 1)]),
        ("é€😀".encode(), [("é", 2), ("€", 3), ("😀", 4)]),
        (b"\t\r\n", [("⇥", 1), ("0D", 1), ("⏎", 1)]),
        (b"\0\x7f", [("00", 1), ("7F", 1)]),
        (b"\xe2\x82a\xff", [("E2", 1), ("82", 1), ("a", 1), ("FF", 1)]),
        (b"\xed\xa0\x80", [("ED", 1), ("A0", 1), ("80", 1)]),  # half of a surrogate pair: invalid in UTF-8
        ("\u200b\u00a0\u2028".encode(), [("U+200B", 3), ("U+00A0", 2), ("U+2028", 3)]),
        ("e\u0301".encode(), [("e", 1), ("◌\u0301", 2)]),
    ],
)
def test_every_character_is_visible(text, shown):
    assert characters(text) == shown


@torch.no_grad()
def test_costs_and_predictions_are_those_of_the_model(page):
    model = build(depth=1, hierarchies=(1, 4), dim=(16, 24))
    ids = torch.tensor([list(ODD)])
    data = page(model, ODD).data
    expected, logits = [8.0], []
    for i in range(1, len(ODD)):  # each byte by itself, from the first window that reaches it; windows advance by 16
        start = (i - 17) // 16 * 16 if i > 32 else 0
        start = min(start, len(ODD) - 33)
        logits.append(model(ids[:, start : start + 32])[0, i - 1 - start])
        expected.append(-logits[-1].log_softmax(-1)[ids[0, i]].item() / log(2))
    np.testing.assert_allclose(data["bits"], expected, atol=2e-4)
    assert data["bits_per_byte"] == pytest.approx(np.mean(expected), abs=1e-4)

    probabilities = torch.stack(logits).softmax(dim=-1)
    chances = probabilities.gather(1, torch.tensor(data["likely"]).view(-1, 5))
    np.testing.assert_allclose(np.reshape(data["chances"], (-1, 5)), chances, atol=1e-4)
    np.testing.assert_allclose(chances, probabilities.topk(5).values, atol=1e-6)


@torch.no_grad()
def test_the_gain_of_a_level_is_the_cost_without_it_minus_the_cost_with_it(page):
    model = build(depth=1, hierarchies=(4, 1, 2), dim=(24, 16, 12))
    ids = torch.tensor([list(ODD[:30])])  # fits one window

    def bits() -> np.ndarray:
        nats = torch.nn.functional.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="none")
        return np.append(8, nats.numpy() / log(2))

    data = page(model, ODD[:30]).data
    whole = bits()
    with measure_means(model) as means:
        bits()
    assert list(data["gains"]) == ["4x", "2x"] and data["predicts_alone"] == "1x"
    for name, i in (("4x", 0), ("2x", 2)):
        with level_replaced_by_mean(model, i, means):
            expected = bits() - whole
        np.testing.assert_allclose(data["gains"][name], expected, atol=2e-4)
        assert np.abs(expected).max() > 0.01 and data["gains"][name][0] == 0
    assert np.array_equal(bits(), whole)  # the model is unchanged


def test_gains_are_for_levels_that_can_be_left_out(page):
    """A single level cannot; if all levels predict, each of them can."""
    flat = page(build(depth=1, hierarchies=1, dim=16), ODD).data
    assert flat["gains"] == {} and len(flat["bits"]) == len(ODD)
    all_predict = page(build(depth=1, hierarchies=(1, 4), dim=(16, 24), predict_use_all_hierarchy=True), ODD).data
    assert list(all_predict["gains"]) == ["1x", "4x"] and all_predict["predicts_alone"] is None


def test_the_page_shows_the_validation_score_that_the_run_recorded(page, tmp_path):
    model = build(depth=1, hierarchies=1, dim=16)
    assert page(model, ODD).data["validation"] is None  # a run without a record

    (tmp_path / "model").mkdir()
    record = {"step": 1200, "validation_bits_per_byte": 1.25, "code_version": "abc"}
    (tmp_path / "model" / "training.json").write_text(json.dumps(record))
    assert page(model, ODD).data["validation"] == "1.2500 bits per byte after step 1,200"
    for damaged in ("", "null", "{}", "[" * 100_000):
        (tmp_path / "model" / "training.json").write_text(damaged)
        with pytest.raises(UserError, match=r"training.json"):
            page(model, ODD)


def test_generate_writes_the_page_of_a_file(whole, command, tmp_path):
    (tmp_path / "odd.txt").write_bytes(ODD)
    done = command("generate.py", whole, "--score", tmp_path / "odd.txt", "--heatmap", tmp_path / "odd.html")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    data = Page(tmp_path / "odd.html").data
    assert figures["heatmap"] == str(tmp_path / "odd.html") and figures["bytes"] == len(ODD)
    assert figures["4x_adds"] == pytest.approx(np.mean(data["gains"]["4x"]), abs=1e-4)
    assert data["run"] == whole.name and data["source"] == "odd.txt"
    assert data["validation"] == validation_score(whole)

    # Without --heatmap the same costs are printed as lines.
    lines = command("generate.py", whole, "--score", tmp_path / "odd.txt", "--json").stdout.splitlines()
    *costs, mean = map(json.loads, lines)
    assert [cost["byte"] for cost in costs] == data["bytes"] and [cost["bits"] for cost in costs] == data["bits"]
    assert mean == {"bits_per_byte": figures["bits_per_byte"], "bytes": len(ODD)}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--score", "TMP/none.txt", "--heatmap", "TMP/page.html"], ["score: ", "none.txt cannot be read"]),
        (
            ["--score", "TMP/one.txt", "--heatmap", "TMP/page.html"],
            ["score: got 1 bytes", "one.txt", "allowed: 2 to", "with --heatmap"],
        ),
        (["--score", "TMP/long.txt", "--heatmap", "TMP/page.html"], [f"score: got {MAX_BYTES + 1:,} bytes", "allowed"]),
        (["--score", "TMP/two.txt", "--heatmap", "TMP/two.txt"], ["heatmap: got", "two.txt", "allowed", ".html"]),
        (["--score", "TMP/two.txt", "--heatmap", "TMP/no/page.html"], ["heatmap: got", "a folder that exists"]),
        (["--prompt", "a", "--heatmap", "TMP/page.html"], ["--heatmap needs --score FILE"]),
    ],
)
def test_a_page_that_cannot_be_written_is_one_line_and_writes_nothing(whole, tmp_path, capsys, arguments, words):
    (tmp_path / "one.txt").write_bytes(b"a")
    (tmp_path / "two.txt").write_bytes(b"ab")
    (tmp_path / "long.txt").write_bytes(b"a" * (MAX_BYTES + 1))
    with pytest.raises(SystemExit, match=r"^2$"):
        generate.main([str(whole), *(argument.replace("TMP", str(tmp_path)) for argument in arguments)])
    out, error = capsys.readouterr()
    assert not out and error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in words), error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.txt", "one.txt", "two.txt"]
    assert (tmp_path / "two.txt").read_bytes() == b"ab"
