"""Continue a text with a trained model: `python generate.py RUN_DIR --prompt "The " --length 512`.

The prompt is `--prompt TEXT`, all bytes of `--prompt-file FILE`, or each line of `--prompts FILE`; `-` is standard
input. A single sample is printed while it is generated, several are printed when they are complete. The same seed
gives the same bytes, and a prompt gets the samples that it would get alone, up to rounding.

With `--score FILE` nothing is generated: the program prints how many bits each byte of the file costs the model, or
writes a page for the browser with `--heatmap`.
"""

import codecs
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor

from data import bytes_of_file
from evaluation.heatmap import byte_bits, write_heatmap
from model import HierarchicalTransformer
from model.generation.load import best_device, load_model
from model.generation.prepare import prepare_for_generation
from model.generation.sampling import NOTHING, Sampling, row_generators, within_reach
from training.command_line import parse_as, user_errors
from utils.errors import Mistake, UserError, reading_errors
from utils.files import user_path
from utils.terminal import harmless, run_program, say

MOST_FILE_BYTES = 100_000_000  # size of a file of prompts; a device such as /dev/zero has no end
MOST_PASS_BYTES = 65_536  # bytes of prompts in one pass, which takes up to 64 kB of memory for each

# New bytes of each sample so far, by the index of its prompt and its own index.
Samples = dict[tuple[int, int], bytearray]


@dataclass(frozen=True)
class Arguments:
    """The command line."""

    run_dir: str
    """a run directory"""
    prompt: str | None = None
    """the text to continue, at least one byte"""
    prompt_file: str | None = None
    """a file with the text to continue, - for standard input: all of its bytes, a newline at its end included"""
    prompts: str | None = None
    """a file with a text to continue in each line, - for standard input; line ends, also those of Windows, are left
    out; the same prompt gets the same samples, wherever it is in the file"""
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
    """number of samples of each prompt"""
    batch_size: PositiveInt = 64
    """at most this many samples are generated at once; fewer need less memory"""
    compile: bool = False
    """on a CPU: compile the model, which takes 20 seconds the first time, then generate faster; for long texts"""
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
        mistakes: list[Mistake | str] = []
        if sum(each is not None for each in (self.prompt, self.prompt_file, self.prompts, self.score)) != 1:
            mistakes.append("pass one of --prompt, --prompt-file, --prompts and --score")
        if self.heatmap is not None and self.score is None:
            mistakes.append("--heatmap needs --score FILE")
        for character in self.stop:
            if not character.isascii():
                count = len(character.encode(errors="surrogateescape"))
                number = {1: "none", 2: "two bytes", 3: "three bytes", 4: "four bytes"}[count]
                mistakes.append(f"--stop takes ASCII characters only: {character} is {number}")
        try:
            Sampling(**self.sampling)
        except UserError as error:
            mistakes += error.mistakes
        if mistakes:
            raise UserError(*mistakes)

    @property
    def stop_bytes(self) -> bytes:
        """The bytes that end a sample."""
        return self.stop.encode(errors="ignore")

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields of `Sampling`."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        return {name: getattr(self, name) for name in names} | {"stop": tuple(self.stop_bytes)}


def main(argv: list[str] | None = None) -> None:
    args = parse_as(Arguments, argv, "generate.py", __doc__)
    with user_errors():
        run(args)


def run(args: Arguments) -> None:
    """Generate or score, as the command line says."""
    prompts = [] if args.score is not None else read_prompts(args)
    model = load_model(user_path(args.run_dir), args.device or best_device())
    if args.score is not None:
        score_file(model, user_path(args.score), args)
        return
    prepare_for_generation(model, args.compile)
    continue_prompts(model, prompts, args)


# -- prompts


def read_prompts(args: Arguments) -> list[bytes]:
    """The prompts that the command line names.

    Raises:
        UserError: if a file cannot be read, or a prompt is empty.
    """
    if args.prompts is not None:
        return split_into_prompts(read_bytes("prompts", args.prompts), args.prompts)
    if args.prompt_file is not None:
        prompt = read_bytes("prompt_file", args.prompt_file)
        if not prompt:
            raise UserError(Mistake("prompt_file", f"{args.prompt_file}, which is empty", "at least one byte"))
        return [prompt]
    assert args.prompt is not None
    if not args.prompt:
        raise UserError(Mistake("prompt", args.prompt, "at least one byte"))
    return [args.prompt.encode(errors="surrogateescape")]  # bytes that are no UTF-8 as they were typed


def read_bytes(name: str, path: str) -> bytes:
    """The bytes of a file, or of standard input for "-". Errors name the flag."""
    with reading_errors(name, path):
        source = 0 if path == "-" else user_path(path)
        with open(source, "rb", closefd=path != "-") as file:
            content = file.read(MOST_FILE_BYTES + 1)
    if len(content) > MOST_FILE_BYTES:
        raise UserError(Mistake(name, f"more than {MOST_FILE_BYTES:,} bytes in {path}", "fewer"))
    return content


def split_into_prompts(content: bytes, path: str) -> list[bytes]:
    r"""The lines of a file without their ends, \n or \r\n.

    Raises:
        UserError: if a line is empty, or there is none.
    """
    lines = content.removesuffix(b"\n").split(b"\n")
    if any(line.endswith(b"\r") for line in lines):
        say(f"prompts: {path} has the line ends of Windows, \\r\\n, which are left out", stream=sys.stderr)
        lines = [line.removesuffix(b"\r") for line in lines]
    for number, line in enumerate(lines, start=1):
        if not line:
            raise UserError(Mistake("prompts", f"an empty line {number} in {path}", "at least one byte in each line"))
    return lines


# -- samples


