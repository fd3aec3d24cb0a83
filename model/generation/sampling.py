"""From logits to bytes, one after another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
NO_LIMIT = 1 << 62  # more tokens than there are

AHEAD = 256  # random numbers are taken from a generator so many at a time, as one takes almost as long

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

    @property
    def options(self) -> tuple[float, int, float, float, float]:
        """What `sampling_loops.draw` takes: those that are None have the value that changes nothing."""
        top_k = NO_LIMIT if self.top_k is None else int(self.top_k)
        top_p = 1.0 if self.top_p is None else float(self.top_p)
        return float(self.temperature), top_k, top_p, float(self.min_p or 0), float(self.repetition_penalty)


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
    rows are at the same position. What is kept of them is in NumPy, for the loops of `sampling_loops`.
    """

    def __init__(
        self, prompts: list[Tensor], length: int, sampling: Sampling, config: ModelConfig, generator: Generators
    ):
        from model.generation.sampling_loops import choose_tokens  # compiled when it is first needed

        self.choose_tokens = choose_tokens
        self.sampling = sampling
        self.options = sampling.options

        read = [within_reach(prompt, config).cpu().numpy() for prompt in prompts]
        self.prompt_lengths = np.array([len(prompt) for prompt in read])
        self.ends = self.prompt_lengths + length
        self.last_end = int(self.ends.max())
        self.shortest = int(self.prompt_lengths.min())
        self.longest = int(self.prompt_lengths.max())
        self.prompts = np.zeros((len(prompts), self.longest), dtype=np.int64)
        for row, prompt in zip(self.prompts, read, strict=True):
            row[: len(prompt)] = prompt

        # Tokens that a repetition penalty counts: those of a prompt from the start, as nothing is drawn within it.
        self.seen = np.zeros((len(prompts), config.num_tokens), dtype=bool)
        for seen, prompt in zip(self.seen, prompts, strict=True):
            seen[prompt.cpu().long().numpy()] = True
        self.stop = np.array(sampling.stop, dtype=np.int64)
        self.stopped = np.zeros(len(prompts), dtype=bool)
        self.token = np.zeros(len(prompts), dtype=np.int64)
        self.ids = torch.from_numpy(self.token[:, None])  # the same memory, (b 1)

        # Random numbers. A row that has a generator of its own draws the same bytes in any batch.
        self.generators = generator if isinstance(generator, Sequence) else [generator] * len(prompts)
        self.numbers = np.zeros((len(prompts), AHEAD))
        self.used = np.full(len(prompts), AHEAD)
        self.steps_until_refill = 0

    def advance(self, position: int, logits: Tensor) -> Tensor:
        """Choose each row's token at a position: drawn from the last logits (b n v), the prompt's, or the same again.

        Returns the tokens that are new (b), and `NOTHING` for rows that are in their prompt or have ended.

        Raises:
            UserError: if logits are not finite, as those of a model with broken weights.
        """
        if self.steps_until_refill == 0:
            self.refill()
        self.steps_until_refill -= 1
        new = np.empty(len(self.token), dtype=np.int64)
        are_finite = self.choose_tokens(
            position,
            np.ascontiguousarray(logits.float().cpu().numpy()),
            self.options,
            self.numbers,
            self.used,
            self.prompts,
            self.prompt_lengths,
            self.ends,
            self.stop,
            self.seen,
            self.stopped,
            self.token,
            new,
        )
        if not are_finite:
            raise UserError("the model's logits are not finite, so nothing can be drawn from them")
        return torch.from_numpy(new)

    def refill(self) -> None:
        """Take new random numbers for the rows that have used all of theirs."""
        for row in np.flatnonzero(self.used == AHEAD):
            if self.sampling.temperature != 0:  # else nothing is random
                self.numbers[row] = torch.rand(AHEAD, generator=self.generators[row], dtype=torch.float64).numpy()
            self.used[row] = 0
        self.steps_until_refill = AHEAD - int(self.used.max())  # a step uses one number of a row, or none

    def are_done(self, position: int) -> bool:
        """Whether no row has anything left to draw after this position."""
        if position + 1 < self.last_end and not self.sampling.stop:
            return False
        return bool((self.stopped | (position + 1 >= self.ends)).all())


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
        generator: a `torch.Generator` on the CPU, where random numbers come from (256 at a time), or a list of one for
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
            yield rows.advance(position, logits).to(device)
            if rows.are_done(position):
                return
            token = rows.ids.to(device)
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
