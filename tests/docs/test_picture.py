"""The README's picture is up to date, and agrees with the model."""

from xml.etree import ElementTree

import torch

from docs import picture
from model import Attend, ModelConfig
from model.compress import Compress
from model.segments import StrideUnits
from tests.conftest import ROOT

POSITIONS = len(picture.POSITIONS)


def test_the_file_is_up_to_date_and_small():
    content = (ROOT / "docs" / "model.svg").read_bytes()
    assert content.decode() == picture.draw(), "run `python -m docs.picture`"
    assert len(content) < 60_000
    svg = ElementTree.fromstring(content)
    letters = [text.text for text in svg.findall(".//{*}text") if "letter" in text.get("class")]
    text = picture.TEXT.replace(" ", "␣")
    assert "".join(letters[0::3]) == "".join(letters[1::3]) == text[:-1]  # rows "bytes" and "level 1x"
    assert "".join(letters[2::3]) == text[1:]  # each position predicts the next byte


def test_an_output_depends_on_the_bytes_that_the_picture_connects_to_it():
    level = ModelConfig(dim=8, seq_len=16, hierarchies=(1, picture.COMPRESSION)).levels[1]
    assert level.stride == picture.STRIDE
    past = picture.COMPRESSION - 1
    x = torch.randn(1, past + POSITIONS, 8, requires_grad=True)
    outputs = Compress(8, level)(x, level.segments.cut(torch.zeros(1, POSITIONS)))[0]
    for k, output in enumerate(outputs):
        (gradient,) = torch.autograd.grad(output.sum(), x, retain_graph=True)
        touched = gradient[0, past:].abs().sum(dim=-1).nonzero().flatten().tolist()
        assert touched == list(picture.bytes_of_output(k))


def test_a_position_is_merged_with_the_output_that_the_picture_connects_to_it():
    num_outputs = -(-POSITIONS // picture.STRIDE)
    outputs = torch.arange(num_outputs).view(1, -1, 1)
    merged = StrideUnits(picture.STRIDE, POSITIONS).up(outputs).flatten().tolist()
    assert merged == [picture.output_merged_into(t) for t in picture.POSITIONS]


def test_a_position_attends_to_the_keys_that_the_picture_shows():
    q, k, v = torch.randn(3, 1, 1, POSITIONS, 8).requires_grad_()
    out = Attend(causal=True, window_size=picture.WINDOW)(q, k, v)
    for position in picture.POSITIONS:
        (gradient,) = torch.autograd.grad(out[0, 0, position].sum(), v, retain_graph=True)
        touched = gradient[0, 0].abs().sum(dim=-1).nonzero().flatten().tolist()
        assert touched == list(picture.keys_of(position))
