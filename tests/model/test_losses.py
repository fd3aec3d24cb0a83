import torch
from hypothesis import given
from hypothesis import strategies as st

from model import ModelConfig
from model.losses import Reconstruction


@given(c=st.sampled_from([2, 4, 8]), s=st.sampled_from([1, 2, 4, 8]), n=st.integers(1, 20))
def test_reconstruction_asks_for_the_bytes_behind_each_output(c, s, n):
    s = min(s, c)
    torch.manual_seed(0)
    level = ModelConfig(dim=6, hierarchies=(1, c), hierarchical_stride=(1, s)).levels[1]
    head = Reconstruction(level, num_tokens=7)
    ids = torch.randint(0, 7, (2, n))
    embeds = torch.randn(2, len(range(0, n, s)), 6)
    nats = []
    for b in range(2):
        for k, end in enumerate(range(0, n, s)):
            chances = head.to_logits(embeds[b, k]).unflatten(0, (c, 7)).log_softmax(-1)
            nats += [-chances[i, ids[b, t]] for i, t in enumerate(range(end - c + 1, end + 1)) if t >= 0]
    torch.testing.assert_close(head(embeds, ids), torch.stack(nats).mean())
