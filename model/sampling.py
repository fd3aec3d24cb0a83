"""From logits to bytes."""

import torch
from torch import Tensor


def filter_logits(
    logits: Tensor, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None
) -> Tensor:
    """Set to -inf what may not be drawn, in logits (b v); the likeliest token always stays.

    Args:
        top_k: keep this many tokens (ties with the last one stay too).
        top_p: keep the fewest likeliest tokens whose probabilities reach this sum (nucleus, arXiv 1904.09751).
        min_p: keep tokens at least this share as likely as the likeliest (arXiv 2407.01082).
    """
    keep = torch.ones_like(logits, dtype=torch.bool)
    if top_k is not None:
        keep &= logits >= logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
    if top_p is not None:
        ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        needed = ordered.cumsum(dim=-1) - ordered < top_p
        needed[:, 0] = True
        keep &= torch.zeros_like(keep).scatter(-1, order, needed)
    if min_p is not None:
        probs = logits.softmax(dim=-1)
        keep &= probs >= min_p * probs.amax(dim=-1, keepdim=True)
    return logits.masked_fill(~keep, float("-inf"))


@torch.inference_mode()
def generate(
    model,
    prompt: Tensor,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    use_cache: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue each row of prompt (b n) by `length` tokens: (b length), the new ones only.

    Args:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k, top_p, min_p: see `filter_logits`, applied at the given temperature.
        use_cache: never compute a byte twice; without it every byte runs a full pass over all before it.
        generator: where chance comes from, on the CPU; the same state gives the same bytes.

    Raises:
        ValueError: on an empty prompt, a negative length, or a sampling option out of its range.
    """
    check_sampling(prompt, length, temperature, top_k, top_p, min_p)
    was_training = model.training
    model.eval()
    ids, cache = prompt, model.empty_cache() if use_cache else None
    for i in range(length):
        fresh = ids[:, -1:] if use_cache and i else ids
        logits = model(fresh, cache=cache)[:, -1].float().cpu()
        if temperature == 0:
            new = logits.argmax(dim=-1, keepdim=True)
        else:
            probs = filter_logits(logits / temperature, top_k, top_p, min_p).softmax(dim=-1)
            new = torch.multinomial(probs, 1, generator=generator)
        ids = torch.cat((ids, new.to(ids.device)), dim=-1)
    model.train(was_training)
    return ids[:, prompt.shape[1] :]


def check_sampling(prompt: Tensor, length: int, temperature: float, top_k, top_p, min_p):
    """Raise a ValueError that names what does not fit."""
    checks = [
        ("prompt", tuple(prompt.shape), prompt.ndim == 2 and prompt.shape[1] > 0, "(b n) with at least one token"),
        ("length", length, length >= 0, "0 or more"),
        ("temperature", temperature, temperature >= 0, "0 or above"),
        ("top_k", top_k, top_k is None or top_k >= 1, "1 or more"),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1, "above 0, up to 1"),
        ("min_p", min_p, min_p is None or 0 <= min_p <= 1, "0 to 1"),
    ]
    problems = [f"{name}: got {got}, allowed: {allowed}" for name, got, legal, allowed in checks if not legal]
    if problems:
        raise ValueError("; ".join(problems))
