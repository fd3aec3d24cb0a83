from copy import deepcopy
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

from model import HierarchicalTransformer
from training.config import TrainConfig
from training.optimizer import OPTIMIZERS, Muon, build_optimizer, orthogonal, param_groups

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
    hidden, linear, rest = ({names[p] for p in group} for group in (groups.hidden, groups.linear, groups.rest))
    assert sorted([*hidden, *linear, *rest]) == sorted(names.values())
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
