"""Each loss against a slow, plain computation, output by output and byte by byte."""

from math import gcd

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from model import ModelConfig
from model.losses import ByteLoss, NextLatent, Quantizer

SHAPES = {"c": st.sampled_from([2, 3, 4, 6, 8]), "s": st.sampled_from([1, 2, 3, 4, 6, 8]), "n": st.integers(1, 20)}


def draw(c, s, n):
    """A level, its outputs and units, n bytes and their labels, and the byte at which each output's unit ends."""
    torch.manual_seed(0)
    level = ModelConfig(dim=6, hierarchies=(1, c), hierarchical_stride=(1, gcd(s, c))).levels[1]
    text = torch.randint(0, 7, (2, n + 1))
    ends = list(range(0, n, level.stride))
    return level, torch.randn(2, len(ends), 6), level.segments.cut(text[:, :-1]), text[:, :-1], text[:, 1:], ends


def nats(head, embed, c, targets):
    """Cost of each (place, byte) of targets, read from one output."""
    chances = head(embed).unflatten(0, (c, 7)).log_softmax(-1)
    return [-chances[place, byte] for place, byte in targets]


@given(**SHAPES)
def test_reconstruction_predicts_the_bytes_that_each_output_compressed(c, s, n):
    level, embeds, units, ids, labels, ends = draw(c, s, n)
    loss = ByteLoss(level, 1.0, 7, 6, ahead=False)
    costs = []
    for b in range(2):
        for k, end in enumerate(ends):
            targets = [(i, ids[b, t]) for i, t in enumerate(range(end - c + 1, end + 1)) if t >= 0]
            costs += nats(loss.to_logits, embeds[b, k], c, targets)
    torch.testing.assert_close(loss(embeds, units, ids, labels, None), torch.stack(costs).mean())


@given(**SHAPES)
def test_prophet_predicts_the_bytes_after_each_output(c, s, n):
    level, embeds, units, ids, labels, ends = draw(c, s, n)
    loss = ByteLoss(level, 1.0, 7, 6, ahead=True)
    costs = []
    for b in range(2):
        for k, end in enumerate(ends):
            targets = [(i, labels[b, end + i]) for i in range(c) if end + i < n]
            costs += nats(loss.to_logits, embeds[b, k], c, targets)
    torch.testing.assert_close(loss(embeds, units, ids, labels, None), torch.stack(costs).mean())


@given(**SHAPES)
def test_quantizer_predicts_the_codes_of_whole_chunks_ahead(c, s, n):
    level, embeds, units, ids, labels, ends = draw(c, s, n)
    loss = Quantizer(level, 1.0, 7, 6)
    costs = []
    for b in range(2):
        for k, end in enumerate(ends):
            if end + c <= n:
                projected = sum(loss.projection[i, labels[b, end + i]] for i in range(c))
                code = F.cosine_similarity(projected, loss.codebook, dim=-1).argmax()
                costs.append(-loss.to_logits(embeds[b, k]).log_softmax(-1)[code])
    expected = torch.stack(costs).mean() if costs else torch.tensor(0.0)
    torch.testing.assert_close(loss(embeds, units, ids, labels, None), expected)
    assert [name for name, _ in loss.named_parameters()] == ["to_logits.weight"]


@given(rollouts=st.integers(1, 3), **SHAPES)
def test_next_latent_predicts_one_output_from_the_one_before(rollouts, c, s, n):
    level, embeds, units, ids, labels, ends = draw(c, s, n)
    embeds.requires_grad_()
    x = torch.randn(2, n, 5, requires_grad=True)
    loss = NextLatent(level, 1.0, 7, 5, rollouts)
    costs = []
    for b in range(2):
        for k in range(len(ends) - rollouts):
            latent, accumulated_error = embeds[b, k], 0.0
            for step in range(1, rollouts + 1):
                end = ends[k + step]
                summary = loss.summarize(x[b, max(0, end - c + 1) : end + 1].mean(0))
                latent = latent + loss.to_out(loss.hidden(torch.cat((latent, summary))))
                target = embeds[b, k + step].detach()
                error = 0.1 * F.mse_loss(latent, target) + 0.9 * (1 - F.cosine_similarity(latent, target, dim=0))
                costs.append(error * torch.tensor(-accumulated_error).exp())
                accumulated_error += error.item()
    result = loss(embeds, units, ids, labels, x)
    torch.testing.assert_close(result, torch.stack(costs).mean() if costs else torch.tensor(0.0))
    result.backward()
    assert x.grad is None and embeds.grad is not None  # summaries are detached


@given(c=st.sampled_from([2, 4, 6]), n=st.integers(1, 40))
def test_units_of_words_that_are_not_real_cost_nothing(c, n):
    """A text in which each word has c bytes has the losses of a stride of c, also beside a row with fewer units."""
    torch.manual_seed(0)
    stride, words = (
        ModelConfig(dim=6, hierarchies=(1, c), boundaries=boundaries).levels[1] for boundaries in ("stride", "words")
    )
    text = torch.tensor([list((b" " + b"a" * (c - 1)) * 41)])[:, : n + 1]
    one_word = torch.full_like(text, ord("a"))
    outputs, x = torch.randn(1, stride.segments.count(n), 6), torch.randn(1, n, 5)
    for module in (
        ByteLoss(words, 1.0, 256, 6, ahead=False),
        ByteLoss(words, 1.0, 256, 6, ahead=True),
        NextLatent(words, 1.0, 256, 5, 2),
        Quantizer(words, 1.0, 256, 6),
    ):
        costs = []
        for level in (stride, words):
            units = level.segments.cut(text[:, :-1])
            costs.append(module(outputs, units, text[:, :-1], text[:, 1:], x))
        torch.testing.assert_close(costs[0], costs[1])

        units = words.segments.cut(one_word[:, :-1])
        changed = torch.where(units.real[..., None], outputs, torch.randn_like(outputs))
        alone, other = (module(o, units, one_word[:, :-1], one_word[:, 1:], x) for o in (outputs, changed))
        torch.testing.assert_close(alone, other)
