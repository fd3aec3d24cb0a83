"""Dropout in bulk is dropout: elements are dropped independently, at the given rate, and the rest is scaled up."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.model.models import build
from training.dropout import RESOLUTION, BulkDropout, draw_dropout_in_bulk


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_the_given_share_is_dropped_and_the_rest_scaled_up(p, dtype):
    torch.manual_seed(0)
    n = 400_001  # not a multiple of four
    out = BulkDropout(p)(torch.ones(n, dtype=dtype))
    kept = out != 0
    deviation = (n * p * (1 - p)) ** 0.5
    assert abs(float((~kept).sum()) - n * p) < 5 * deviation
    assert out.dtype == dtype
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / (1 - round(p * RESOLUTION) / RESOLUTION)))


def test_elements_are_independent():
    torch.manual_seed(0)
    dropped = (BulkDropout(0.5)(torch.ones(1000, 512)) == 0).float()
    for apart in (1, 2, 3, 4, 8, 512):  # within one draw of 64 bits, and beyond
        flat = dropped.flatten()
        alike = float((flat[apart:] == flat[:-apart]).float().mean())
        assert abs(alike - 0.5) < 5 * 0.5 / len(flat) ** 0.5


def test_the_gradient_is_masked_and_scaled_as_the_value():
    torch.manual_seed(0)
    x = torch.randn(64, 33, requires_grad=True)
    out = BulkDropout(0.25)(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach() / x.detach())


def test_the_same_seed_drops_the_same():
    x = torch.randn(3, 5, 7)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(BulkDropout(0.5)(x))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_compiled_and_computed_again_it_drops_the_same():
    model = build(depth=1, dim=16, dropout=0.5).train()
    draw_dropout_in_bulk(model)
    ids, block = torch.randint(0, 256, (2, 17)), next(iter(model.levels[0].blocks.values()))
    plain, outcomes = block.forward, []
    compiled = torch.compile(plain, dynamic=False)
    again = [partial(checkpoint, forward, use_reentrant=False) for forward in (plain, compiled)]
    for forward in (plain, compiled, *again):
        block.forward = forward
        model.zero_grad()
        torch.manual_seed(0)
        loss = model(ids, return_loss=True)[0]
        loss.backward()
        outcomes.append([loss.detach(), *(weight.grad for weight in block.parameters())])
    for outcome in outcomes[1:]:
        torch.testing.assert_close(outcome, outcomes[0], rtol=1e-4, atol=1e-4)


def test_nothing_is_dropped_in_evaluation_or_at_zero():
    x = torch.randn(5, 3)
    assert torch.equal(BulkDropout(0.5).eval()(x), x)
    assert torch.equal(BulkDropout(0.0)(x), x)
    assert BulkDropout(0.5)(x[:0]).shape == (0, 3)


def test_almost_everything_may_be_dropped():
    torch.manual_seed(0)
    out = BulkDropout(1 - 1e-9)(torch.ones(100_000))
    assert out.isfinite().all()
    assert out.count_nonzero() < 20


def test_a_model_keeps_its_weights_and_their_names():
    model = build(depth=2, dim=16, dropout=0.5, ngrams=(2,), ngram_dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    draw_dropout_in_bulk(model)
    assert {type(module) for module in model.modules() if isinstance(module, nn.Dropout)} == {BulkDropout}
    torch.testing.assert_close(model.state_dict(), before, atol=0, rtol=0)  # names, too
    ids = torch.randint(0, 256, (1, 16))
    torch.manual_seed(0)
    first = model.train()(ids)
    assert not torch.equal(first, model(ids))  # another draw
    assert torch.equal(model.eval()(ids), model(ids))
