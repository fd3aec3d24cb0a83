"""Token shift, whole and in pieces."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from model.block import token_shift


def test_token_shift_takes_half_from_the_token_before_in_the_same_chain():
    x = torch.arange(1.0, 13.0).reshape(1, 3, 4)
    shifted, _ = token_shift(x, 1)
    assert torch.equal(shifted[..., :2], x[..., :2])
    assert torch.equal(shifted[0, :, 2:], torch.tensor([[0.0, 0.0], [3.0, 4.0], [7.0, 8.0]]))
    assert torch.equal(token_shift(x, 2)[0][0, :, 2:], torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]]))


@given(n=st.integers(1, 9), first=st.integers(1, 9), chains=st.sampled_from([1, 2, 4]))
def test_token_shift_in_pieces_equals_one_pass(n, first, chains):
    x = torch.randn(2, first + n, 4)
    pieces, past = [], None
    for piece in x.split([first] + [1] * n, dim=1):
        shifted, past = token_shift(piece, chains, past)
        pieces.append(shifted)
    whole, _ = token_shift(x, chains)
    assert torch.equal(torch.cat(pieces, dim=1), whole)
