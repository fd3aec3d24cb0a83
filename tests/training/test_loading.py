import torch

from tests.model.test_transformer import build
from training.loading import lay_out_for_decoding


def test_the_layout_for_decoding_changes_no_value():
    model = build({"dim": 8, "heads": 2, "dim_head": 4, "depth": 2, "seq_len": 16, "hierarchies": (1, 4)})
    ids, before = torch.randint(0, 256, (2, 16)), {k: v.clone() for k, v in model.state_dict().items()}
    logits = model(ids)
    lay_out_for_decoding(model)
    assert any(not p.is_contiguous() for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    torch.testing.assert_close(model(ids), logits)
