"""Merges against the two layers that they equal."""

from math import ceil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from model.merge import LinearMerge, Merge
from model.segments import align
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
    merge = Merge(levels, (0, 1, 2), targets)
    units = {i: level.segments.cut(torch.zeros(2, n)) for i, level in enumerate(levels)}
    torch.nn.init.normal_(merge.norm.weight)
    tokens = {i: torch.randn(2, ceil(n / level.stride), level.dim) for i, level in enumerate(levels)}

    # The simple version: every level at every byte.
    at_bytes = [t.repeat_interleave(s, 1)[:, :n] for t, s in zip(tokens.values(), strides, strict=True)]
    normed = merge.norm(torch.cat(at_bytes, dim=-1))
    updates = merge.to_out(F.silu(merge.to_hidden(normed))).split([levels[i].dim for i in targets], -1)

    # A merge runs at the ends of the finest target's units.
    common = min(strides[i] for i in targets)
    merged = merge(tokens, units)
    for i, t in tokens.items():
        update = 0
        if i in targets:
            read_at = [end // common * common for end in range(0, n, strides[i])]
            update = updates[targets.index(i)][:, read_at]
        torch.testing.assert_close(merged[i], t + update, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("targets", [(0,), (1,), (0, 1, 2)])
@given(strides=st.tuples(STRIDES, STRIDES), n=st.integers(1, 40))
def test_a_linear_merge_adds_a_map_of_each_other_level(targets, strides, n):
    torch.manual_seed(0)
    levels = levels_of(
        dim=(6, 4, 8), hierarchies=(24, 12, 36), hierarchical_stride=(1, *strides), predict_hierarchy=24, seq_len=36
    )
    merge = LinearMerge(levels, (0, 1, 2), targets)
    units = {i: level.segments.cut(torch.zeros(2, n)) for i, level in enumerate(levels)}
    tokens = {i: torch.randn(2, units[i].count, level.dim) for i, level in enumerate(levels)}
    merged = merge(tokens, units)
    for t in tokens:
        expected = tokens[t]
        for i in tokens if t in targets else ():
            if i != t:
                first = sum(levels[other].dim for other in targets if other < t and other != i)
                weight = merge.to_out[str(i)].weight[first : first + levels[t].dim]
                at_target = align(merge.norms[str(i)](tokens[i]), units[i], units[t])
                expected = expected + F.linear(at_target, weight)
        torch.testing.assert_close(merged[t], expected, atol=1e-5, rtol=1e-4)


@given(
    n=st.integers(1, 40), targets=st.sampled_from([(0,), (1,), (0, 1, 2)]), kind=st.sampled_from([Merge, LinearMerge])
)
def test_a_merge_reads_words_as_it_reads_strides(n, targets, kind):
    """Words of a text in which each has as many bytes as a stride are units of this stride."""
    torch.manual_seed(0)
    words = levels_of(dim=(6, 4, 8), hierarchies=(1, 4, 12), boundaries="words", seq_len=36)
    strides = levels_of(dim=(6, 4, 8), hierarchies=(1, 4, 12), seq_len=36)
    merge = kind(words, (0, 1, 2), targets)
    text = torch.tensor(list(b" abc" * 10))[None, :n]
    tokens, merged = {}, []
    for levels in (words, strides):
        units = {i: level.segments.cut(text) for i, level in enumerate(levels)}
        tokens = tokens or {i: torch.randn(1, units[i].count, level.dim) for i, level in enumerate(levels)}
        merged.append(merge(tokens, units))
    torch.testing.assert_close(merged[0], merged[1])