def continue_prompts(model: HierarchicalTransformer, prompts: list[bytes], args: Arguments) -> None:
    """Generate the samples of each prompt and print them, in the order of the prompts.

    Raises:
        KeyboardInterrupt: at Ctrl-C, after printing what there is.
    """
    if len(prompts) == args.num_samples == 1 and not args.json:
        print_as_generated(prompts[0], draw(model, prompts, range(1), args))
        return

    prompts_at_once = max(1, args.batch_size // args.num_samples)
    for start in range(0, len(prompts), prompts_at_once):
        indices = range(len(prompts))[start : start + prompts_at_once]
        for first in range(0, args.num_samples, args.batch_size):
            numbers = range(args.num_samples)[first : first + args.batch_size]
            print_samples(model, prompts, indices, numbers, args)


def print_samples(
    model: HierarchicalTransformer, prompts: list[bytes], indices: range, numbers: range, args: Arguments
) -> None:
    """Generate samples with these numbers of the prompts at these indices, and print them."""
    samples: Samples = {(i, number): bytearray() for i in indices for number in numbers}
    interrupted = False
    try:
        for group in of_similar_length(model, prompts, indices, args.length):
            of_group = [samples[i, number] for i in group for number in numbers]
            for step in draw(model, [prompts[i] for i in group], numbers, args):
                append_step(of_group, step, args.stop_bytes)
    except KeyboardInterrupt:
        interrupted = True
        samples = {key: new for key, new in samples.items() if new}

    for (i, number), new in samples.items():
        print_sample(prompts, i, number, bytes(new), args)
    if interrupted:
        raise KeyboardInterrupt


def of_similar_length(
    model: HierarchicalTransformer, prompts: list[bytes], indices: range, most_apart: int
) -> Iterator[list[int]]:
    """Divide prompts into groups to generate together, given and returned as indices.

    In a group, longer prompts are still read byte by byte while shorter ones already draw. So lengths in a group differ
    by at most as many bytes as are drawn, and a group takes at most twice the steps of one prompt.
    """
    lengths = {i: len(within_reach(as_tensor(prompts[i]), model.config)) for i in indices}
    group: list[int] = []
    for i in sorted(indices, key=lambda i: lengths[i]):
        too_long = group and lengths[i] > lengths[group[0]] + most_apart
        too_many = (len(group) + 1) * lengths[i] > MOST_PASS_BYTES
        if group and (too_long or too_many):
            yield group
            group = []
        group.append(i)
    yield group


def draw(model: HierarchicalTransformer, prompts: list[bytes], numbers: range, args: Arguments) -> Iterator[list[int]]:
    """Yield the next byte of each sample, as `stream` does: neighbouring rows are samples of one prompt.

    A sample's random numbers depend on the seed and its number, and not on its prompt or the other prompts.
    """
    device = next(model.parameters()).device
    tokens = model.stream(
        [as_tensor(prompt).to(device) for prompt in prompts],
        args.length,
        num_samples=len(numbers),
        use_cache=not args.no_cache,
        generator=[each for _ in prompts for each in row_generators(args.seed, len(numbers), numbers[0])],
        **args.sampling,
    )
    for token in tokens:
        yield token.tolist()


def as_tensor(prompt: bytes) -> Tensor:
    """Bytes as a tensor (n) uint8."""
    return torch.frombuffer(bytearray(prompt), dtype=torch.uint8)


def append_step(samples: list[bytearray], step: list[int], stop_bytes: bytes) -> None:
    """Append the next byte to each sample, unless it is in its prompt or has met a stop byte."""
    for sample, byte in zip(samples, step, strict=True):
        has_ended = len(sample) > 0 and sample[-1] in stop_bytes
        if byte != NOTHING and not has_ended:
            sample.append(byte)


# -- output


def print_as_generated(prompt: bytes, steps: Iterator[list[int]]) -> None:
    """Print the prompt, then each character of its sample as soon as its last byte is generated."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    sys.stdout.write(harmless(decoder.decode(prompt)))
    sys.stdout.flush()
    try:
        for step in steps:
            sys.stdout.write(harmless(decoder.decode(bytes(step))))
            sys.stdout.flush()
    finally:
        print(harmless(decoder.decode(b"", final=True)))


def print_sample(prompts: list[bytes], i: int, number: int, new: bytes, args: Arguments) -> None:
    """Print a complete sample: a JSON object, or a header, the prompt and the new bytes."""
    prompt = prompts[i]
    if args.json:
        print(json.dumps(as_json(prompt, i, number, new, args.seed)))
        return
    parts = []
    if len(prompts) > 1:
        parts.append(f"prompt {i + 1} of {len(prompts)}")
    if args.num_samples > 1:
        parts.append(f"sample {number + 1} of {args.num_samples}")
    print(f"--- {', '.join(parts)} ---")
    print(harmless((prompt + new).decode(errors="replace")))


def as_json(prompt: bytes, i: int, number: int, new: bytes, seed: int) -> dict[str, Any]:
    """A sample as JSON values. Both indices count from 0. Bytes of a prompt are there if it is no UTF-8."""
    text = prompt.decode(errors="replace")
    of_prompt: dict[str, Any] = {"prompt_index": i, "prompt": text}
    if text.encode() != prompt:
        of_prompt["prompt_bytes"] = list(prompt)
    new_text = harmless(new.decode(errors="replace"))
    return {**of_prompt, "sample_index": number, "text": new_text, "bytes": list(new), "seed": seed}


# -- scores


def score_file(model: HierarchicalTransformer, path: Path, args: Arguments) -> None:
    """Print how many bits each byte of a file costs, and the mean, or write a page that shows them.

    Raises:
        UserError: if the file cannot be read, or has fewer than two bytes.
    """
    text = bytes_of_file("score", path)
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
