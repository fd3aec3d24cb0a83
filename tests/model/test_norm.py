"""RMSNorm against PyTorch's, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from model.norm import RMSNorm


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    dim=st.integers(1, 40),
    eps=st.sampled_from([None, 1e-3]),
    scale=st.sampled_from([0.0, 1e-4, 1.0, 1e3]),
)
def test_values_and_gradients_are_those_of_pytorch(shape, dim, eps, scale):
    torch.manual_seed(0)
    norm = RMSNorm(dim, eps=eps).double()
    torch.nn.init.normal_(norm.weight)
    x = (scale * torch.randn(*shape, dim, dtype=torch.float64)).requires_grad_()
    upstream = torch.randn_like(x)
    ours, theirs = norm(x), F.rms_norm(x, (dim,), norm.weight, eps)
    torch.testing.assert_close(ours, theirs)
    expected = torch.autograd.grad(theirs, (x, norm.weight), upstream)
    torch.testing.assert_close(torch.autograd.grad(ours, (x, norm.weight), upstream), expected)


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_of_any_layout(transposed):
    norm = RMSNorm(6).double()
    x = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)
    turned = x.transpose(0, 1) if transposed else x
    assert torch.autograd.gradcheck(lambda turned, weight: F.silu(norm(turned)), (turned, norm.weight))


def test_autocast_leaves_it_in_float32():
    norm, x = RMSNorm(16), torch.randn(3, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, F.rms_norm(x, (16,), norm.weight))
    (expected,) = torch.autograd.grad(F.rms_norm(x, (16,), norm.weight).sum(), x)
    torch.testing.assert_close(grad, expected)
