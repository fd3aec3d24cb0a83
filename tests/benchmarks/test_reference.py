"""The reference's architecture is a case of ours: its weights under our names give its logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.reference import convert_weights, reference_settings
from model import HierarchicalTransformer

reference = pytest.importorskip("simple_hierarchical_transformer", reason="installed by benchmarks/requirements.txt")


@settings(max_examples=25)
@given(data=st.data())
def test_converted_weights_give_the_reference_s_logits(data):
    compressions = data.draw(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=3, unique=True))
    strides = [data.draw(st.sampled_from([s for s in (1, 2, 4, 8) if s <= c])) for c in compressions]
    strides[compressions.index(min(compressions))] = 1  # the level that predicts
    heads = tuple(data.draw(st.integers(1, 3)) for _ in compressions)
    config = {
        "num_tokens": 256,
        "dim": tuple(data.draw(st.sampled_from([16, 24])) for _ in compressions),
        "depth": data.draw(st.integers(1, 3)),
        "seq_len": 32,
        "dim_head": 8,
        "heads": heads,
        "ff_mult": data.draw(st.sampled_from([2, 4])),
        "hierarchies": tuple(compressions),
        "hierarchical_stride": tuple(strides),
        "hierarchy_merge_all": data.draw(st.booleans()),
        "predict_use_all_hierarchy": data.draw(st.booleans()),
    }

    # Weights of norms begin at one, which would hide that one of them is missing.
    torch.manual_seed(0)
    theirs = reference.HierarchicalTransformer(**config, recon_loss_weight=0.0, next_latent_loss_weight=0.0).eval()
    for name, p in theirs.named_parameters():
        if "gamma" in name or "norm" in name:
            torch.nn.init.normal_(p, 1.0, 0.2)

    ours = HierarchicalTransformer(**config, **reference_settings(config["dim"])).eval()
    weights = convert_weights(theirs.state_dict(), heads)
    ours.load_state_dict({name: value for name, value in weights.items() if name in ours.state_dict()})
    ids = torch.randint(0, 256, (2, data.draw(st.integers(1, 32), label="n")))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids), atol=1e-4, rtol=1e-4)
