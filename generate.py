"""Continue a text with a trained model: `python generate.py RUN_DIR --prompt "The " --length 512`.

The same seed gives the same bytes. A single sample is printed while it is generated, several are printed at the end.
With `--score FILE` nothing is generated: the program prints how many bits each byte of the file costs the model, or
writes a page for the browser with `--heatmap`.
"""

import codecs
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor

from data.text import to_ids, to_text
from evaluation.heatmap import byte_bits, write_heatmap
from model import HierarchicalTransformer
from model.generation.load import best_device, load_model
from model.generation.prepare import prepare_for_generation
from model.generation.sampling import row_generators
from training.command_line import parse_as, user_errors
from utils.errors import Mistake, UserError, reading_errors
from utils.files import user_path
from utils.terminal import harmless, run_program


@dataclass(frozen=True)
class Arguments:
    """The command line."""

    run_dir: str
    """a run directory"""
    prompt: str | None = None
    """the text to continue, at least one byte"""
    length: NonNegativeInt = 512
    """number of bytes to generate"""
    temperature: float = 1.0
    """above 1 more varied, below 1 more likely text; 0 = always the most likely byte"""
    top_k: int | None = None
    """sample from only this many most likely bytes"""
    top_p: float | None = None
    """sample from only the most likely bytes whose probabilities sum to this"""
    min_p: float | None = None
    """sample from only bytes whose probability is at least this share of the highest"""
    repetition_penalty: float = 1.0
    """above 1 = bytes that are already in the text become less likely"""
    stop: str = ""
    """ASCII characters, each of which ends a sample, such as a newline"""
    seed: NonNegativeInt = 0
    """seed of the sampling"""
    num_samples: PositiveInt = 1
    """number of samples for the prompt"""
    compile: bool = False
    """on a CPU: compile the model first, which takes seconds, then generate faster; for long texts"""
    no_cache: bool = False
    """compute the whole text again for every byte"""
    score: str | None = None
    """a file: print how many bits each of its bytes costs instead of generating"""
    heatmap: str | None = None
    """with --score: write this HTML page instead of printing"""
    json: bool = False
    """print one JSON object per line"""
    device: str | None = None
    """cpu, cuda or mps; the best that this machine has if left out"""

    def __post_init__(self):
        mistakes = []
        if (self.prompt is None) == (self.score is None):
            mistakes.append("pass either --prompt or --score")
        if self.heatmap is not None and self.score is None:
            mistakes.append("--heatmap needs --score FILE")
        for character in self.stop:
            if not character.isascii():
                count = {2: "two", 3: "three", 4: "four"}[len(character.encode())]
                mistakes.append(f"--stop takes ASCII characters only: {character} is {count} bytes")
        if mistakes:
            raise UserError(*mistakes)


def main(argv: list[str] | None = None) -> None:
    args = parse_as(Arguments, argv, "generate.py", __doc__)
    with user_errors():
        model = load_model(user_path(args.run_dir), args.device or best_device())
        if args.score is not None:
            score_file(model, user_path(args.score), args)
        elif args.prompt is not None:
            continue_prompt(model, args.prompt, args)


def continue_prompt(model: HierarchicalTransformer, prompt: str, args: Arguments) -> None:
    """Generate the samples and print them."""
    prepare_for_generation(model, args.compile)
    device = next(model.parameters()).device
    ids = to_ids(prompt)
    stop_bytes = args.stop.encode()
    tokens = model.stream(
        ids.to(device),
        args.length,
        num_samples=args.num_samples,
        use_cache=not args.no_cache,
        generator=row_generators(args.seed, args.num_samples),
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        stop=tuple(stop_bytes),
    )
    if args.num_samples == 1 and not args.json:
        print_as_generated(to_text(ids[0]), tokens)
        return

    columns = [token.tolist() for token in tokens]  # a list per byte, with the byte of each sample
    for i in range(args.num_samples):
        sample = until_stop([column[i] for column in columns], stop_bytes)
        text = to_text(torch.tensor(sample))
        if args.json:
            print(json.dumps({"prompt": prompt, "text": text, "bytes": sample, "seed": args.seed}))
        else:
            print(f"--- sample {i + 1} of {args.num_samples} ---")
            print(to_text(ids[0]) + text)


def print_as_generated(prompt: str, tokens: Iterator[Tensor]) -> None:
    """Print the prompt, then each character of a sample as soon as its last byte is generated."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    sys.stdout.write(prompt)
    for token in tokens:
        sys.stdout.write(harmless(decoder.decode(bytes(token.tolist()))))
        sys.stdout.flush()
    print(harmless(decoder.decode(b"", final=True)))


def until_stop(sample: list[int], stop_bytes: bytes) -> list[int]:
    """A sample up to and including its first stop byte."""
    for i, byte in enumerate(sample):
        if byte in stop_bytes:
            return sample[: i + 1]
    return sample


def score_file(model: HierarchicalTransformer, path: Path, args: Arguments) -> None:
    """Print how many bits each byte of a file costs, and the mean, or write a page that shows them.

    Raises:
        UserError: if the file cannot be read, or has fewer than two bytes.
    """
    with reading_errors("score", path):
        text = np.fromfile(path, dtype=np.uint8)
    if args.heatmap is not None:
        print(json.dumps(write_heatmap(user_path(args.heatmap), model, text, user_path(args.run_dir), path)))
        return

    if len(text) < 2:
        raise UserError(Mistake("score", f"{len(text)} bytes", "at least 2"))
    bits = byte_bits(model, text)
    for byte, cost in zip(text.tolist(), bits.tolist(), strict=True):
        if args.json:
            print(json.dumps({"byte": byte, "bits": round(cost, 4)}))
        else:
            print(f"{byte:3d} {chr(byte)!r:7} {cost:8.4f}")
    print(json.dumps({"bits_per_byte": round(bits.mean(), 5), "bytes": len(text)}))


if __name__ == "__main__":
    run_program(main)
