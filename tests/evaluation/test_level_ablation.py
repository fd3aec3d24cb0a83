"""A level that is replaced passes its mean on, and is restored afterwards."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.level_ablation import level_replaced_by_mean, measure_means, removable_levels
from model import HierarchicalTransformer
from model.merge import LinearMerge
from model.segments import align
from tests.model.models import build

SHAPES = {
    "two levels": {"hierarchies": (1, 4), "dim": (16, 24)},
    "three levels, coarse first": {"hierarchies": (4, 1, 8), "dim": (24, 16, 12), "hierarchical_stride": (2, 1, 8)},
    "merged into all": {"hierarchies": (1, 4), "dim": (16, 24), "hierarchy_merge_all": True},
    "linear merges into all": {
        "hierarchies": (1, 4),
        "dim": (16, 24),
        "merge_type": "linear",
        "hierarchy_merge_all": True,
        "next_latent_loss_weight": 0.1,
    },
    "within one another": {
        "hierarchies": (1, 4),
        "dim": (16, 24),
        "depth": ((0, 2), (1,)),
        "merge_layers": (1,),
        "compress_from": "states",
    },
    "predicted from all": {"hierarchies": (1, 4), "dim": (16, 24), "predict_use_all_hierarchy": True},
}
IDS = torch.randint(256, (3, 30), generator=torch.Generator().manual_seed(1))


def logits_the_simple_way(model: HierarchicalTransformer, means: dict, replaced: int | None) -> Tensor:
    """Logits (b n v), with merges and output as their docstrings define them.

    Without a replaced level, fills `means` with what each level passes on, averaged. Otherwise the replaced level
    passes its mean on.
    """

    def passed_on(reader, i, values):
        if i == replaced:
            return means[reader, i].expand_as(values)
        if replaced is None:
            means[reader, i] = values.mean(dim=(0, 1))
        return values

    def simple_merge(merge, tokens, units, cache=None):
        if isinstance(merge, LinearMerge):
            return simple_linear_merge(merge, tokens, units)
        x = torch.cat([align(tokens[i], units[i], units[merge.common]) for i in merge.sources], dim=-1)
        normed = F.rms_norm(x, x.shape[-1:], merge.norm.weight, merge.norm.eps).split(merge.dims, dim=-1)
        hidden = merge.to_hidden(torch.cat([passed_on(merge, i, part) for i, part in enumerate(normed)], dim=-1))
        updates = merge.to_out(F.silu(hidden)).split(merge.target_dims, dim=-1)
        merged = dict(tokens)
        for i, update in zip(merge.targets, updates, strict=True):
            merged[i] = tokens[i] + align(update, units[merge.common], units[i])
        return merged

    def simple_linear_merge(merge, tokens, units):
        merged = dict(tokens)
        for i, readers in merge.readers.items():
            projected = merge.to_out[str(i)](passed_on(merge, i, merge.norms[str(i)](tokens[i])))
            for t, part in zip(readers, projected.split(merge.reader_dims[i], dim=-1), strict=True):
                merged[t] = merged[t] + align(part, units[i], units[t])
        return merged

    for merge in model.merges.values():
        merge.forward = partial(simple_merge, merge)
    units = model.cut(IDS)
    outputs = model.run_levels(model.embed_bytes(IDS, None), units)
    for merge in model.merges.values():
        del merge.forward
    read = [passed_on("logits", i, outputs[i]) for i in model.predicting_levels]
    at_bytes = [units[i].up(values) for i, values in zip(model.predicting_levels, read, strict=True)]
    return model.to_logits(torch.cat(at_bytes, dim=-1))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_a_replaced_level_passes_its_mean_on(shape):
    model, expected_means = build(**{"depth": 2} | shape), {}
    before, whole = {name: p.clone() for name, p in model.state_dict().items()}, model(IDS)
    torch.testing.assert_close(logits_the_simple_way(model, expected_means, None), whole, atol=1e-4, rtol=1e-4)
    with measure_means(model) as means:
        model(IDS[:2])
        model(IDS[2:])
    levels = removable_levels(model)
    predicts_alone = () if model.config.predict_use_all_hierarchy else model.predicting_levels
    assert levels == [i for i in range(len(model.levels)) if i not in predicts_alone]
    for i in levels:
        with level_replaced_by_mean(model, i, means):
            without_it = model(IDS)
        assert (without_it - whole).abs().max() > 0.01
        torch.testing.assert_close(without_it, logits_the_simple_way(model, expected_means, i), atol=1e-4, rtol=1e-4)

        with pytest.raises(KeyError), level_replaced_by_mean(model, i, means):
            raise KeyError
        assert torch.equal(model(IDS), whole)  # everything is restored
        assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


@torch.no_grad()
def test_a_level_that_nothing_reads_adds_exactly_nothing():
    model = build(depth=2, hierarchies=(1, 4), dim=(16, 24))
    for merge in model.merges.values():
        merge.to_hidden.weight[:, 16:] = 0
    whole = model(IDS)
    with measure_means(model) as means:
        model(IDS)
    with level_replaced_by_mean(model, 1, means):
        assert torch.equal(model(IDS), whole)
