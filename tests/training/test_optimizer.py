from copy import deepcopy

import pytest
import torch
from torch import nn

from training.optimizer import Muon, orthogonal


def test_muon_is_pytorch_s_for_matrices_of_one_shape_or_many():
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
        torch.testing.assert_close(p, q, atol=1e-3, rtol=1e-3)  # bfloat16 lies between
    ours_saved, theirs_saved = (optimizer.state_dict()["state"] for optimizer, _ in pairs)
    torch.testing.assert_close(ours_saved, theirs_saved)  # each goes on from what the other one kept


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 16, 48), (2, 48, 16)])
def test_singular_values_come_close_to_one(shape):
    torch.manual_seed(0)
    out = orthogonal(torch.randn(shape), (3.4445, -4.775, 2.0315), 5, 1e-7)
    assert out.shape == shape and out.dtype == torch.bfloat16
    values = torch.linalg.svdvals(out.float())
    assert values.max() < 1.4 and values.mean() > 0.7
