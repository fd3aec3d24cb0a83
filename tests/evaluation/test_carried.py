"""A text that is read once has the score of a full pass, however it is cut, and models may learn from it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from evaluation.adaptation import Adaptation, whole_pieces
from evaluation.carried import carried_nats, cut_streams
from evaluation.entropy_coding import decode, encode
from tests.model.test_transformer import build

WORDS = {"dim": 8, "heads": 2, "dim_head": 4, "depth": 2, "seq_len": 16, "hierarchies": (1, 2), "boundaries": "words"}
STRIDES = WORDS | {"hierarchies": (1, 4), "boundaries": "stride", "window_sizes": (5, 3)}
LOOKUPS = {"ngrams": (2, 3), "ngram_buckets": 97, "matches": (2, 4), "word_matches": (0, 1)}
TEXT = np.frombuffer(b"one fact is a fact, and two facts are two. " * 30, dtype=np.uint8)


@given(size=st.integers(2, 3000), warm_up=st.integers(0, 300), most=st.integers(1, 20))
def test_streams_score_each_byte_once_and_read_what_comes_before(size, warm_up, most):
    streams = cut_streams(size, warm_up, most)
    assert 1 <= len(streams.starts) <= most
    scored = np.concatenate([np.arange(first, behind) for first, behind in streams.scored])
    assert scored.tolist() == list(range(1, size))
    for start, (first, behind) in zip(streams.starts, streams.scored, strict=True):
        assert 0 <= start <= max(0, first - 1 - warm_up)
        assert behind - 1 <= start + streams.length <= size - 1
    extra = len(streams.starts) * streams.length - (size - 1)
    assert extra <= (size - 1) / 8 + most  # little is read for context alone


@pytest.mark.parametrize("config", [WORDS, STRIDES, WORDS | LOOKUPS, STRIDES | LOOKUPS], ids=str)
@pytest.mark.parametrize("size", [1, 40, 300])
def test_one_stream_has_the_score_of_a_full_pass(config, size):
    model = build(config)
    ids = torch.from_numpy(TEXT.astype(np.int64))[None]
    with torch.no_grad():
        expected = F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="sum").item()
    streams = cut_streams(len(TEXT), warm_up=16, most=1)
    assert carried_nats(model, TEXT, streams, whole_pieces(size, model)) == pytest.approx(expected, rel=1e-5)


def test_streams_have_the_scores_of_their_parts():
    model = build(STRIDES | LOOKUPS)
    streams = cut_streams(len(TEXT), warm_up=16, most=5)
    assert len(streams.starts) == 5
    expected = 0.0
    for start, (first, behind) in zip(streams.starts, streams.scored, strict=True):
        ids = torch.from_numpy(TEXT[start:behind].astype(np.int64))[None]
        with torch.no_grad():
            nats = F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="none")
        expected += nats[first - start - 1 :].sum().item()
    parts = [carried_nats(model, TEXT, streams.part(process, 2), 8) for process in (0, 1)]
    assert sum(parts) == pytest.approx(expected, rel=1e-5)
    assert carried_nats(model, TEXT, streams.part(7, 8), 8) == 0.0  # a process without a stream


@pytest.mark.parametrize("config", [WORDS | LOOKUPS, STRIDES])
def test_a_model_that_learns_predicts_better_and_its_decoder_learns_alike(config):
    def learner() -> Adaptation:
        torch.manual_seed(0)
        adaptation = Adaptation(build(config), rate=5e-3)
        adaptation.piece = whole_pieces(40, adaptation.model)
        return adaptation

    one = learner()
    streams = cut_streams(len(TEXT), warm_up=0, most=1)
    as_it_is = carried_nats(one.model, TEXT, streams, one.piece)
    first_piece = TEXT[: one.piece + 1]
    of_first = cut_streams(len(first_piece), warm_up=0, most=1)
    assert carried_nats(learner().model, first_piece, of_first, one.piece, learner()) == pytest.approx(
        carried_nats(one.model, first_piece, of_first, one.piece), rel=1e-6
    )  # it learns from what it has scored
    learned = carried_nats(one.model, TEXT, streams, one.piece, one)
    assert learned < 0.95 * as_it_is

    two, three = learner(), learner()
    words, bits = encode(two.model, TEXT, two)
    assert bits == pytest.approx((learned + np.log(256)) / np.log(2), rel=1e-4)
    assert np.array_equal(decode(three.model, words, len(TEXT), three), TEXT)
    for name, weight in two.model.state_dict().items():
        assert torch.equal(weight, three.model.state_dict()[name])
