from math import ceil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from model import ModelConfig
from model.levels import Compress, Merge, align

POWERS = st.sampled_from([1, 2, 4, 8])


def compressed(compress, x):
    """All of x (b n d), with nothing before it."""
    return compress(F.pad(x, (0, 0, compress.compression - 1, 0)), x.shape[1])


def levels_of(**config):
    return ModelConfig(**{"heads": 1, "dim_head": 2, "dim": 6, "seq_len": 32} | config).levels


@given(c=st.sampled_from([2, 4, 8]), s=POWERS, n=st.integers(1, 40))
def test_compress_is_a_causal_convolution(c, s, n):
    s = min(s, c)
    torch.manual_seed(0)
    level = levels_of(hierarchies=(1, c), hierarchical_stride=(1, s), compress_mult=2)[1]
    compress = Compress(5, level)
    x = torch.randn(2, n, 5)
    first, _, last = compress.net
    kernel = first.weight.unflatten(1, (c, 5)).transpose(1, 2)  # (out in kernel)
    hidden = F.conv1d(F.pad(x.transpose(1, 2), (c - 1, 0)), kernel, first.bias, stride=s)
    torch.testing.assert_close(compressed(compress, x), last(F.silu(hidden.transpose(1, 2))))
    assert compressed(compress, x).shape == (2, ceil(n / s), 6)


@given(c=st.sampled_from([2, 4, 8]), s=POWERS, n=st.integers(1, 20), kind=st.sampled_from(["mean", "attention"]))
def test_compress_by_mean_or_attention_is_that_of_each_chunk(c, s, n, kind):
    s = min(s, c)
    torch.manual_seed(0)
    options = {"heads": 2, "dim_head": 4, "compress_type": kind}
    compress = Compress(5, levels_of(hierarchies=(1, c), hierarchical_stride=(1, s), **options)[1])
    x = torch.randn(1, n, 5)
    tokens = compressed(compress, x)[0]
    for token, end in zip(tokens, range(0, n, s), strict=True):
        chunk = F.pad(x[0], (0, 0, c - 1, 0))[end : end + c]
        if kind == "mean":
            expected = compress.net(chunk.mean(0))
        else:
            attention = compress.net
            keys, values = attention.to_kv(chunk).chunk(2, dim=-1)
            q, keys, values = (
                t.unflatten(-1, (2, 4)) for t in (attention.to_q(chunk[-1]), keys + attention.place, values)
            )
            weights = (torch.einsum("hd,chd->hc", q, keys) / 2).softmax(-1)
            expected = attention.to_token(torch.einsum("hc,chd->hd", weights, values).flatten())
        torch.testing.assert_close(token, expected)


@given(
    c=st.sampled_from([2, 4, 8]), s=POWERS, t=st.integers(0, 31), kind=st.sampled_from(["conv", "mean", "attention"])
)
def test_an_output_sees_the_bytes_behind_it_and_no_others(c, s, t, kind):
    s = min(s, c)
    level = levels_of(hierarchies=(1, c), hierarchical_stride=(1, s), compress_type=kind)[1]
    compress = Compress(5, level).double()
    x = torch.randn(1, 32, 5, dtype=torch.float64)
    changed = x.clone()
    changed[0, t] += 1
    moved = (compressed(compress, x) != compressed(compress, changed)).any(-1)[0]
    for k, has_moved in enumerate(moved.tolist()):
        assert has_moved == (k * s - c + 1 <= t <= k * s)


@given(stride=POWERS, to=POWERS, n=st.integers(1, 40))
def test_align_reads_the_output_that_a_position_may_read(stride, to, n):
    outputs = torch.arange(ceil(n / stride)).reshape(1, -1, 1)
    aligned = align(outputs, stride, to, n).flatten().tolist()
    assert aligned == [t // stride for t in range(0, n, to)]


@pytest.mark.parametrize("targets", [(0,), (1,), (0, 1, 2)])
@given(strides=st.tuples(POWERS, POWERS, POWERS), n=st.integers(1, 40))
def test_merge_is_two_layers_over_the_normed_concatenation(targets, strides, n):
    torch.manual_seed(0)
    strides = (1, *strides[1:])  # something must predict every byte
    levels = levels_of(
        dim=(6, 4, 8), hierarchies=(16, 8, 32), hierarchical_stride=strides, predict_hierarchy=16, compress_mult=1
    )
    merge = Merge(levels, targets)
    torch.nn.init.normal_(merge.norm.weight)
    tokens = {i: torch.randn(2, ceil(n / level.stride), level.dim) for i, level in enumerate(levels)}

    together = torch.cat(
        [t.repeat_interleave(s, 1)[:, :n] for t, s in zip(tokens.values(), strides, strict=True)], dim=-1
    )
    updates = merge.to_out(F.silu(merge.to_hidden(merge.norm(together)))).split([levels[i].dim for i in targets], -1)
    merged = merge(tokens, n)
    for i, t in tokens.items():
        update = updates[targets.index(i)][:, :: strides[i]] if i in targets else 0
        torch.testing.assert_close(merged[i], t + update, atol=1e-5, rtol=1e-4)
