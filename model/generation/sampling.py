"""From logits to bytes, one after another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig
from model.generation.cache import Cache
from utils.checks import is_number, require
from utils.errors import Mistake, UserError, as_typed

# Where random numbers come from: PyTorch's default generator, one for the whole batch, or one for each row.
Generators = torch.Generator | Sequence[torch.Generator] | None

# Beyond these a float32 overflows when logits are multiplied or divided.
SMALLEST = 1e-30
LARGEST = 1e30
TINY = 1e-38  # divides logits at a temperature of 0, or close to it; a float64 does not overflow

AHEAD = 64  # random numbers are taken from a generator so many at a time, as one takes almost as long

NOTHING = -1  # in a step of `stream`: a row that is still in its prompt, or has ended


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from its logits.

    Raises:
        UserError: that names each option outside its range.
    """

    temperature: float = 1.0
    """divides the logits; 0 takes the likeliest token, and so does a tiny one"""
    top_k: int | None = None
    """keep this many likeliest tokens"""
    top_p: float | None = None
    """keep the fewest likeliest tokens whose probabilities sum to this (arXiv 1904.09751)"""
    min_p: float | None = None
    """keep tokens at least this many times as likely as the likeliest (arXiv 2407.01082)"""
    repetition_penalty: float = 1.0
    """above 1, makes tokens seen before less likely (arXiv 1909.05858)"""
    stop: tuple[int, ...] = ()
    """tokens that end a sample"""

    def __post_init__(self):
        top_k_fits = self.top_k is None or is_number(self.top_k, 1, Integral)
        top_p_fits = self.top_p is None or (is_number(self.top_p, 0, Real) and 0 < self.top_p <= 1)
        min_p_fits = self.min_p is None or (is_number(self.min_p, 0, Real) and self.min_p <= 1)
        penalty = self.repetition_penalty
        penalty_fits = is_number(penalty, SMALLEST, Real) and penalty <= LARGEST
        temperature_fits = is_number(self.temperature, 0, Real) and self.temperature <= LARGEST
        stop_fits = isinstance(self.stop, Sequence) and all(is_number(token, 0, Integral) for token in self.stop)
        require(
            vars(self),
            temperature=(temperature_fits, f"0 to {LARGEST:g}"),
            top_k=(top_k_fits, "a whole number, 1 or above"),
            top_p=(top_p_fits, "above 0, up to 1"),
            min_p=(min_p_fits, "0 to 1"),
            repetition_penalty=(penalty_fits, f"{SMALLEST:g} to {LARGEST:g}"),
            stop=(stop_fits, "a list of tokens"),
        )

    def draw(self, logits: np.ndarray, seen: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """One token for each row of logits (b v): (b).

        The simple version lays the tokens' probabilities side by side, and takes the token in which a random number
        from 0 to 1 lies. So a draw needs a single random number, however many tokens there are.

        Args:
            seen: marks the tokens that came before, for a repetition penalty (b v).
            uniform: the random numbers, below 1, float64 (b).

        Raises:
            UserError: when logits are not finite.
        """
        if self.repetition_penalty != 1:
            penalised = np.where(logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty)
            logits = np.where(seen, penalised, logits)
        if self.temperature == 0:
            return logits.argmax(axis=-1)
        chances = np.exp(self.filter(self.heat(logits)))  # not divided by their sum
        ends = chances.cumsum(axis=-1)  # where each token's part ends
        return (ends <= uniform[:, None] * ends[:, -1:]).sum(axis=-1)

    def heat(self, logits: np.ndarray) -> np.ndarray:
        """Logits (b v) divided by the temperature, after subtracting the largest, which changes no probability.

        The largest is then 0 at any temperature, where a quotient alone could overflow. In float64.

        Raises:
            UserError: if logits are not finite, as those of a model with broken weights.
        """
        largest = logits.max(axis=-1, keepdims=True)
        if not all(map(isfinite, largest[:, 0])):  # what is not a number counts as the largest
            raise UserError("the model's logits are not finite, so nothing can be drawn from them")
        return (logits.astype(np.float64) - largest) / max(self.temperature, TINY)  # never 0 / 0

    def filter(self, logits: np.ndarray) -> np.ndarray:
        """Set logits (b v) of tokens that must not be drawn to -inf. The likeliest token and its ties stay.

        Args:
            logits: the largest of each row is 0.
        """
        if self.min_p is None and self.top_k is None and self.top_p is None:
            return logits
        chances = np.exp(logits)  # times as likely as the likeliest
        keep = np.ones_like(logits, dtype=bool)
        if self.min_p is not None:
            keep &= chances >= self.min_p
        if self.top_k is not None:
            kth_largest = np.sort(logits, axis=-1)[:, -min(self.top_k, logits.shape[-1]), None]
            keep &= logits >= kth_largest
        if self.top_p is not None:
            order = np.argsort(-logits, axis=-1, kind="stable")
            ordered = np.take_along_axis(chances, order, axis=-1)
            likelier = ordered.cumsum(axis=-1) - ordered  # chances of all likelier tokens
            kept = likelier < self.top_p * ordered.sum(axis=-1, keepdims=True)
            kept[:, 0] = True  # also if top_p is too small for a float64
            keep &= np.take_along_axis(kept, np.argsort(order, axis=-1), axis=-1)
        return np.where(keep, logits, -np.inf)


def reach(config: ModelConfig) -> int:
    """How many bytes before a byte its logits can depend on, at most.

    In each layer a token depends on its level's window of keys, and reaches one token further by each of two token
    shifts and a merge. Before the first layer come the lookups and the compression.
    """
    lookups = max((config.seq_len, *config.ngrams))
    layer = max((level.window + 3) * level.longest_token for level in config.levels)
    return lookups + (1 + config.num_layers) * layer


def within_reach(prompt: Tensor, config: ModelConfig) -> Tensor:
    """The end of a prompt (n) that the logits after it can depend on.

    It begins at a byte from which the units of all levels are those of the whole prompt.
    """
    common = config.period
    out_of_reach = max(0, len(prompt) - 1 - reach(config))
    return prompt[out_of_reach // common * common :]


class Rows:
    """The rows of one call of `stream`: their prompts, and how far each of them is.

    Row i reads the end of its prompt that is within reach, up to `prompt_lengths[i]`, then draws `length` tokens. All
    rows are at the same position. What is kept of them is in NumPy, whose operations on a few numbers take less time
    than PyTorch's.
    """

    def __init__(
        self, prompts: list[Tensor], length: int, sampling: Sampling, config: ModelConfig, generator: Generators
    ):
        self.sampling = sampling

        read = [within_reach(prompt, config).cpu().numpy() for prompt in prompts]
        self.prompt_lengths = np.array([len(prompt) for prompt in read])
        self.ends = self.prompt_lengths + length
        self.shortest = int(self.prompt_lengths.min())
        self.longest = int(self.prompt_lengths.max())
        self.prompts = np.zeros((len(prompts), self.longest), dtype=np.int64)
        for row, prompt in zip(self.prompts, read, strict=True):
            row[: len(prompt)] = prompt

        # Tokens that a repetition penalty counts: those of a prompt from the start, as nothing is drawn within it.
        self.seen = np.zeros((len(prompts), config.num_tokens), dtype=bool)
        for seen, prompt in zip(self.seen, prompts, strict=True):
            seen[prompt.cpu().long().numpy()] = True
        self.stopped = np.zeros(len(prompts), dtype=bool)
        self.token = np.zeros(len(prompts), dtype=np.int64)

        # A row that has a generator of its own draws the same bytes in any batch.
        if isinstance(generator, Sequence):
            self.numbers = [random_numbers(each) for each in generator]
        else:
            self.numbers = [random_numbers(generator)] * len(prompts)

    def advance(self, position: int, logits: Tensor) -> Tensor:
        """Choose each row's token at a position: drawn from logits (b v), the prompt's, or the last one again.

        Returns the tokens that are new (b), and `NOTHING` for rows that are in their prompt or have ended.
        """
        in_prompt = position < self.prompt_lengths
        in_length = ~in_prompt & (position < self.ends)
        drawing = in_length & ~self.stopped

        drawn = self.sampling.draw(logits.float().cpu().numpy(), self.seen, self.uniform(drawing))
        self.token = np.where(drawing, drawn, self.token)
        if position < self.longest:
            self.token = np.where(in_prompt, self.prompts[:, position], self.token)

        if self.sampling.repetition_penalty != 1:
            self.seen[np.arange(len(self.token)), self.token] = True
        if self.sampling.stop:
            self.stopped |= drawing & np.isin(self.token, self.sampling.stop)
        return torch.from_numpy(np.where(in_length, self.token, NOTHING))

    def uniform(self, drawing: np.ndarray) -> np.ndarray:
        """A random number from 0 up to 1 for each row that draws, and 0 for the others: float64 (b)."""
        if self.sampling.temperature == 0:  # nothing is random
            return np.zeros(len(drawing))
        pairs = zip(drawing.tolist(), self.numbers, strict=True)
        return np.array([next(numbers) if draws else 0.0 for draws, numbers in pairs])

    def are_done(self, position: int) -> bool:
        """Whether no row has anything left to draw after this position."""
        return bool((self.stopped | (position + 1 >= self.ends)).all())


def random_numbers(generator: torch.Generator | None) -> Iterator[float]:
    """Numbers from 0 up to 1, which are taken from a generator `AHEAD` at a time."""
    while True:
        yield from torch.rand(AHEAD, generator=generator, dtype=torch.float64).tolist()


@torch.inference_mode()
def stream(
    model,
    prompt: Tensor | Sequence[Tensor],
    length: int,
    *,
    num_samples: int = 1,
    use_cache: bool = True,
    generator: Generators = None,
    **sampling,
) -> Iterator[Tensor]:
    """Continue each prompt by `length` tokens, and yield the next token of each row (b), step by step.

    Every row gets what it would get alone. Of a long prompt, only the end that can make a difference is read, so time
    and memory do not grow with its length. Of prompts with different lengths, all are read up to the length of the
    shortest at once, and the longer ones byte by byte while the shorter ones already draw: a row yields -1 while it
    still reads its prompt, and after its last token. Ends early when every row has met a stop token, which rows repeat.

    Args:
        prompt: (b n), or a list of prompts (n) or (1 n), each of any length.
        num_samples: samples of each prompt, which is read once; samples of one prompt are neighbouring rows.
        use_cache: never compute a byte twice; without it, each byte runs a full pass over all bytes before it.
        generator: a `torch.Generator` on the CPU, where random numbers come from (64 at a time), or a list of one for
            each row, with which a row draws the same bytes in any batch. The same state gives the same bytes.
        sampling: fields of `Sampling`.

    Raises:
        UserError: at the first token, for an empty prompt, a negative length, or from `Sampling`.
    """
    unique = [each[0] if each.ndim == 2 and len(each) == 1 else each for each in prompt]
    check_arguments(unique, length, num_samples, generator, model.config.num_tokens)
    repeated = [each for each in unique for _ in range(num_samples)]
    rows = Rows(repeated, length, Sampling(**sampling), model.config, generator)
    device = unique[0].device
    cache = Cache() if use_cache else None

    was_training = model.training
    model.eval()
    try:
        # Read each prompt once, then copy the state for its samples.
        ids = torch.from_numpy(rows.prompts[::num_samples, : rows.shortest]).to(device)
        logits = model(ids, cache=cache)
        if num_samples > 1:
            ids = ids.repeat_interleave(num_samples, dim=0)
            logits = logits.repeat_interleave(num_samples, dim=0)
            cache = None if cache is None else cache.expand(num_samples)

        # Choose a token for each row, and read it.
        for position in range(rows.shortest, rows.longest + length):
            yield rows.advance(position, logits[:, -1]).to(device)
            if rows.are_done(position):
                return
            token = torch.from_numpy(rows.token)[:, None].to(device)
            ids = token if use_cache else torch.cat((ids, token), dim=1)
            logits = model(ids, cache=cache)
    finally:
        model.train(was_training)


def generate(model, prompt: Tensor | Sequence[Tensor], length: int, **options) -> Tensor:
    """Continue each prompt by `length` tokens: the new tokens (b length), without the prompts.

    Takes the options of `stream`: num_samples, use_cache, generator, temperature, top_k, top_p, min_p,
    repetition_penalty, stop. Returns fewer than `length` tokens if every row met a stop token; a row that met one
    earlier than the others repeats it.
    """
    steps = list(stream(model, prompt, length, **options))
    if not steps:
        rows = len(prompt) * options.get("num_samples", 1)
        return torch.zeros(rows, 0, dtype=torch.long, device=prompt[0].device)
    new = [row[row != NOTHING] for row in torch.stack(steps, dim=1)]
    longest = max(map(len, new))
    return torch.stack([torch.cat((row, row[-1:].expand(longest - len(row)))) for row in new])


def row_generators(seed: int, rows: int, first: int = 0) -> list[torch.Generator]:
    """A generator for each row of a batch, so that sample i of a seed is the same in a batch of any size.

    Seeds of neighbouring rows must not be neighbouring numbers, or seed 1 and seed 2 would share samples.

    Args:
        first: which sample the first row is.
    """
    generators = []
    for row in range(first, first + rows):
        generator = torch.Generator()
        generator.manual_seed((seed + row * 0x9E3779B97F4A7C15) % (1 << 63))
        generators.append(generator)
    return generators


def check_arguments(
    prompts: list[Tensor], length: int, num_samples: int, generator: Generators, num_tokens: int
) -> None:
    """Raise a UserError that names each argument of `stream` that does not fit."""
    shapes = [list(each.shape) for each in prompts]
    one_dimensional = all(each.ndim == 1 and len(each) > 0 for each in prompts)
    require(
        {"prompt": f"the shapes {as_typed(shapes)}", "length": length, "num_samples": num_samples},
        prompt=(one_dimensional and len(prompts) > 0, "(b n), or a list of (n), with at least one token each"),
        length=(is_number(length, 0, Integral), "0 or more"),
        num_samples=(is_number(num_samples, 1, Integral), "1 or more"),
    )
    for each in prompts:
        low, high = (value.item() for value in (each if each.is_floating_point() else each.long()).aminmax())
        if each.is_floating_point() or low < 0 or high >= num_tokens:
            got = f"{each.dtype} from {low} to {high}"
            raise UserError(Mistake("prompt", got, f"whole numbers from 0 to {num_tokens - 1}"))
    rows = len(prompts) * num_samples
    if isinstance(generator, Sequence) and len(generator) != rows:
        raise UserError(Mistake("generator", f"{len(generator)} generators", f"one for each of the {rows} rows"))
