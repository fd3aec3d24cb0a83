import pytest
import torch
from torch import nn

from model.generation.prepare import FEW_ROWS, SlicedLinear, prepare_for_generation
from tests.model.test_transformer import build

SMALL = {"dim": 8, "heads": 2, "dim_head": 4, "depth": 2, "seq_len": 16, "hierarchies": (1, 4)}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("compress", ["conv", "mean", "attention"])
def test_a_prepared_model_gives_the_same_logits_and_bytes(threads, count, compress):
    threads(count)
    model = build(SMALL | {"compress_type": compress})
    ids, parameters = torch.randint(0, 256, (2, 40)), sum(p.numel() for p in model.parameters())
    logits, drawn = model(ids), model.generate(ids, 40, temperature=0)
    prepare_for_generation(model)
    prepare_for_generation(model)
    assert any(isinstance(module, SlicedLinear) for module in model.modules())
    assert any(not p.is_contiguous() for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == parameters  # no weight is stored twice
    torch.testing.assert_close(model(ids), logits)
    assert torch.equal(model.generate(ids, 40, temperature=0), drawn)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 6), (3, 1, 6), (2, 5, 6), (2, FEW_ROWS, 6)])
def test_slices_equal_the_linear_map(threads, bias, shape):
    threads(2)
    linear, x = nn.Linear(6, 10, bias=bias), torch.randn(shape)
    sliced = SlicedLinear(linear)
    assert sliced.slices.shape == (2, 6, 5)
    torch.testing.assert_close(sliced(x), linear(x))
