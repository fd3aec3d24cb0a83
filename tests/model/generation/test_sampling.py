from math import inf, lcm, nan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.generation.sampling import NOTHING, Rows, Sampling, reach, row_generators, within_reach
from model.generation.sampling_loops import draw, exponentials, filtered
from tests.model.strategies import model_configs, random_ids
from tests.model.test_transformer import build

SMALL = {"dim": 8, "heads": 1, "dim_head": 4, "depth": 1, "seq_len": 8}

LOGITS = st.lists(st.floats(-8, 8), min_size=2, max_size=12, unique=True).map(np.array)

# A random number below 1, with both ends of its range.
BELOW_1 = 1 - 2**-53
UNIFORM = st.sampled_from([0.0, BELOW_1]) | st.floats(0, BELOW_1)


def chances(logits, **options):
    """How likely each of logits (v) is, relative to the likeliest, and 0 for those that must not be drawn."""
    _, top_k, top_p, min_p, _ = Sampling(**options).options
    return filtered(logits - logits.max(), top_k, top_p, min_p)


def kept(logits, **options):
    return set(chances(logits, **options).nonzero()[0].tolist())


def softmax(logits):
    return torch.from_numpy(logits).softmax(-1).tolist()


def draw_one(logits, uniform, seen=False, **options):
    return draw(logits, np.full(logits.shape, seen), uniform, Sampling(**options).options)


@given(st.lists(st.floats(-700, 0) | st.floats(-1, 0), min_size=1, max_size=40).map(np.array))
def test_exponentials_are_those_of_numpy(x):
    np.testing.assert_allclose(exponentials(x), np.exp(x), rtol=1e-15)


def test_exponentials_of_the_largest_and_of_tiny_ones():
    assert exponentials(np.array([0.0, -0.0, -1e3, -1e300, -inf])).tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]


@given(LOGITS, st.integers(1, 15))
def test_top_k_keeps_the_k_likeliest(logits, k):
    heated = logits - logits.max()  # where numbers next to each other may be equal
    kth_largest = sorted(heated, reverse=True)[:k][-1]
    assert kept(logits, top_k=k) == {i for i, x in enumerate(heated) if x >= kth_largest}


@given(LOGITS, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_that_reach_p(logits, p):
    probs = softmax(logits)
    keep = kept(logits, top_p=p)
    least = min(probs[i] for i in keep)
    total = sum(probs[i] for i in keep)
    assert total >= p - 1e-9
    assert total - least < p + 1e-9
    assert all(probs[i] <= least for i in range(len(probs)) if i not in keep)


@given(LOGITS, st.floats(0, 1))
def test_min_p_is_relative_to_the_likeliest(logits, p):
    unfiltered = chances(logits)
    assert kept(logits, min_p=p) == {i for i, x in enumerate(unfiltered) if x >= p}


def test_without_options_nothing_is_filtered():
    logits = np.random.default_rng(0).normal(size=9)
    assert np.allclose(chances(logits) / chances(logits).sum(), softmax(logits), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prompt": torch.zeros(1, 0, dtype=torch.long)},
            "prompt: got the shapes [[0]], allowed: (b n), or a list of (n), with at",
        ),
        ({"length": -1}, "length: got -1"),
        ({"num_samples": 0}, "num_samples: got 0"),
        ({"generator": [torch.Generator()] * 2}, "generator: got 2 generators, allowed: one for each of the 1 rows"),
        ({"length": 1.5}, "length: got 1.5"),
        (
            {"prompt": torch.full((1, 1), 256)},
            "prompt: got torch.int64 from 256 to 256, allowed: whole numbers from 0 to",
        ),
        ({"prompt": torch.full((1, 1), -1)}, "prompt: got torch.int64 from -1 to -1"),
        ({"prompt": torch.zeros(1, 1)}, "prompt: got torch.float32"),
        *[({"temperature": value}, f"temperature: got {value}") for value in (-0.5, inf, nan, 1e300, 10**400, "hot")],
        *[({"top_k": value}, f"top_k: got {value}") for value in (0, -1, 2.5, inf, nan, "5")],
        *[({"top_p": value}, f"top_p: got {value}") for value in (0.0, -1, 1.5, inf, nan)],
        *[({"min_p": value}, f"min_p: got {value}") for value in (-0.1, 1.5, inf, nan)],
        *[({"repetition_penalty": x}, f"repetition_penalty: got {x}") for x in (0.0, -1, 1e-40, 1e300, inf, nan)],
        *[({"stop": value}, "stop: got ") for value in (10, "\n", (1.5,), (-1,))],
    ],
)
def test_illegal_options_are_named(options, message):
    arguments = {"prompt": torch.zeros(1, 1, dtype=torch.long), "length": 1} | options
    with pytest.raises(ValueError) as error:
        list(build(SMALL).stream(**arguments))
    assert str(error.value).startswith(message)


