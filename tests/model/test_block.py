import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import Cache
from model.block import token_shift
from model.rotary import Rotary, rotate


def scores(q, k, positions, xpos):
    """Of queries and keys (1 1 n 8) turned together, as attention turns them."""
    turned = rotate(torch.cat((q, k), dim=1), Rotary(1, 1, 8, xpos)(positions))
    return turned[0, 0] @ turned[0, 1].T


@pytest.mark.parametrize("xpos", [False, True])
def test_scores_depend_on_distances_only(xpos):
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 40, 8), torch.randn(1, 1, 40, 8)
    here = scores(q, k, torch.arange(40), xpos)
    torch.testing.assert_close(here, scores(q, k, torch.arange(300, 340), xpos), atol=1e-4, rtol=1e-4)
    unturned = (q @ k.transpose(-1, -2))[0, 0]
    assert not torch.allclose(here, unturned, atol=0.1)
    torch.testing.assert_close(here.diagonal(), unturned.diagonal())


def test_xpos_fades_with_distance():
    ones = torch.ones(1, 1, 1000, 8)
    faded, turned = (scores(ones, ones, torch.arange(1000), xpos)[-1] for xpos in (True, False))
    assert faded[0].abs() < turned[0].abs()


def test_low_precision_stays():
    table = Rotary(1, 1, 8)(torch.arange(3))
    assert rotate(torch.ones(1, 2, 3, 8, dtype=torch.bfloat16), table).dtype == torch.bfloat16


def test_token_shift_takes_half_from_before_in_the_same_chain():
    x = torch.arange(1.0, 13.0).reshape(1, 3, 4)
    shifted = token_shift(x, 1)
    assert torch.equal(shifted[..., :2], x[..., :2])
    assert torch.equal(shifted[0, :, 2:], torch.tensor([[0.0, 0.0], [3.0, 4.0], [7.0, 8.0]]))
    assert torch.equal(token_shift(x, 2)[0, :, 2:], torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]]))


@given(n=st.integers(1, 9), first=st.integers(1, 9), chains=st.sampled_from([1, 2, 4]))
def test_token_shift_goes_on_where_its_cache_left_off(n, first, chains):
    x, cache = torch.randn(2, first + n, 4), Cache()
    pieces = [token_shift(piece, chains, cache) for piece in x.split([first] + [1] * n, dim=1)]
    assert torch.equal(torch.cat(pieces, dim=1), token_shift(x, chains))
