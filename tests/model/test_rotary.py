import pytest
import torch

from model.rotary import Rotary, rotate


@pytest.mark.parametrize("xpos", [False, True])
def test_scores_depend_on_distances_only(xpos):
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 40, 8), torch.randn(1, 1, 40, 8)
    rotary = Rotary(8, xpos)

    def scores(first):
        q_table, k_table = rotary(torch.arange(first, first + 40))
        return rotate(q, q_table) @ rotate(k, k_table).transpose(-1, -2)

    torch.testing.assert_close(scores(0), scores(300), atol=1e-4, rtol=1e-4)
    unturned = q @ k.transpose(-1, -2)
    assert not torch.allclose(scores(0), unturned, atol=0.1)
    torch.testing.assert_close(scores(0).diagonal(dim1=-2, dim2=-1), unturned.diagonal(dim1=-2, dim2=-1))


def test_xpos_fades_with_distance():
    ones = torch.ones(1, 1, 1000, 8)
    q_table, k_table = Rotary(8, xpos=True)(torch.arange(1000))
    plain, _ = Rotary(8)(torch.arange(1000))
    faded = rotate(ones, q_table)[0, 0, -1] @ rotate(ones, k_table)[0, 0].T
    turned = rotate(ones, plain)[0, 0, -1] @ rotate(ones, plain)[0, 0].T
    assert faded[0].abs() < turned[0].abs()


def test_low_precision_stays():
    table, _ = Rotary(8)(torch.arange(3))
    assert rotate(torch.ones(1, 1, 3, 8, dtype=torch.bfloat16), table).dtype == torch.bfloat16
