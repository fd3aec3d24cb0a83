import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.generation.sampling import Sampling
from tests.model.test_transformer import build

SMALL = {"dim": 8, "heads": 1, "dim_head": 4, "depth": 1, "seq_len": 8}

LOGITS = st.lists(st.floats(-8, 8), min_size=2, max_size=12, unique=True).map(lambda x: torch.tensor([x]))


def kept(logits, **options):
    return set(Sampling(**options).filter(logits)[0].isfinite().nonzero().flatten().tolist())


@given(LOGITS, st.integers(1, 15))
def test_top_k_keeps_the_k_likeliest(logits, k):
    likeliest = logits[0].sort(descending=True, stable=True).values[: min(k, logits.shape[1])]
    assert kept(logits, top_k=k) == {i for i, x in enumerate(logits[0]) if x >= likeliest[-1]}


@given(LOGITS, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_that_reach_p(logits, p):
    probs = logits.softmax(-1)[0]
    keep = kept(logits, top_p=p)
    total = probs[list(keep)].sum()
    assert total >= p - 1e-5
    assert total - probs[list(keep)].min() < p + 1e-5
    others = [float(probs[i]) for i in range(len(probs)) if i not in keep]
    assert not others or max(others) <= probs[list(keep)].min()


@given(LOGITS, st.floats(0, 1))
def test_min_p_is_relative_to_the_likeliest(logits, p):
    probs = logits.softmax(-1)[0]
    assert kept(logits, min_p=p) == {i for i, x in enumerate(probs) if x >= p * probs.max()}


def test_without_options_nothing_is_filtered():
    logits = torch.randn(2, 9)
    assert torch.equal(Sampling().filter(logits), logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": torch.zeros(1, 0, dtype=torch.long)}, r"prompt: got \[1, 0\], allowed: \(b n\) with at least"),
        ({"length": -1}, "length: got -1"),
        ({"temperature": -0.5}, "temperature: got -0.5"),
        ({"top_k": 0}, "top_k: got 0"),
        ({"top_p": 0.0}, "top_p: got 0.0"),
        ({"min_p": 1.5}, "min_p: got 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: got 0.0"),
    ],
)
def test_illegal_options_are_named(options, message):
    arguments = {"prompt": torch.zeros(1, 1, dtype=torch.long), "length": 1} | options
    with pytest.raises(ValueError, match=message):
        list(build(SMALL).stream(**arguments))


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


def test_a_repetition_penalty_lowers_what_was_seen():
    logits = torch.tensor([[2.0, -2.0, 1.5, -1.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert Sampling(temperature=0).draw(logits, seen, None).item() == 0
    assert Sampling(temperature=0, repetition_penalty=2.0).draw(logits, seen, None).item() == 2
    draws = torch.cat([Sampling(repetition_penalty=50.0).draw(logits, seen, None) for _ in range(300)])
    assert (draws == 1).sum() == 0
