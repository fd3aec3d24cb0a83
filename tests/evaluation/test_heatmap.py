"""evaluation/heatmap.py and `generate.py --heatmap`: what is on the page, byte by byte."""

import json
from html.parser import HTMLParser
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

import generate
from evaluation.heatmap import LONGEST, characters, write_heatmap
from evaluation.level_ablation import averaging, without
from tests.model.models import build

ODD = bytes(range(256)) + "</script><!-- & <b>naïve</b> € 😀 e\u0301\u200b\t".encode() + b"\xe2\x82 \xed\xa0\x80\r\n"


class Page(HTMLParser):
    """What a browser finds in a page: its elements, in order, and the data."""

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


def test_the_page_has_every_byte_and_needs_nothing_else(page):
    written = page(build(depth=1, hierarchies=(1, 4), dim=(16, 24)), ODD)
    data = written.data
    assert bytes(data["bytes"]) == ODD
    assert sum(data["sizes"]) == len(ODD) and len(data["sizes"]) == len(data["glyphs"])
    assert [len(data[name]) for name in ("bits", "likely", "chances")] == [len(ODD), 5 * len(ODD) - 5, 5 * len(ODD) - 5]
    assert [tag for tag, _ in written.tags].count("script") == 2
    assert {tag for tag, _ in written.tags}.isdisjoint({"b", "link", "img", "iframe", "base"})
    assert not any({"src", "href", "srcset"} & attributes.keys() for _, attributes in written.tags)
    policy = [attributes["content"] for _, attributes in written.tags if "http-equiv" in attributes]
    assert (
        policy and policy[0].startswith("default-src 'none'") and "http" not in written.source.replace("http-equiv", "")
    )


@pytest.mark.parametrize(
    "text, shown",
    [
        (b"a b", [("a", 1), (" ", 1), ("b", 1)]),
        ("é€😀".encode(), [("é", 2), ("€", 3), ("😀", 4)]),
        (b"\t\r\n", [("⇥", 1), ("0D", 1), ("⏎", 1)]),
        (b"\0\x7f", [("00", 1), ("7F", 1)]),
        (b"\xe2\x82a\xff", [("E2", 1), ("82", 1), ("a", 1), ("FF", 1)]),
        (b"\xed\xa0\x80", [("ED", 1), ("A0", 1), ("80", 1)]),  # half of a pair, which UTF-8 does not have
        ("\u200b\u00a0\u2028".encode(), [("U+200B", 3), ("U+00A0", 2), ("U+2028", 3)]),
        ("e\u0301".encode(), [("e", 1), ("◌\u0301", 2)]),
    ],
)
def test_every_character_can_be_seen(text, shown):
    assert characters(text) == shown


