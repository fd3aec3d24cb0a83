"""The model on a CUDA GPU, which runs kernels that no CPU has. Skipped where there is none."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import Attend, HierarchicalTransformer
from model.generation.prepare import lay_out_for_decoding
from model.generation.replay import Replayed
from tests.model.generation.test_cache import in_pieces
from tests.model.strategies import model_configs
from tests.model.test_attend import draw_mask
from tests.model.test_transformer import build

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
WINDOWED = {  # flex attention on both levels, and all lookups
    "dim": (32, 48),
    "depth": (1, 2),
    "heads": (2, 3),
    "kv_heads": (1, None),
    "dim_head": 16,
    "seq_len": 384,
    "hierarchies": (1, 4),
    "window_sizes": (24, 40),
    "ngrams": (2, 3, 5),
    "matches": (3, 5),
    "word_matches": (0, 1),
    "match_places": 2,
}


def on_both(config):
    """A model on the CPU, and the same on the GPU."""
    model = build(config)
    return model, deepcopy(model).cuda()


def losses_and_gradients(model, ids):
    loss, _ = model(ids.to(model.to_logits.weight.device), return_loss=True)
    loss.backward()
    return loss.detach().cpu(), [None if p.grad is None else p.grad.cpu() for p in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("n", "window", "dim_head", "kv_heads", "kind"),
    [
        (129, 2, 16, 4, "none"),
        (300, 129, 64, 2, "blind"),
        (700, 200, 24, 1, "some"),
        (2048, 128, 64, 4, "none"),
    ],
)
def test_flex_attention_is_plain_attention_in_values_and_gradients(n, window, dim_head, kv_heads, kind, dtype):
    torch.manual_seed(0)
    shapes = (4, kv_heads, kv_heads)
    leaves = [torch.randn(2, heads, n, dim_head, dtype=dtype, device="cuda", requires_grad=True) for heads in shapes]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    mask = draw_mask(kind, 2, n)
    mask = None if mask is None else mask.cuda()
    fused = Attend(causal=True, use_flash_attn=True, window_size=window)
    assert fused.kernel(n, n, dim_head, "cuda", dtype) == "flex"

    out, expected = fused(*leaves, mask), Attend(causal=True, window_size=window)(*exact, mask)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)
    upstream = torch.randn_like(out)
    gradients = torch.autograd.grad(out, leaves, upstream)
    references = torch.autograd.grad(expected, exact, upstream.double())
    for gradient, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient.double(), reference, atol=8 * tolerance, rtol=tolerance)


@settings(max_examples=60)
@given(config=model_configs(quantizer_loss_weight=0.0), n=st.integers(2, 40))  # a code may flip with the last digit
def test_logits_losses_and_gradients_are_those_of_a_cpu(config, n):
    models = on_both(config)
    ids = torch.randint(0, 11, (2, n))
    with torch.no_grad():
        here, there = (model(ids.to(model.to_logits.weight.device)).cpu() for model in models)
    torch.testing.assert_close(there, here, atol=1e-4, rtol=1e-4)
    (loss, gradients), (gpu_loss, gpu_gradients) = (losses_and_gradients(model, ids) for model in models)
    torch.testing.assert_close(gpu_loss, loss, atol=1e-4, rtol=1e-4)
    for gradient, reference in zip(gpu_gradients, gradients, strict=True):
        assert (gradient is None) == (reference is None)  # not every one has a level to read it
        if reference is not None:
            torch.testing.assert_close(gradient, reference, atol=1e-3, rtol=1e-2)


@settings(max_examples=40)
@given(config=model_configs(), data=st.data())
def test_cached_logits_are_those_of_the_full_pass(config, data):
    total = 3 * config["seq_len"]
    model, ids = build(config).cuda(), torch.randint(0, 11, (2, total), device="cuda")
    check_cache(model, ids, data.draw(st.integers(1, total), label="prefill"), atol=1e-4)


@pytest.mark.parametrize("prefill", [1, 250, 900])
def test_windows_of_flex_attention_are_those_of_the_cache(prefill):
    model, ids = build(WINDOWED).cuda(), torch.randint(97, 123, (2, 1000), device="cuda")
    check_cache(model, ids, prefill, atol=1e-3)  # of logits that are hundreds


@pytest.mark.parametrize("prefill", [1, 250, 900])
def test_replayed_steps_are_those_of_the_full_pass(prefill):
    model, ids = build(WINDOWED).cuda(), torch.randint(97, 123, (2, 1000), device="cuda")
    lay_out_for_decoding(model)
    check_cache(model, ids, prefill, atol=1e-3)
    check_cache(model, ids[:1], prefill, atol=1e-3)  # another cache, and another batch


@settings(max_examples=15)
@given(config=model_configs(max_levels=2), data=st.data())
def test_replayed_steps_of_drawn_models_are_those_of_the_full_pass(config, data):
    total = 3 * config["seq_len"]
    model, ids = build(config).cuda(), torch.randint(0, 11, (2, total), device="cuda")
    lay_out_for_decoding(model)
    check_cache(model, ids, data.draw(st.integers(1, total), label="prefill"), atol=1e-4)


def check_cache(model, ids, prefill, atol):
    """One pass over ids, and a first part with a cache and then byte by byte, give the same logits."""
    with torch.inference_mode():
        full = model(ids)
    torch.testing.assert_close(in_pieces(model, ids, prefill), full, atol=atol, rtol=1e-4)


def test_no_logit_depends_on_a_later_byte():
    model, ids = build(WINDOWED).cuda(), torch.randint(0, 256, (2, 384), device="cuda")
    for t in (1, 127, 128, 200, 383):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % 256
        with torch.inference_mode():
            before, after = model(ids), model(changed)
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.equal(before[:, t:], after[:, t:])


def test_the_same_bytes_are_drawn_with_a_cache_without_and_on_a_cpu():
    torch.manual_seed(0)
    model = HierarchicalTransformer(**WINDOWED)
    prompt = torch.randint(97, 123, (3, 200))
    drawn = []
    ways = [("cpu", True, False), ("cuda", True, False), ("cuda", False, False), ("cuda", True, True)]
    for device, use_cache, replayed in ways:
        model.to(device)
        if replayed:
            lay_out_for_decoding(model)
            assert isinstance(model.forward, Replayed)
        chance = torch.Generator().manual_seed(0)
        drawn.append(model.generate(prompt.to(device), 64, use_cache=use_cache, generator=chance))
    assert all(torch.equal(drawn[0], other.cpu()) for other in drawn[1:])


def test_a_window_costs_no_square_of_memory():
    torch.cuda.reset_peak_memory_stats()
    n, before = 1 << 16, torch.cuda.memory_allocated()
    q, k, v = (torch.randn(1, 1, n, 16, device="cuda", requires_grad=True) for _ in range(3))
    Attend(causal=True, use_flash_attn=True, window_size=64)(q, k, v).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < n * n / 16  # bytes
