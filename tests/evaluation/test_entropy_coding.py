"""A compressed text has the predicted size, and decompresses to the text."""

from math import log

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluate import verify
from evaluation.entropy_coding import STREAMS, decode, encode
from tests.model.test_transformer import build

CONFIG = {"dim": (8, 12), "heads": 2, "dim_head": 4, "depth": 1, "seq_len": 16}
CONFIG |= {"hierarchies": (1, 4), "window_sizes": (5, None)}
TEXT = np.concatenate([np.arange(256), np.random.default_rng(0).integers(0, 256, 700)]).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    return build(CONFIG)


@pytest.mark.parametrize("size", [1, 2, STREAMS - 1, STREAMS, 3 * STREAMS + 5, len(TEXT)])
def test_a_text_is_decoded_exactly_and_has_the_predicted_size(model, size):
    text = TEXT[-size:]
    words, bits = encode(model, text)
    assert words.dtype == np.uint32
    assert 32 * len(words) == pytest.approx(bits, rel=0.005, abs=64)  # the last word is only partly used
    assert decode(model, words, size).tolist() == text.tolist()

    expected_nats = 0.0
    for piece in np.array_split(text, min(STREAMS, size)):  # each stream in one pass, without a cache
        ids = torch.from_numpy(piece.astype(np.int64))[None]
        with torch.no_grad():
            nats = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="sum").item()
        expected_nats += log(256) + nats
    assert bits == pytest.approx(expected_nats / log(2), rel=1e-5)


def test_a_byte_with_almost_no_probability_is_coded():
    model = build(CONFIG)
    with torch.no_grad():
        model.to_logits.weight *= 1000
    words, bits = encode(model, TEXT)
    assert bits > 100 * len(TEXT)  # most bytes have less probability than the coder can represent
    assert decode(model, words, len(TEXT)).tolist() == TEXT.tolist()
    assert 32 * len(words) < 25 * len(TEXT)


def test_damaged_words_and_another_model_do_not_give_the_text(model):
    words, _ = encode(model, TEXT)
    damaged = words.copy()
    damaged[len(words) // 2] ^= 1 << 7
    other = build(CONFIG, seed=1)
    for decoder, received in ((model, damaged), (model, words[:-2]), (other, words)):
        try:
            decoded = decode(decoder, received, len(TEXT)).tolist()
        except ValueError as error:
            assert str(error).startswith("words: ")
        else:
            assert decoded != TEXT.tolist()


def test_a_model_that_is_not_deterministic_fails_the_verification():
    model = build(CONFIG | {"dropout": 0.5})
    assert verify(model, TEXT)["verified"]
    assert not verify(model.train(), TEXT)["verified"]