TINY = [5e-324, 1e-300, 1e-46, 1e-39]
EXTREME = [
    *[{"temperature": tiny} for tiny in TINY],
    {"temperature": 1e-39, "top_p": 0.5, "min_p": 0.5, "top_k": 3, "repetition_penalty": 1e30},
    {"top_p": 1e-300},
    {"top_k": 1, "min_p": 1},
    {"repetition_penalty": 1e-30},
]


@pytest.mark.parametrize("options", EXTREME, ids=str)
@given(logits=LOGITS, uniform=UNIFORM)
def test_in_the_limit_the_likeliest_is_drawn(options, logits, uniform):
    logits = np.abs(logits) + 1  # above 0, so that a repetition penalty for all keeps their order
    drawn = draw_one(logits, uniform, seen=True, **options)
    assert logits[drawn] == logits.max()  # several may have the same logit


@given(st.lists(st.floats(-8, 8) | st.just(-inf), min_size=2, max_size=12).filter(any), UNIFORM)
def test_a_token_is_drawn_if_the_number_lies_in_its_part(logits, uniform):
    """One without a chance is not drawn, even at both ends."""
    logits[0] = 0.0
    logits = np.array(logits)
    probabilities = softmax(logits)
    drawn = draw_one(logits, uniform)
    assert probabilities[drawn] > 0
    before = sum(probabilities[:drawn])
    assert before - 1e-12 <= uniform <= before + probabilities[drawn] + 1e-12


@given(LOGITS, UNIFORM)
def test_a_huge_temperature_gives_equal_chances(logits, uniform):
    assert draw_one(logits, uniform, temperature=1e30) == int(uniform * len(logits))


@pytest.mark.parametrize("broken", [nan, inf])
def test_a_model_with_broken_weights_is_told(broken):
    model = build(SMALL)
    torch.nn.init.constant_(model.to_logits.weight, broken)
    with pytest.raises(ValueError, match="the model's logits are not finite"):
        model.generate(torch.zeros(1, 1, dtype=torch.long), 1)


@settings(max_examples=100)
@given(config=model_configs(), extra=st.integers(0, 60), data=st.data())
def test_no_logit_depends_on_bytes_out_of_reach(config, extra, data):
    model = build(config)
    common = lcm(*(level.period for level in model.config.levels))
    whole = random_ids(config, reach(model.config) + common + extra)
    end = within_reach(whole, model.config)
    before = len(whole) - len(end)
    changed = torch.cat((random_ids(config, before), end))
    with torch.no_grad():
        expected, logits, of_end = (model(ids[None])[:, -1] for ids in (whole, changed, end))
    if "words" in config["boundaries"]:  # other bytes, another number of units, so positions differ by rounding
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    else:
        assert torch.equal(logits, expected)
    torch.testing.assert_close(of_end, expected, atol=1e-4, rtol=1e-4)
    assert before >= extra


def test_a_long_prompt_is_read_from_its_end_but_penalised_as_a_whole():
    model = build(SMALL | {"hierarchies": (1, 4)})
    passes = []
    model.register_forward_hook(lambda module, args, output: passes.append(args[0].shape[1]))
    prompt = torch.randint(97, 122, (5000,))
    prompt[0] = 7
    for use_cache in (True, False):
        assert model.generate([prompt, prompt[4:]], 9, use_cache=use_cache).shape == (2, 9)
    assert max(passes) < 300
    assert Rows([prompt], 9, Sampling(), model.config, None).seen[0].nonzero()[0][0] == 7


def test_streaming_gives_what_generate_returns():
    model, prompt = build(SMALL), torch.zeros(2, 3, dtype=torch.long)
    streamed = model.stream(prompt, 9, min_p=0.1, generator=torch.Generator().manual_seed(3))
    whole = model.generate(prompt, 9, min_p=0.1, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.stack(list(streamed), dim=1), whole)


