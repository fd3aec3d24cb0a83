"""Merges against the two layers that they equal."""

from math import ceil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from model.merge import Merge
from tests.model.test_compress import levels_of

STRIDES = st.sampled_from([1, 2, 3, 4, 6, 12])


@pytest.mark.parametrize("targets", [(0,), (1,), (0, 1, 2)])
@given(strides=st.tuples(STRIDES, STRIDES), n=st.integers(1, 40))
def test_a_merge_is_two_layers_over_the_normed_concatenation(targets, strides, n):
    torch.manual_seed(0)
    strides = (1, *strides)  # some level must predict every byte
    levels = levels_of(
        dim=(6, 4, 8), hierarchies=(24, 12, 36), hierarchical_stride=strides, predict_hierarchy=24, seq_len=36
    )
    merge = Merge(levels, targets)
    torch.nn.init.normal_(merge.norm.weight)
    tokens = {i: torch.randn(2, ceil(n / level.stride), level.dim) for i, level in enumerate(levels)}

    # The simple version: every level at every byte.
    at_bytes = [t.repeat_interleave(s, 1)[:, :n] for t, s in zip(tokens.values(), strides, strict=True)]
    normed = merge.norm(torch.cat(at_bytes, dim=-1))
    updates = merge.to_out(F.silu(merge.to_hidden(normed))).split([levels[i].dim for i in targets], -1)

    # A merge runs at the ends of the finest target's units.
    common = min(strides[i] for i in targets)
    merged = merge(tokens, n)
    for i, t in tokens.items():
        update = 0
        if i in targets:
            read_at = [end // common * common for end in range(0, n, strides[i])]
            update = updates[targets.index(i)][:, read_at]
        torch.testing.assert_close(merged[i], t + update, atol=1e-5, rtol=1e-4)
