"""From logits to bytes, one after another."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.block import Cache
from utils.checks import require


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from its logits. A ValueError names each option that is out of its range."""

    temperature: float = 1.0  # divides the logits; 0 takes the likeliest token
    top_k: int | None = None  # keep this many likeliest tokens
    top_p: float | None = None  # keep the fewest likeliest tokens whose probabilities sum to this (arXiv 1904.09751)
    min_p: float | None = None  # keep tokens at least this share as likely as the likeliest (arXiv 2407.01082)
    repetition_penalty: float = 1.0  # above 1, makes tokens seen before less likely (arXiv 1909.05858)
    stop: tuple[int, ...] = ()  # tokens that end a sample

    def __post_init__(self):
        require(
            vars(self),
            temperature=(self.temperature >= 0, "0 or above"),
            top_k=(self.top_k is None or self.top_k >= 1, "1 or more"),
            top_p=(self.top_p is None or 0 < self.top_p <= 1, "above 0, up to 1"),
            min_p=(self.min_p is None or 0 <= self.min_p <= 1, "0 to 1"),
            repetition_penalty=(self.repetition_penalty > 0, "above 0"),
        )

    def draw(self, logits: Tensor, seen: Tensor, generator: torch.Generator | None) -> Tensor:
        """One token for each row of logits (b v), where `seen` (b v) marks the tokens that came before: (b 1)."""
        lowered = torch.where(logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty)
        logits = torch.where(seen, lowered, logits)
        if self.temperature == 0:
            return logits.argmax(dim=-1, keepdim=True)
        return torch.multinomial(self.filter(logits / self.temperature).softmax(dim=-1), 1, generator=generator)

    def filter(self, logits: Tensor) -> Tensor:
        """Set to -inf what may not be drawn, in logits (b v); the likeliest token always stays, ties with it too."""
        probs = logits.softmax(dim=-1)
        keep = probs >= (self.min_p or 0) * probs.amax(dim=-1, keepdim=True)
        if self.top_k is not None:
            keep &= logits >= logits.topk(min(self.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        if self.top_p is not None:
            ordered, order = probs.sort(dim=-1, descending=True)
            keep &= torch.zeros_like(keep).scatter(-1, order, ordered.cumsum(dim=-1) - ordered < self.top_p)
        return logits.masked_fill(~keep, float("-inf"))


@torch.inference_mode()
def stream(model, prompt: Tensor, length: int, *, use_cache=True, generator=None, **sampling) -> Iterator[Tensor]:
    """Continue each row of prompt (b n) by `length` tokens, (b) each as they come; ends early when all rows have.

    Args:
        use_cache: never compute a byte twice; without it every byte runs a full pass over all before it.
        generator: a torch.Generator on the CPU, where chance comes from; the same state gives the same bytes.
        sampling: fields of `Sampling`. Rows that have met a stop token repeat it.
    A ValueError comes at the first token, on an empty prompt, a negative length, or from `Sampling`.
    """
    fits = prompt.ndim == 2 and prompt.shape[1] > 0, "(b n) with at least one token"
    require({"prompt": tuple(prompt.shape), "length": length}, prompt=fits, length=(length >= 0, "0 or more"))
    options, cache, was_training = Sampling(**sampling), Cache() if use_cache else None, model.training
    model.eval()
    ids, new, done = prompt, prompt[:, -1:].cpu(), torch.zeros(len(prompt), 1, dtype=torch.bool)
    seen = torch.zeros(len(ids), model.config.num_tokens, dtype=torch.bool).scatter(1, ids.cpu(), True)
    try:
        for _ in range(length):
            logits = model(ids, cache=cache)[:, -1].float().cpu()
            new = torch.where(done, new, options.draw(logits, seen, generator))
            yield new[:, 0].to(ids.device)
            done |= torch.isin(new, torch.tensor(options.stop, dtype=torch.long))
            if done.all():
                return
            seen.scatter_(1, new, True)
            ids = new.to(ids.device) if use_cache else torch.cat((ids, new.to(ids.device)), dim=1)
    finally:
        model.train(was_training)


def generate(model, prompt: Tensor, length: int, **options) -> Tensor:
    """The tokens of `stream`, whose options it takes, together: (b length), the new ones only."""
    new = list(stream(model, prompt, length, **options))
    return torch.stack(new, dim=1) if new else prompt[:, :0]
