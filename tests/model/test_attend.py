import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from model import Attend
from model.attend import BACKENDS, BLOCKWISE
from model.flex import blocked_attention, compiled_flex_attention, window_blocks


def by_hand(q, k, v, causal, window, mask):
    """Attention in float64, query by query, over the keys that each may see."""
    q, k, v = (t.double() for t in (q, k, v))
    queries, keys = q.shape[-2], k.shape[-2]
    rows = []
    for b in range(len(q)):
        for i in range(queries):
            here = i + keys - queries
            first = max(0, here - window + 1) if window else 0
            seen = [j for j in range(first, here + 1 if causal else keys) if mask is None or mask[b, j]]
            scores = torch.einsum("hd,hjd->hj", q[b, :, i], k[b][:, seen]) / q.shape[-1] ** 0.5
            rows.append(torch.einsum("hj,hjd->hd", scores.softmax(-1), v[b][:, seen]))
    return torch.stack(rows).unflatten(0, (len(q), queries)).transpose(1, 2)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize(("window", "queries"), [(None, 70), (4, 70), (4, 1), (None, 1)])
@pytest.mark.parametrize("kind", ["none", "some"])
def test_key_heads_are_shared_by_neighbouring_query_heads(fused, window, queries, kind):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, queries, 8), torch.randn(2, 2, 70, 8), torch.randn(2, 2, 70, 8)
    mask = draw_mask(kind, 2, 70)
    out = Attend(causal=True, use_flash_attn=fused, window_size=window)(q, k, v, mask)
    k, v = (t[:, [0, 0, 0, 1, 1, 1]] for t in (k, v))
    torch.testing.assert_close(out.double(), by_hand(q, k, v, True, window, mask), atol=1e-5, rtol=0)


def draw_mask(kind, batch, keys):
    if kind == "none":
        return None
    mask = torch.rand(batch, keys) < 0.6
    if kind == "blind":
        mask[0] = False  # a whole sequence without a key
        mask[-1, : keys // 2] = False  # and causal queries before the first one
    return mask


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("kind", ["none", "some", "blind"])
@pytest.mark.parametrize(
    ("causal", "window", "queries", "keys"),
    [
        (False, None, 7, 7),
        (False, None, 3, 9),
        (True, None, 1, 1),
        (True, None, 70, 70),
        (True, None, 3, 9),
        (True, None, 1, 9),
        (True, 1, 9, 9),
        (True, 4, 64, 64),
        (True, 5, 150, 150),
        (True, 80, 200, 200),
        (True, 4, 1, 9),
        (True, 4, 3, 9),
        (True, 30, 9, 9),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
def test_plain_and_auto_equal_attention_by_hand(fused, kind, causal, window, queries, keys, dtype, tolerance):
    torch.manual_seed(0)
    q = torch.randn(2, 3, queries, 8, dtype=dtype, requires_grad=True)
    k, v = (torch.randn(2, 3, keys, 8, dtype=dtype, requires_grad=True) for _ in range(2))
    mask = draw_mask(kind, 2, keys)
    upstream = torch.randn(2, 3, queries, 8, dtype=dtype)

    out = Attend(causal=causal, use_flash_attn=fused, window_size=window)(q, k, v, mask)
    expected = by_hand(q, k, v, causal, window, mask)
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)
    assert out.dtype == dtype

    gradients = torch.autograd.grad(out, (q, k, v), upstream)
    references = torch.autograd.grad(expected, (q, k, v), upstream.double())
    for gradient, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient.double(), reference.double(), atol=4 * tolerance, rtol=0)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("window", [None, 4])
def test_a_query_that_sees_nothing_gets_zeros_and_gives_no_gradient(fused, window):
    q, k, v = (torch.randn(2, 2, 12, 4, requires_grad=True) for _ in range(3))
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0] = False
    out = Attend(causal=True, use_flash_attn=fused, window_size=window)(q, k, v, mask)
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    out.sum().backward()
    for t in (q, k, v):
        assert torch.equal(t.grad[0], torch.zeros_like(t.grad[0]))
        assert not t.grad.isnan().any()


@given(n=st.integers(1, 150), window=st.integers(1, 90), query=st.integers(0, 149), fused=st.booleans())
def test_a_window_counts_the_query_itself(n, window, query, fused):
    query = query % n
    torch.manual_seed(0)
    q, k = (torch.randn(1, 1, n, 4) for _ in range(2))
    v = torch.eye(n).reshape(1, 1, n, n)  # so each output is its row of attention weights
    weights = Attend(causal=True, use_flash_attn=fused, window_size=window)(q, k, v)[0, 0, query]
    seen = weights.nonzero().flatten().tolist()
    assert seen == list(range(max(0, query - window + 1), query + 1))


