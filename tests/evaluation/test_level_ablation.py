"""evaluation/level_ablation.py: a level that is left out says its mean to all, and is back afterwards."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.level_ablation import averaging, levels_to_leave_out, without
from model import HierarchicalTransformer
from model.levels import align
from tests.model.models import build

SHAPES = {
    "two levels": {"hierarchies": (1, 4), "dim": (16, 24)},
    "three levels, coarse first": {"hierarchies": (4, 1, 8), "dim": (24, 16, 12), "hierarchical_stride": (2, 1, 8)},
    "merged into all": {"hierarchies": (1, 4), "dim": (16, 24), "hierarchy_merge_all": True},
    "predicted from all": {"hierarchies": (1, 4), "dim": (16, 24), "predict_use_all_hierarchy": True},
}
IDS = torch.randint(256, (3, 30), generator=torch.Generator().manual_seed(1))


def on_paper(model: HierarchicalTransformer, means: dict, replaced: int | None) -> Tensor:
    """Logits (b n v) by merges and a head as they are on paper. What each level says, normed, goes into `means` on
    average, or, of the replaced level, comes out of it."""

    def heard(key, i, part):
        if i == replaced:
            return means[key, i].expand_as(part)
        if replaced is None:
            means[key, i] = part.mean(dim=(0, 1))
        return part

    def merged(merge, tokens, n, cache=None):
        x = torch.cat([align(tokens[i], s, merge.stride, n) for i, s in enumerate(merge.strides)], dim=-1)
        x = F.rms_norm(x, x.shape[-1:], merge.norm.weight, merge.norm.eps).split(merge.dims, dim=-1)
        x = merge.to_out(F.silu(merge.to_hidden(torch.cat([heard(merge, i, part) for i, part in enumerate(x)], -1))))
        updates = dict(zip(merge.targets, x.split(merge.dims_out, dim=-1), strict=True))
        return {
            i: t + align(updates[i], merge.stride, merge.strides[i], n) if i in updates else t
            for i, t in tokens.items()
        }

    for merge in model.merges.values():
        merge.forward = partial(merged, merge)
    outputs = model.embed(IDS)
    for merge in model.merges.values():
        del merge.forward
    outputs = [align(heard("head", i, outputs[str(i)]), model.levels[i].stride, 1, IDS.shape[1]) for i in model.heads]
    return model.to_logits(torch.cat(outputs, dim=-1))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_a_level_that_is_left_out_says_its_mean(shape):
    model, expected_means = build(depth=2, **shape), {}
    before, whole = {name: p.clone() for name, p in model.state_dict().items()}, model(IDS)
    torch.testing.assert_close(on_paper(model, expected_means, None), whole, atol=1e-4, rtol=1e-4)
    with averaging(model) as means:
        model(IDS[:2])
        model(IDS[2:])
    levels = levels_to_leave_out(model)
    assert levels == [
        i for i in range(len(model.levels)) if model.config.predict_use_all_hierarchy or i not in model.heads
    ]
    for i in levels:
        with without(model, i, means):
            left_out = model(IDS)
        assert (left_out - whole).abs().max() > 0.01
        torch.testing.assert_close(left_out, on_paper(model, expected_means, i), atol=1e-4, rtol=1e-4)

        with pytest.raises(KeyError), without(model, i, means):
            raise KeyError
        assert torch.equal(model(IDS), whole)  # all is as it was
        assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


@torch.no_grad()
def test_a_level_that_nothing_listens_to_adds_exactly_nothing():
    model = build(depth=2, hierarchies=(1, 4), dim=(16, 24))
    for merge in model.merges.values():
        merge.to_hidden.weight[:, 16:] = 0
    whole = model(IDS)
    with averaging(model) as means:
        model(IDS)
    with without(model, 1, means):
        assert torch.equal(model(IDS), whole)
