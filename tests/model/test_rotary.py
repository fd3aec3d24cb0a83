"""Rotary positions: only distances matter."""

import pytest
import torch

from model.rotary import Rotary, rotate


def scores(q, k, positions, xpos):
    """Scores of queries and keys (1 1 n 8), rotated together as attention rotates them."""
    rotated = rotate(torch.cat((q, k), dim=1), Rotary(1, 1, 8, xpos)(positions[None]))
    return rotated[0, 0] @ rotated[0, 1].T


@pytest.mark.parametrize("xpos", [False, True])
def test_scores_depend_on_distances_only(xpos):
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 40, 8), torch.randn(1, 1, 40, 8)
    here = scores(q, k, torch.arange(40), xpos)
    torch.testing.assert_close(here, scores(q, k, torch.arange(300, 340), xpos), atol=1e-4, rtol=1e-4)
    plain = (q @ k.transpose(-1, -2))[0, 0]
    assert not torch.allclose(here, plain, atol=0.1)
    torch.testing.assert_close(here.diagonal(), plain.diagonal())


def test_xpos_scores_decay_with_distance():
    ones = torch.ones(1, 1, 1000, 8)
    faded, rotated = (scores(ones, ones, torch.arange(1000), xpos)[-1] for xpos in (True, False))
    assert faded[0].abs() < rotated[0].abs()


def test_rotation_keeps_the_dtype():
    table = Rotary(1, 1, 8)(torch.arange(3)[None])
    assert rotate(torch.ones(1, 2, 3, 8, dtype=torch.bfloat16), table).dtype == torch.bfloat16


@pytest.mark.parametrize("xpos", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_model_keeps_the_precision_of_its_positions(dtype, xpos):
    far = torch.arange(100_000, 100_040)[None]
    table = Rotary(1, 1, 64, xpos)(far, origin=100_000)
    torch.testing.assert_close(Rotary(1, 1, 64, xpos).to(dtype)(far, origin=100_000).float(), table, rtol=0, atol=1e-6)