def test_a_stop_token_ends_a_row_and_the_last_one_ends_all():
    model, prompt = build(SMALL | {"num_tokens": 6}), torch.zeros(4, 1, dtype=torch.long)
    new = model.generate(prompt, 500, stop=(2, 5), generator=torch.Generator().manual_seed(0))
    ends = [next(i for i, token in enumerate(row) if token in (2, 5)) for row in new.tolist()]
    assert max(ends) == new.shape[1] - 1 < 499
    for row, end in zip(new.tolist(), ends, strict=True):
        assert set(row[end:]) == {row[end]}


def test_a_repetition_penalty_makes_seen_tokens_less_likely():
    logits = np.array([2.0, -2.0, 1.5, -1.0])
    seen = np.array([True, True, False, False])
    penalised = Sampling(temperature=0, repetition_penalty=2.0)
    assert draw_one(logits, 0.0, temperature=0) == 0
    assert draw(logits, seen, 0.0, penalised.options) == 2
    numbers = np.random.default_rng(0).random(300)
    draws = [draw(logits, seen, number, Sampling(repetition_penalty=50.0).options) for number in numbers]
    assert draws.count(1) == 0 and draws.count(3) > 0


def draw_prompts(config, data) -> list[torch.Tensor]:
    """Prompts (n), or (1 n) as `to_ids` makes them."""
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4), label="prompt lengths")
    shape = data.draw(st.sampled_from([(), (1,)]), label="leading shape")
    return [random_ids(config, *shape, length) for length in lengths]


@settings(max_examples=60)
@given(config=model_configs(), length=st.integers(1, 15), temperature=st.sampled_from([0.0, 1.0]), data=st.data())
def test_prompts_of_different_lengths_get_what_each_gets_alone(config, length, temperature, data):
    model = build(config)
    prompts = draw_prompts(config, data)
    options = {"temperature": temperature, "repetition_penalty": 1.3}
    together = model.generate(prompts, length, generator=row_generators(5, len(prompts)), **options)
    for row, prompt, generator in zip(together, prompts, row_generators(5, len(prompts)), strict=True):
        alone = model.generate([prompt], length, generator=[generator], **options)
        assert torch.equal(alone[0], row)


@settings(max_examples=40)
@given(config=model_configs(), samples=st.integers(1, 4), temperature=st.sampled_from([0.0, 1.0]), data=st.data())
def test_samples_of_a_prompt_that_is_read_once_are_samples_drawn_alone(config, samples, temperature, data):
    model = build(config)
    prompts = draw_prompts(config, data)
    rows = len(prompts) * samples
    options = {"temperature": temperature, "top_k": 5}
    together = model.generate(prompts, 12, num_samples=samples, generator=row_generators(2, rows), **options)
    assert together.shape == (rows, 12)
    for i, generator in enumerate(row_generators(2, rows)):
        alone = model.generate([prompts[i // samples]], 12, generator=[generator], **options)
        assert torch.equal(alone[0], together[i])


def test_a_prompt_is_read_once_for_all_samples():
    model = build(SMALL)
    passes = []
    model.register_forward_hook(lambda module, args, output: passes.append(tuple(args[0].shape)))
    model.generate(torch.zeros(1, 7, dtype=torch.long), 3, num_samples=4)
    assert passes == [(1, 7), (4, 1), (4, 1)]


def test_a_stream_says_nothing_for_rows_in_their_prompt_or_past_their_end():
    model = build(SMALL)
    prompts = [torch.zeros(2, dtype=torch.long), torch.zeros(5, dtype=torch.long)]
    steps = torch.stack(list(model.stream(prompts, 4)), dim=1)
    assert (steps == NOTHING).tolist() == [[False] * 4 + [True] * 3, [True] * 3 + [False] * 4]


def test_rows_of_different_seeds_do_not_share_samples():
    states = {tuple(torch.rand(4, generator=g).tolist()) for seed in range(20) for g in row_generators(seed, 20)}
    assert len(states) == 400
    first = row_generators(3, 1)[0].initial_seed()
    assert first == torch.Generator().manual_seed(3).initial_seed()  # one sample is that of the plain seed