def test_windowed_attention_never_holds_n_squared_scores():
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple) else (out,):
                largest = max(largest, t.untyped_storage().nbytes() if isinstance(t, torch.Tensor) else 0)
            return out

    n = 8192
    q, k, v = (torch.randn(1, 1, n, 8, requires_grad=True) for _ in range(3))
    with Watch():
        window_blocks.__wrapped__(n, 16, q.device)
        Attend(causal=True, use_flash_attn=True, window_size=16)(q, k, v).sum().backward()
    assert largest < n * n / 8  # bytes; this limit is one bit for each pair


@pytest.mark.parametrize("kind", ["none", "some", "blind"])
@pytest.mark.parametrize(("n", "window"), [(5, 1), (64, 4), (128, 127), (129, 2), (300, 64), (300, 129), (700, 200)])
def test_flex_attention_has_the_same_window_as_plain_attention(n, window, kind):
    """Flex attention without compilation, which CUDA adds. CPUs have no gradient for it."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, n, 16), torch.randn(2, 2, n, 16), torch.randn(2, 2, n, 16)
    mask = draw_mask(kind, 2, n)
    out = blocked_attention(q, k, v, window_blocks(n, window, q.device), mask)
    plain = Attend(causal=True, window_size=window)(q, k, v, mask)
    torch.testing.assert_close(out, plain, atol=1e-5, rtol=0)


def test_blocks_made_in_inference_mode_may_be_used_in_training():
    n = 270  # a length that no other test uses, as blocks are cached
    with torch.inference_mode():
        blocks = window_blocks(n, 30, torch.device("cpu"))
    tensors = [blocks.kv_num_blocks, blocks.kv_indices]
    assert not any(tensor.is_inference() for tensor in tensors)


def test_flex_attention_compiles_with_its_cached_blocks():
    for n in (200, 330):
        q, k, v = (torch.randn(1, 2, n, 16) for _ in range(3))
        out = compiled_flex_attention(q, k, v, window_blocks(n, 40, q.device), None)
        torch.testing.assert_close(out, Attend(causal=True, window_size=40)(q, k, v), atol=1e-5, rtol=0)
    assert window_blocks(330, 40, q.device) is window_blocks(330, 40, q.device)


def test_auto_chooses_by_shape_and_device():
    fused = Attend(causal=True, use_flash_attn=True, window_size=8)
    single, half = torch.float32, torch.bfloat16
    assert fused.backend_for(64, 64, 16, "cuda", half) == "flex"
    assert fused.backend_for(64, 64, 8, "cuda", half) == fused.backend_for(64, 64, 16, "cpu", half) == "block_local"
    assert fused.backend_for(8, 8, 16, "cuda", half) == fused.backend_for(2, 64, 16, "cuda", half) == "sdpa"
    assert fused.backend_for(1, 64, 16, "cuda", half) == "plain"
    assert fused.backend_for(8, 8, 16, "cpu", single) == fused.backend_for(1, 64, 16, "cpu", half) == "sdpa"
    assert fused.backend_for(8, 8, 16, "cpu", half) == "plain"
    assert Attend(causal=True, window_size=8).backend_for(64, 64, 16, "cuda", half) == "plain"


@pytest.mark.parametrize("name", BACKENDS)
def test_a_forced_backend_computes_every_shape_that_it_can(name):
    forced = Attend(causal=True, window_size=8, backend=name)
    assert forced.backend_for(64, 64, 16, "cuda", torch.float32) == name
    one_query = forced.backend_for(1, 64, 16, "cuda", torch.float32)
    assert one_query == ("sdpa" if name in BLOCKWISE else name)


def test_flex_attention_without_a_gpu_is_computed_in_blocks():
    forced = Attend(causal=True, window_size=8, backend="flex")
    assert forced.backend_for(64, 64, 16, "cpu", torch.float32) == "block_local"


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["none", "blind"])
@pytest.mark.parametrize(
    ("causal", "window", "queries", "keys"),
    [(True, None, 70, 70), (True, 5, 300, 300), (True, 100, 300, 300), (True, 8, 3, 300), (False, None, 7, 300)],
)
def test_every_backend_agrees_in_values_and_gradients(name, kind, causal, window, queries, keys):
    """Over several blocks, with fewer queries than keys, shared heads, and queries that see nothing."""
    torch.manual_seed(0)
    q = torch.randn(2, 4, queries, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 2, keys, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = draw_mask(kind, 2, keys)
    upstream = torch.randn_like(q)

    out = Attend(causal=causal, window_size=window, backend=name)(q, k, v, mask)
    expected = Attend(causal=causal, window_size=window, backend="plain")(q, k, v, mask)
    torch.testing.assert_close(out, expected)
    gradients = torch.autograd.grad(out, (q, k, v), upstream)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (q, k, v), upstream))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"causal": True, "window_size": 0}, "window_size: got 0, allowed: 1 or above"),
        ({"causal": False, "window_size": 4}, "window_size needs causal=True"),
        ({"backend": "fast"}, "backend: got fast, allowed: auto, plain, sdpa"),
    ],
)
def test_illegal_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Attend(**options)
