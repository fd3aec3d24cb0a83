from copy import deepcopy
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

from model import HierarchicalTransformer
from model.tables import HashTables
from training.config import TrainConfig
from training.optimizer import (
    OPTIMIZERS,
    TABLE_RATE,
    Muon,
    RowwiseRMSprop,
    build_optimizer,
    orthogonal,
    param_groups,
    parameters_but_tables,
)

COEFFICIENTS = (3.4445, -4.775, 2.0315)  # the default of torch.optim.Muon


def test_muon_equals_pytorch_s_for_any_mix_of_shapes():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in [(8, 24), (24, 8), (8, 24), (16, 16), (8, 24)]]
    theirs = deepcopy(ours)
    pairs = [
        (Muon([{"params": ours, "weight_decay": 0.3}], lr=0.02), ours),
        (torch.optim.Muon(theirs, lr=0.02, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"), theirs),
    ]
    for step in range(4):
        grads = [torch.randn_like(p) for p in ours]
        for optimizer, params in pairs:
            for p, grad in zip(params, grads, strict=True):
                p.grad = None if step == 1 and p.shape == (16, 16) else grad.clone()
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=1e-3, rtol=1e-3)  # PyTorch's rounds to bfloat16 on the way
    ours_saved, theirs_saved = (optimizer.state_dict()["state"] for optimizer, _ in pairs)
    torch.testing.assert_close(ours_saved, theirs_saved)  # so each can load the state of the other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 16, 48), (2, 48, 16)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape, dtype):
    torch.manual_seed(0)
    out = orthogonal(torch.randn(shape, dtype=dtype), COEFFICIENTS, 5, 1e-7)
    assert out.shape == shape and out.dtype == dtype
    values = torch.linalg.svdvals(out.float())
    assert values.max() < 1.4 and values.mean() > 0.7


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 16, 48), (2, 48, 16), (1, 8, 64)])
def test_orthogonal_is_pytorch_s_polynomial_of_the_singular_values(shape, steps):
    """Even if they spread over five orders of magnitude, as those of gradients do."""
    torch.manual_seed(0)
    u, values, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    spread = values * torch.logspace(0, -5, values.shape[1], dtype=torch.float64)
    out = orthogonal(((u * spread[:, None]) @ v).float(), COEFFICIENTS, steps, 1e-7)

    a, b, c = COEFFICIENTS
    expected = spread / spread.norm(dim=1, keepdim=True)
    for _ in range(steps):
        expected = a * expected + b * expected**3 + c * expected**5
    torch.testing.assert_close(out.double(), (u * expected[:, None]) @ v, atol=2e-3, rtol=0)


def test_a_gradient_of_zeros_stays_zero():
    for dtype in (torch.float32, torch.bfloat16):
        assert not orthogonal(torch.zeros(2, 16, 48, dtype=dtype), COEFFICIENTS, 5, 1e-7).any()


def test_every_parameter_is_in_one_group_by_its_module():
    weights = {"recon_loss_weight": 0.1, "next_latent_loss_weight": 0.1}
    model = HierarchicalTransformer(
        dim=16, depth=2, heads=2, dim_head=8, seq_len=32, hierarchies=(1, 4), ngrams=(2,), matches=(3,), **weights
    )
    groups = param_groups(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    every = (groups.hidden, groups.linear, groups.tables, groups.rest)
    hidden, linear, tables, rest = ({names[p] for p in group} for group in every)
    assert sorted([*hidden, *linear, *tables, *rest]) == sorted(names.values())
    assert tables == {"embedding.ngram_emb.weight"}  # matches read most rows of theirs in each step
    assert set(names) - set(parameters_but_tables(model)) == set(groups.tables)
    assert all(name.startswith(("levels.", "merges.")) and name.endswith(".weight") for name in hidden)
    assert "to_logits.weight" in linear and any(name.startswith("losses.") for name in linear)
    assert not any(name.startswith(("levels.", "merges.")) for name in linear)
    assert all(model.get_parameter(name).dim() == 2 for name in hidden | linear)
    assert all(p.dim() < 2 or "emb" in names[p] or "conv" in names[p] for p in groups.rest)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_its_name_in_the_config_and_lowers_a_loss(name):
    assert get_args(get_type_hints(TrainConfig)["optimizer"]) == tuple(OPTIMIZERS)
    torch.manual_seed(0)
    model = HierarchicalTransformer(dim=16, depth=1, heads=2, dim_head=8, seq_len=32)
    optimizer = build_optimizer(model, TrainConfig(optimizer=name, learning_rate=1e-2))
    ids, losses = torch.randint(0, 256, (2, 33)), []
    for _ in range(5):
        loss, _ = model(ids, return_loss=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("passes", [1, 3])
def test_a_sparse_gradient_of_a_table_steps_as_a_dense_one_does(passes):
    torch.manual_seed(0)
    tables = [HashTables(3, 20, 8), HashTables(3, 20, 8)]
    tables[1].load_state_dict(tables[0].state_dict())
    tables[0].sparse = True
    optimizers = [RowwiseRMSprop([{"params": list(each.parameters())}], lr=0.01, beta=0.9) for each in tables]
    for _ in range(6):
        batches = [(torch.randint(0, 20, (2, 5, 3)), torch.randn(2, 5, 8)) for _ in range(passes)]
        for each, optimizer in zip(tables, optimizers, strict=True):
            for rows, grad in batches:
                each.sum_of_rows(rows).backward(grad)
            assert each.weight.grad.is_sparse == each.sparse
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(tables[0].weight, tables[1].weight)
    states = [optimizer.state[each.weight]["mean_square"] for each, optimizer in zip(tables, optimizers, strict=True)]
    torch.testing.assert_close(*states)


def test_a_row_of_a_table_moves_only_in_steps_that_read_it_and_then_by_the_rate():
    """In the first step that reads it by a root mean square of the rate itself, as that of a running average is g."""
    table = HashTables(1, 10, 4)
    table.sparse = True
    optimizer = RowwiseRMSprop([{"params": [table.weight]}], lr=0.01, beta=0.9)
    squares, expected = {}, table.weight.detach().clone()
    for step, row in enumerate([3, 5, 3, 3, 7]):
        grad = torch.full((1, 1, 4), 10.0**step) * torch.tensor([1.0, -1.0, 1.0, 1.0])
        table.sum_of_rows(torch.tensor([[[row]]])).backward(grad)
        optimizer.step()
        optimizer.zero_grad()
        square = 100.0**step
        squares[row] = square if row not in squares else 0.9 * squares[row] + 0.1 * square
        expected[row] -= 0.01 * TABLE_RATE * grad[0, 0] / squares[row] ** 0.5
        torch.testing.assert_close(table.weight.detach(), expected)
