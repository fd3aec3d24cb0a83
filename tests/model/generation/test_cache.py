import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model import Cache
from model.generation.cache import tensor_slots
from tests.model.strategies import model_configs, random_ids
from tests.model.test_transformer import build


def in_pieces(model, ids, prefill):
    """Logits of ids (b n) with a cache: the first `prefill` bytes at once, then byte by byte."""
    cache = Cache()
    with torch.inference_mode():
        pieces = [model(ids[:, :prefill], cache=cache)]
        pieces += [model(ids[:, t : t + 1], cache=cache) for t in range(prefill, ids.shape[1])]
    return torch.cat(pieces, dim=1)


@settings(max_examples=200)
@given(config=model_configs(), data=st.data())
def test_cached_logits_equal_a_full_pass(config, data):
    model = build(config)
    total = 3 * config["seq_len"]
    prefill = data.draw(st.integers(1, total), label="prefill")
    ids = random_ids(config, 2, total)
    with torch.inference_mode():
        full = model(ids)
    torch.testing.assert_close(in_pieces(model, ids, prefill), full, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prefill", [1, 20, 71])
def test_word_matches_from_the_cache_equal_those_of_a_full_pass(prefill):
    lookups = {"matches": (2,), "word_matches": (0, 1, 2), "matches_per_context": 2}
    model = build({"dim": 8, "heads": 1, "dim_head": 4, "depth": 1, "seq_len": 24} | lookups)
    ids = torch.tensor(list(b"ab .A\xc3"))[torch.randint(0, 6, (8, 72))]
    with torch.inference_mode():
        full = model(ids)
        pieces = in_pieces(model, ids, prefill)
        nn.init.zeros_(model.embedding.match_emb.weight[2 * 257 :])
        assert not torch.equal(model(ids), full)  # some word matched
    torch.testing.assert_close(pieces, full, atol=1e-4, rtol=1e-4)


@settings(max_examples=20)
@given(config=model_configs(), length=st.integers(1, 40))
def test_generation_is_the_same_without_a_cache(config, length):
    model = build(config)
    prompt = random_ids(config, 3, 4)
    one, other = (
        model.generate(prompt, length, use_cache=flag, generator=torch.Generator().manual_seed(0))
        for flag in (True, False)
    )
    assert torch.equal(one, other)


def test_xpos_does_not_overflow_in_long_texts():
    model = build({"dim": 8, "heads": 1, "dim_head": 4, "depth": 1, "seq_len": 8, "rotary_xpos": True})
    cache = Cache()
    ids = torch.randint(0, 256, (1, 9000))
    with torch.inference_mode():
        model(ids[:, :1], cache=cache)
        for t in range(1, 9000):
            logits = model(ids[:, t : t + 1], cache=cache)
        fresh = model(ids[:, -40:])  # more bytes than the model can see
    assert cache.levels[0].xpos_origin > 4000
    torch.testing.assert_close(logits[:, -1], fresh[:, -1], atol=1e-4, rtol=1e-4)


@settings(max_examples=80)
@given(config=model_configs(), data=st.data())
def test_several_bytes_after_a_cache_have_the_logits_of_a_full_pass(config, data):
    """In any order with single bytes, as long as several begin where no unit is cut in two."""
    model = build(config)
    period = model.config.period
    total = 3 * max(period, config["seq_len"]) + data.draw(st.integers(0, 5), label="more")
    ids = random_ids(config, 2, total)
    cache, logits, at = Cache(), [], 0
    with torch.inference_mode():
        while at < total:
            step = 1
            if at % period == 0:
                step = data.draw(st.sampled_from([1, min(period, 8), period, 2 * period, period + 1]), label="bytes")
            logits.append(model(ids[:, at : at + step], cache=cache))
            at += step
        full = model(ids)
    torch.testing.assert_close(torch.cat(logits, dim=1), full, atol=1e-4, rtol=1e-4)


@settings(max_examples=60)
@given(config=model_configs(), n=st.integers(2, 60))
def test_a_cache_keeps_no_more_memory_than_its_tensors_have(config, n):
    model, cache = build(config), Cache()
    with torch.inference_mode():
        model(random_ids(config, 2, n), cache=cache)
    tensors = [holder[key] for holder, key in tensor_slots(cache)]
    assert sum(t.untyped_storage().nbytes() for t in tensors) == sum(t.nbytes for t in tensors)


def test_several_bytes_begin_where_no_unit_is_cut_in_two():
    model = build({"dim": 8, "heads": 1, "dim_head": 4, "depth": 1, "seq_len": 8, "hierarchies": (1, 4)})
    cache = Cache()
    model(torch.zeros(1, 3, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="got 2 bytes a row, allowed: 1 after 3 bytes, which are no multiple of 4"):
        model(torch.zeros(1, 2, dtype=torch.long), cache=cache)
    model(torch.zeros(1, 1, dtype=torch.long), cache=cache)
    assert model(torch.zeros(1, 2, dtype=torch.long), cache=cache).shape[1] == 2


@settings(max_examples=60)
@given(config=model_configs(), data=st.data())
def test_a_copy_and_its_original_do_not_change_each_other(config, data):
    model = build(config)
    ids = random_ids(config, 2, 30)
    prefill = data.draw(st.integers(1, 20), label="prefill")
    with torch.inference_mode():
        original = Cache()
        model(ids[:, :prefill], cache=original)
        copy = original.copy()
        other = random_ids(config, 2, 11)
        for t in range(10):  # the copy reads another text in between
            model(other[:, t : t + 1], cache=copy)
        assert original.length == prefill and copy.length == prefill + 10
        steps = [model(ids[:, t : t + 1], cache=original) for t in range(prefill, 30)]
        last_of_copy = model(other[:, 10:], cache=copy)
        full = model(ids)
        full_of_copy = model(torch.cat((ids[:, :prefill], other), dim=1))
    torch.testing.assert_close(torch.cat(steps, dim=1), full[:, prefill:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last_of_copy[:, -1], full_of_copy[:, -1], atol=1e-4, rtol=1e-4)


@settings(max_examples=60)
@given(config=model_configs(), rows=st.integers(1, 3), data=st.data())
def test_expanded_rows_continue_independently(config, rows, data):
    model = build(config)
    prefill = data.draw(st.integers(1, 20), label="prefill")
    prompts = random_ids(config, 2, prefill)
    new = random_ids(config, 2 * rows, 12)
    with torch.inference_mode():
        cache = Cache()
        model(prompts, cache=cache)
        expanded = cache.expand(rows)
        steps = [model(new[:, t : t + 1], cache=expanded) for t in range(12)]
        full = model(torch.cat((prompts.repeat_interleave(rows, dim=0), new), dim=1))
    torch.testing.assert_close(torch.cat(steps, dim=1), full[:, prefill:], atol=1e-4, rtol=1e-4)


def test_a_new_cache_is_empty_and_counts_its_bytes():
    model = build({"dim": 8, "heads": 1, "dim_head": 4, "depth": 1, "seq_len": 8})
    cache = Cache()
    assert cache.is_empty
    model(torch.zeros(1, 3, dtype=torch.long), cache=cache)
    assert not cache.is_empty and cache.length == cache.offset == 3
