"""From logits to bytes, one after another."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.cache import Cache


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from its logits.

    Args:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: keep this many likeliest tokens.
        top_p: keep the fewest likeliest tokens whose probabilities reach this sum (nucleus, arXiv 1904.09751).
        min_p: keep tokens at least this share as likely as the likeliest (arXiv 2407.01082).
        repetition_penalty: makes tokens that were seen before this much less likely (arXiv 1909.05858); 1 does nothing.
        stop: tokens that end a sample.

    Raises:
        ValueError: naming each option that is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: tuple[int, ...] = ()

    def __post_init__(self):
        checks = [
            ("temperature", self.temperature >= 0, "0 or above"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0, up to 1"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ]
        problems = [
            f"{name}: got {getattr(self, name)}, allowed: {allowed}" for name, legal, allowed in checks if not legal
        ]
        if problems:
            raise ValueError("; ".join(problems))

    def draw(self, logits: Tensor, seen: Tensor, generator: torch.Generator | None) -> Tensor:
        """One token for each row of logits (b v), where `seen` (b v) marks the tokens that came before: (b 1)."""
        if self.repetition_penalty != 1:
            lowered = torch.where(logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty)
            logits = torch.where(seen, lowered, logits)
        if self.temperature == 0:
            return logits.argmax(dim=-1, keepdim=True)
        logits = filter_logits(logits / self.temperature, self.top_k, self.top_p, self.min_p)
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)


def filter_logits(
    logits: Tensor, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None
) -> Tensor:
    """Set to -inf what `Sampling` may not draw, in logits (b v); the likeliest token always stays, ties with it too."""
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
def stream(
    model,
    prompt: Tensor,
    length: int,
    *,
    use_cache: bool = True,
    generator: torch.Generator | None = None,
    **sampling,
) -> Iterator[Tensor]:
    """Continue each row of prompt (b n) by `length` tokens, (b) each as they come; ends early when all rows have.

    Args:
        use_cache: never compute a byte twice; without it every byte runs a full pass over all before it.
        generator: where chance comes from, on the CPU; the same state gives the same bytes.
        sampling: fields of `Sampling`. Rows that have met a stop token repeat it.

    Raises:
        ValueError: at the first token, on an empty prompt, a negative length, or a sampling option out of its range.
    """
    if prompt.ndim != 2 or prompt.shape[1] == 0:
        raise ValueError(f"prompt: got shape {tuple(prompt.shape)}, allowed: (b n) with at least one token")
    if length < 0:
        raise ValueError(f"length: got {length}, allowed: 0 or more")
    options, ids, fresh, was_training = Sampling(**sampling), prompt, prompt, model.training
    model.eval()
    cache = Cache() if use_cache else None
    stops = torch.tensor(options.stop, dtype=torch.long)
    seen = torch.zeros(len(ids), model.config.num_tokens, dtype=torch.bool).scatter(1, ids.cpu(), True)
    new, done = None, torch.zeros(len(ids), 1, dtype=torch.bool)
    try:
        for _ in range(length):
            logits = model(fresh, cache=cache)[:, -1].float().cpu()
            drawn = options.draw(logits, seen, generator)
            new = drawn if new is None else torch.where(done, new, drawn)
            yield new[:, 0].to(ids.device)
            done = done | torch.isin(new, stops)
            if done.all():
                return
            seen.scatter_(1, new, True)
            fresh = new.to(ids.device)
            if not use_cache:
                ids = fresh = torch.cat((ids, fresh), dim=1)
    finally:
        model.train(was_training)


def generate(model, prompt: Tensor, length: int, **options) -> Tensor:
    """The tokens of `stream`, whose options it takes, together: (b length), the new ones only."""
    new = list(stream(model, prompt, length, **options))
    return torch.stack(new, dim=1) if new else prompt[:, :0]
