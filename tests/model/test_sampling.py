import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.sampling import check_sampling, filter_logits

LOGITS = st.lists(st.floats(-8, 8), min_size=2, max_size=12, unique=True).map(lambda x: torch.tensor([x]))


def kept(logits, **options):
    return set(filter_logits(logits, **options)[0].isfinite().nonzero().flatten().tolist())


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
    assert torch.equal(filter_logits(logits), logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": torch.zeros(1, 0)}, "prompt: got"),
        ({"length": -1}, "length: got -1"),
        ({"temperature": -0.5}, "temperature: got -0.5"),
        ({"top_k": 0}, "top_k: got 0"),
        ({"top_p": 0.0}, "top_p: got 0.0"),
        ({"min_p": 1.5}, "min_p: got 1.5"),
    ],
)
def test_illegal_options_are_named(options, message):
    legal = {"prompt": torch.zeros(1, 1), "length": 1, "temperature": 1.0, "top_k": None, "top_p": None, "min_p": None}
    check_sampling(**legal)
    with pytest.raises(ValueError, match=message):
        check_sampling(**legal | options)