@torch.no_grad()
def test_costs_predictions_and_gains_are_the_models(page):
    model, ids = build(depth=1, hierarchies=(1, 4), dim=(16, 24)), torch.tensor([list(ODD)])
    data = page(model, ODD).data
    expected, logits = [8.0], []
    for at in range(1, len(ODD)):  # byte after byte, each from the first window that reaches it, 16 bytes apart
        start = min(max(0, (at - 17) // 16 * 16 if at > 32 else 0), len(ODD) - 33)
        logits.append(model(ids[:, start : start + 32])[0, at - 1 - start])
        expected.append(-logits[-1].log_softmax(-1)[ids[0, at]].item() / log(2))
    np.testing.assert_allclose(data["bits"], expected, atol=2e-4)
    assert data["bits_per_byte"] == pytest.approx(np.mean(expected), abs=1e-4)
    chances = torch.stack(logits).softmax(dim=-1).gather(1, torch.tensor(data["likely"]).view(-1, 5))
    np.testing.assert_allclose(np.reshape(data["chances"], (-1, 5)), chances, atol=1e-4)
    np.testing.assert_allclose(chances, torch.stack(logits).softmax(dim=-1).topk(5).values, atol=1e-6)


@torch.no_grad()
def test_a_level_adds_what_its_absence_costs(page):
    model, ids = build(depth=1, hierarchies=(4, 1, 2), dim=(24, 16, 12)), torch.tensor([list(ODD[:30])])  # one window

    def bits() -> np.ndarray:
        nats = torch.nn.functional.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="none")
        return np.append(8, nats.numpy() / log(2))

    data, whole = page(model, ODD[:30]).data, bits()
    with averaging(model) as means:
        bits()
    assert list(data["gains"]) == ["4x", "2x"] and data["alone"] == "1x"
    for name, i in (("4x", 0), ("2x", 2)):
        with without(model, i, means):
            expected = bits() - whole
        np.testing.assert_allclose(data["gains"][name], expected, atol=2e-4)
        assert np.abs(expected).max() > 0.01 and data["gains"][name][0] == 0
    assert np.array_equal(bits(), whole)  # the page left the model as it was


def test_one_level_has_no_gains_and_where_all_predict_all_have(page):
    flat = page(build(depth=1, hierarchies=1, dim=16), ODD).data
    assert flat["gains"] == {} and len(flat["bits"]) == len(ODD)
    all_predict = page(build(depth=1, hierarchies=(1, 4), dim=(16, 24), predict_use_all_hierarchy=True), ODD).data
    assert list(all_predict["gains"]) == ["1x", "4x"] and all_predict["alone"] is None


def test_generate_writes_the_page_of_a_file(whole, command, tmp_path):
    (tmp_path / "odd.txt").write_bytes(ODD)
    done = command("generate.py", whole, "--score", tmp_path / "odd.txt", "--heatmap", tmp_path / "odd.html")
    assert done.returncode == 0, done.stderr
    said, data = json.loads(done.stdout), Page(tmp_path / "odd.html").data
    assert said["heatmap"] == str(tmp_path / "odd.html") and said["bytes"] == len(ODD)
    assert said["4x_adds"] == pytest.approx(np.mean(data["gains"]["4x"]), abs=1e-4)
    assert data["run"] == whole.name and data["source"] == "odd.txt" and "after step 12 of 12" in data["validation"]

    lines = command("generate.py", whole, "--score", tmp_path / "odd.txt", "--json").stdout.splitlines()
    *costs, mean = map(json.loads, lines)
    assert [cost["byte"] for cost in costs] == data["bytes"] and [cost["bits"] for cost in costs] == data["bits"]
    assert mean == {"bits_per_byte": said["bits_per_byte"], "bytes": len(ODD)}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--score", "TMP/none.txt", "--heatmap", "TMP/page.html"], ["score: got", "none.txt", "allowed: a file"]),
        (
            ["--score", "TMP/one.txt", "--heatmap", "TMP/page.html"],
            ["score: got 1 bytes", "allowed with --heatmap: 2 to"],
        ),
        (["--score", "TMP/long.txt", "--heatmap", "TMP/page.html"], [f"score: got {LONGEST + 1:,} bytes", "allowed"]),
        (["--score", "TMP/one.txt", "--heatmap", "TMP/one.txt"], ["heatmap: got", "one.txt", "allowed", ".html"]),
        (["--score", "TMP/one.txt", "--heatmap", "TMP/no/page.html"], ["heatmap: got", "a folder that exists"]),
        (["--prompt", "a", "--heatmap", "TMP/page.html"], ["heatmap: got", "without --score", "allowed"]),
    ],
)
def test_what_has_no_page_is_said_in_one_line(whole, tmp_path, capsys, arguments, words):
    (tmp_path / "one.txt").write_bytes(b"a")
    (tmp_path / "long.txt").write_bytes(b"a" * (LONGEST + 1))
    with pytest.raises(SystemExit, match=r"^2$"):
        generate.main([str(whole), *(argument.replace("TMP", str(tmp_path)) for argument in arguments)])
    out, error = capsys.readouterr()
    assert not out and error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in words), error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.txt", "one.txt"]
    assert (tmp_path / "one.txt").read_bytes() == b"a"
