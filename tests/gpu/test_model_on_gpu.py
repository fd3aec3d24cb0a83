"""The model on a CUDA GPU, which uses other kernels than a CPU. Skipped without a GPU."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import Attend, HierarchicalTransformer
from model.generation.prepare import prepare_for_generation
from model.generation.replay import StepRecorder
from tests.model.generation.test_cache import in_pieces
from tests.model.strategies import model_configs, random_ids
from tests.model.test_attend import draw_mask
from tests.model.test_transformer import build

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
WINDOWED = {  # flex attention on both levels, all lookups
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
    "matches_per_context": 2,
}


def on_cpu_and_gpu(config):
    """A model on the CPU and a copy of it on the GPU."""
    model = build(config)
    return model, deepcopy(model).cuda()


def logits_on_cpu(model, ids):
    """The model's logits for ids, computed on the model's device and moved to the CPU."""
    device = model.to_logits.weight.device
    with torch.no_grad():
        return model(ids.to(device)).cpu()


def loss_and_gradients(model, ids):
    """The loss and the gradient of each parameter (None if it has none), moved to the CPU."""
    device = model.to_logits.weight.device
    loss, _ = model(ids.to(device), return_loss=True)
    loss.backward()
    gradients = [None if p.grad is None else p.grad.cpu() for p in model.parameters()]
    return loss.detach().cpu(), gradients


@pytest.mark.parametrize("strides", [(1, 4), (1, 2, 3)], ids=str)
def test_a_training_step_does_not_wait_for_the_gpu(strides):
    model = build({"dim": 32, "depth": 1, "seq_len": 64, "dim_head": 16, "hierarchies": strides}).cuda()
    ids = torch.randint(0, 256, (2, 65), device="cuda")
    model(ids, return_loss=True)[0].backward()  # libraries are loaded, and block masks are made
    try:
        torch.cuda.set_sync_debug_mode("error")
        model(ids, return_loss=True)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_cache(model, ids, prefill, atol):
    """Assert that a prefill of that length, followed by single bytes, gives the logits of one full pass over ids."""
    with torch.inference_mode():
        full = model(ids)
    torch.testing.assert_close(in_pieces(model, ids, prefill), full, atol=atol, rtol=1e-4)


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
def test_flex_attention_matches_plain_attention_in_values_and_gradients(n, window, dim_head, kv_heads, kind, dtype):
    torch.manual_seed(0)

    # queries, keys and values, and the same in float64 for the reference
    head_counts = (4, kv_heads, kv_heads)
    inputs = [
        torch.randn(2, heads, n, dim_head, dtype=dtype, device="cuda", requires_grad=True) for heads in head_counts
    ]
    exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
    mask = draw_mask(kind, 2, n)
    if mask is not None:
        mask = mask.cuda()

    flex = Attend(causal=True, use_flash_attn=True, window_size=window)
    plain = Attend(causal=True, window_size=window)
    assert flex.backend_for(n, n, dim_head, "cuda", dtype) == "flex"

    # values
    out = flex(*inputs, mask)
    expected = plain(*exact_inputs, mask)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)

    # gradients
    upstream = torch.randn_like(out)
    gradients = torch.autograd.grad(out, inputs, upstream)
    references = torch.autograd.grad(expected, exact_inputs, upstream.double())
    for gradient, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient.double(), reference, atol=8 * tolerance, rtol=tolerance)


# no quantizer loss: rounding can change the code of a chunk
@settings(max_examples=60)
@given(config=model_configs(quantizer_loss_weight=0.0), n=st.integers(2, 40))
def test_gpu_and_cpu_agree_on_logits_loss_and_gradients(config, n):
    cpu_model, gpu_model = on_cpu_and_gpu(config)
    ids = random_ids(config, 2, n)

    torch.testing.assert_close(logits_on_cpu(gpu_model, ids), logits_on_cpu(cpu_model, ids), atol=1e-4, rtol=1e-4)

    cpu_loss, cpu_gradients = loss_and_gradients(cpu_model, ids)
    gpu_loss, gpu_gradients = loss_and_gradients(gpu_model, ids)
    torch.testing.assert_close(gpu_loss, cpu_loss, atol=1e-4, rtol=1e-4)
    for gradient, reference in zip(gpu_gradients, cpu_gradients, strict=True):
        assert (gradient is None) == (reference is None)  # a parameter that no loss depends on has no gradient
        if reference is not None:
            torch.testing.assert_close(gradient, reference, atol=1e-3, rtol=1e-2)


@settings(max_examples=40)
@given(config=model_configs(), data=st.data())
def test_cached_logits_match_a_full_pass(config, data):
    total = 3 * config["seq_len"]
    model, ids = build(config).cuda(), random_ids(config, 2, total).cuda()
    check_cache(model, ids, data.draw(st.integers(1, total), label="prefill"), atol=1e-4)


@pytest.mark.parametrize("prefill", [1, 250, 900])
def test_cached_logits_match_a_full_pass_with_flex_attention(prefill):
    model, ids = build(WINDOWED).cuda(), torch.randint(97, 123, (2, 1000), device="cuda")
    check_cache(model, ids, prefill, atol=1e-3)  # logits are in the hundreds


@pytest.mark.parametrize("prefill", [1, 250, 900])
def test_replayed_steps_match_a_full_pass(prefill):
    model, ids = build(WINDOWED).cuda(), torch.randint(97, 123, (2, 1000), device="cuda")
    prepare_for_generation(model)
    check_cache(model, ids, prefill, atol=1e-3)
    check_cache(model, ids[:1], prefill, atol=1e-3)  # again, with a new cache and another batch size


@settings(max_examples=15)
@given(config=model_configs(max_levels=2), data=st.data())
def test_replayed_steps_of_drawn_models_match_a_full_pass(config, data):
    total = 3 * config["seq_len"]
    model, ids = build(config).cuda(), random_ids(config, 2, total).cuda()
    prepare_for_generation(model)
    check_cache(model, ids, data.draw(st.integers(1, total), label="prefill"), atol=1e-4)


def test_logits_do_not_depend_on_later_bytes():
    model, ids = build(WINDOWED).cuda(), torch.randint(0, 256, (2, 384), device="cuda")
    for t in (1, 127, 128, 200, 383):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % 256
        with torch.inference_mode():
            before, after = model(ids), model(changed)
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.equal(before[:, t:], after[:, t:])


def test_samples_do_not_depend_on_cache_replay_or_device():
    torch.manual_seed(0)
    model = HierarchicalTransformer(**WINDOWED)
    prompt = torch.randint(97, 123, (3, 200))

    samples = []
    cases = [  # device, use_cache, replayed
        ("cpu", True, False),
        ("cuda", True, False),
        ("cuda", False, False),
        ("cuda", True, True),
    ]
    for device, use_cache, replayed in cases:
        model.to(device)
        if replayed:
            prepare_for_generation(model)
            assert isinstance(model.forward, StepRecorder)
        generator = torch.Generator().manual_seed(0)
        sample = model.generate(prompt.to(device), 64, use_cache=use_cache, generator=generator)
        samples.append(sample.cpu())

    assert all(torch.equal(samples[0], other) for other in samples[1:])


def test_memory_of_windowed_attention_is_not_quadratic():
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    n = 1 << 16
    q, k, v = (torch.randn(1, 1, n, 16, device="cuda", requires_grad=True) for _ in range(3))
    Attend(causal=True, use_flash_attn=True, window_size=64)(q, k, v).sum().backward()
    used = torch.cuda.max_memory_allocated() - before  # bytes
    assert used < n * n / 16
