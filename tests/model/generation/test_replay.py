"""Static steps, which a GPU records, run without recording; tests/gpu replays them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import Cache
from model.generation.cache import tensor_slots
from model.generation.operations import FEW_KEYS
from model.generation.prepare import prepare_for_generation
from model.generation.replay import StepRecorder
from model.generation.static import make_static, read_next_bytes, static_step
from tests.model.generation.test_cache import in_pieces
from tests.model.strategies import model_configs, random_ids
from tests.model.test_transformer import build

WORDS = {"dim": 8, "heads": 1, "dim_head": 4, "depth": 1, "seq_len": 24, "hierarchies": (1, 4), "ngrams": (2, 3)}
WORDS |= {"matches": (2, 5), "word_matches": (0, 1, 2), "matches_per_context": 2}


def check_static_steps(model, ids, prefill):
    """Static steps give the logits of ordinary ones, and every tensor of the cache keeps its address."""
    usual, static, places = Cache(), Cache(), None
    with torch.inference_mode():
        for cache in (usual, static):
            model(ids[:, :prefill], cache=cache)
        make_static(model, static)
        for t in range(prefill, ids.shape[1]):
            read_next_bytes(model, ids[:, t : t + 1], static)
            logits = static_step(model, ids[:, t : t + 1], static)
            torch.testing.assert_close(logits, model(ids[:, t : t + 1], cache=usual), atol=1e-5, rtol=1e-5)
            now = [holder[key].data_ptr() for holder, key in tensor_slots(static)]
            assert places in (None, now)
            places = now
    assert static.length == usual.length == int(static.position) and usual.position is None


@settings(max_examples=60)
@given(config=model_configs(rotary_xpos=False), data=st.data())
def test_static_steps_equal_ordinary_steps(config, data):
    total = 3 * config["seq_len"]
    check_static_steps(build(config), random_ids(config, 2, total), data.draw(st.integers(1, total)))


@pytest.mark.parametrize("prefill", [1, 20, 71])
def test_static_steps_find_the_same_matches(prefill):
    check_static_steps(build(WORDS), torch.tensor(list(b"ab .A\xc3\0"))[torch.randint(0, 7, (8, 90))], prefill)


SANDWICH = {"depth": ((0, 2), (1,)), "compress_from": "states", "merge_layers": (1,), "merge_type": "linear"}


@pytest.mark.parametrize("levels", [{}, {"boundaries": "words", **SANDWICH}], ids=["strides", "words"])
def test_compiled_steps_equal_a_full_pass(levels):
    model, ids = build(WORDS | levels), torch.tensor(list(b"ab .A\xc3\0"))[torch.randint(0, 7, (2, 72))]
    with torch.inference_mode():
        full = model(ids)
        prepare_for_generation(model, compiled=True)
    prepare_for_generation(model, compiled=True)
    assert isinstance(model.forward, StepRecorder)
    for rows, prefill, known in ((2, 5, 2), (2, 30, 2), (1, 7, 4)):  # another text reuses the compiled step
        torch.testing.assert_close(in_pieces(model, ids[:rows], prefill), full[:rows], atol=1e-4, rtol=1e-4)
        assert len(model.forward.compiled) == known  # with and without a unit of level 4x, for each number of rows
    loss, _ = model(ids, return_loss=True)
    loss.backward()  # training still works


def test_compiled_steps_attend_to_many_keys():
    """Beyond FEW_KEYS, PyTorch's attention takes the place of loops."""
    model = build(WORDS | {"hierarchies": 1, "seq_len": 2 * FEW_KEYS})
    ids = torch.randint(0, 256, (1, FEW_KEYS + 20))
    with torch.inference_mode():
        full = model(ids)
        prepare_for_generation(model, compiled=True)
        torch.testing.assert_close(in_pieces(model, ids, FEW_KEYS + 2), full, atol=1e-4, rtol=1e-4)
    assert model.forward.compiled


def test_models_with_xpos_are_not_recorded():
    model = build(WORDS | {"rotary_xpos": True})
    prepare_for_generation(model, compiled=True)
    model.generate(torch.zeros(1, 9, dtype=torch.long), 20)
    assert model.forward.compiled == {}
