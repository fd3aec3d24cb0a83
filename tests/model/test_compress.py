"""Compression against convolutions and attention written out for one chunk at a time."""

from math import ceil

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from model import ModelConfig
from model.compress import Compress

COMPRESSIONS = st.sampled_from([2, 3, 4, 6, 8])


@st.composite
def compressions_and_strides(draw):
    compression = draw(COMPRESSIONS)
    return compression, draw(st.sampled_from([s for s in range(1, compression + 1) if compression % s == 0]))


def compressed(compress, rule, x):
    """Compress all of x (b n d), with nothing before it."""
    return compress(F.pad(x, (0, 0, compress.compression - 1, 0)), rule.cut(x))


def levels_of(**config):
    return ModelConfig(**{"heads": 1, "dim_head": 2, "dim": 6, "seq_len": 32} | config).levels


@given(compression=compressions_and_strides(), n=st.integers(1, 40))
def test_conv_is_a_causal_convolution(compression, n):
    c, s = compression
    torch.manual_seed(0)
    level = levels_of(hierarchies=(1, c), hierarchical_stride=(1, s), compress_mult=2)[1]
    compress = Compress(5, level)
    x = torch.randn(2, n, 5)
    first, _, last = compress.net
    kernel = first.weight.unflatten(1, (c, 5)).transpose(1, 2)  # (out in kernel)
    hidden = F.conv1d(F.pad(x.transpose(1, 2), (c - 1, 0)), kernel, first.bias, stride=s)
    torch.testing.assert_close(compressed(compress, level.segments, x), last(F.silu(hidden.transpose(1, 2))))
    assert compressed(compress, level.segments, x).shape == (2, ceil(n / s), 6)


@given(
    compression=compressions_and_strides(), n=st.integers(1, 20), kind=st.sampled_from(["mean", "attention", "last"])
)
def test_mean_and_attention_are_computed_within_each_chunk(compression, n, kind):
    c, s = compression
    torch.manual_seed(0)
    options = {"heads": 2, "dim_head": 4, "compress_type": kind}
    level = levels_of(hierarchies=(1, c), hierarchical_stride=(1, s), **options)[1]
    compress = Compress(5, level)
    x = torch.randn(1, n, 5)
    tokens = compressed(compress, level.segments, x)[0]
    for token, end in zip(tokens, range(0, n, s), strict=True):
        chunk = F.pad(x[0], (0, 0, c - 1, 0))[end : end + c]
        if kind == "mean":
            expected = compress.net(chunk.mean(0))
        elif kind == "last":
            expected = compress.net(chunk[-1])
        else:
            attention = compress.net
            keys, values = attention.to_kv(chunk).chunk(2, dim=-1)
            q, keys, values = (
                t.unflatten(-1, (2, 4)) for t in (attention.to_q(chunk[-1]), keys + attention.position, values)
            )
            weights = (torch.einsum("hd,chd->hc", q, keys) / 2).softmax(-1)
            expected = attention.to_token(torch.einsum("hc,chd->hd", weights, values).flatten())
        torch.testing.assert_close(token, expected)


@given(
    compression=compressions_and_strides(),
    t=st.integers(0, 31),
    kind=st.sampled_from(["conv", "mean", "attention", "last"]),
)
def test_a_token_depends_on_its_bytes_up_to_its_end_alone(compression, t, kind):
    c, s = compression
    size = 1 if kind == "last" else c
    level = levels_of(hierarchies=(1, c), hierarchical_stride=(1, s), compress_type=kind)[1]
    compress = Compress(5, level).double()
    x = torch.randn(1, 32, 5, dtype=torch.float64)
    changed = x.clone()
    changed[0, t] += 1
    moved = (compressed(compress, level.segments, x) != compressed(compress, level.segments, changed)).any(-1)[0]
    for k, has_moved in enumerate(moved.tolist()):
        assert has_moved == (k * s - size + 1 <= t <= k * s)
