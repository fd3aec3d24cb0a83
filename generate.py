"""Text from a trained model: `python generate.py RUN_DIR --prompt "The " --length 512`.

The same seed gives the same bytes. One sample is written as it comes, several one after another. With `--score FILE` it
writes no text, but what each byte of a text costs the model: as lines, or with `--heatmap` as a page for a browser.
"""

import codecs
import json
import sys
from pathlib import Path

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt

from data.text import show, to_ids, to_text
from evaluation.heatmap import byte_bits, write_heatmap
from model import HierarchicalTransformer
from model.generation.load import best_device, load_model
from model.generation.prepare import prepare_for_generation
from training.command_line import Parser, fail, user_errors

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="generate.py", description=__doc__)
    parser.add_argument("run_dir", type=str, help="a run directory")
    parser.add_argument("--prompt", type=str | None, help="text to continue, at least one byte")
    parser.add_argument("--length", type=NonNegativeInt, default=512, help="bytes to add")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 = always the likeliest byte")
    parser.add_argument("--top-k", type=int | None, help="draw from this many likeliest bytes")
    parser.add_argument("--top-p", type=float | None, help="draw from the likeliest bytes that sum to this")
    parser.add_argument("--min-p", type=float | None, help="draw from bytes this likely beside the likeliest")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="against bytes seen before")
    parser.add_argument("--stop", type=str | None, help="ASCII characters that end a sample, such as a newline")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of the draw")
    parser.add_argument("--num-samples", type=PositiveInt, default=1, help="samples of the same prompt")
    parser.add_argument("--compile", action="store_true", help="on a CPU: seconds first, then faster, for long texts")
    parser.add_argument("--no-cache", action="store_true", help="compute everything again for every byte")
    parser.add_argument("--score", type=str | None, help="a file: print what each of its bytes costs, in bits")
    parser.add_argument("--heatmap", type=str | None, help="with --score: write this page.html instead")
    parser.add_argument("--json", action="store_true", help="print JSON, an object a line")
    parser.add_argument("--device", type=str, default=best_device(), help="cpu, cuda or mps")
    args = parser.parse_args(argv)

    if (args.prompt is None) == (args.score is None):
        fail("prompt: got neither or both of --prompt and --score, allowed: one of them")
    if args.heatmap is not None and args.score is None:
        fail(f"heatmap: got {args.heatmap} without --score, allowed: with the --score FILE that it shows")
    if not (args.stop or "").isascii():
        fail(f"stop: got {args.stop}, allowed: ASCII characters, which are a byte each")
    with user_errors():
        model = load_model(Path(args.run_dir), args.device)
        if args.score is not None:
            return score(model, args)
        prepare_for_generation(model, args.compile)
        stop = (args.stop or "").encode()
        prompt = to_ids(args.prompt).expand(args.num_samples, -1).to(args.device)
        tokens = model.stream(
            prompt,
            args.length,
            use_cache=not args.no_cache,
            generator=torch.Generator().manual_seed(args.seed),
            stop=tuple(stop),
            **{name: getattr(args, name) for name in SAMPLING},
        )
        if args.num_samples == 1 and not args.json:
            return write_as_it_comes(args.prompt, tokens)
        new = list(tokens)
    for row in torch.stack(new, dim=1) if new else prompt[:, :0]:
        row = row[: next((i + 1 for i, byte in enumerate(row.tolist()) if byte in stop), len(row))]
        text = to_text(row)
        line = {"prompt": args.prompt, "text": text, "bytes": row.tolist(), "seed": args.seed}
        print(json.dumps(line) if args.json else args.prompt + text)


def write_as_it_comes(prompt: str, tokens) -> None:
    """Each character as soon as its last byte is there."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    sys.stdout.write(prompt)
    for token in tokens:
        sys.stdout.write(show(decoder.decode(bytes(token.tolist()))))
        sys.stdout.flush()
    print(show(decoder.decode(b"", final=True)))


def score(model: HierarchicalTransformer, args) -> None:
    """Print what each byte of a file costs in bits, or write the page that shows it, and then their mean."""
    if not Path(args.score).is_file():
        raise ValueError(f"score: got {args.score}, which is no file, allowed: a file to score")
    text = np.fromfile(args.score, dtype=np.uint8)
    if args.heatmap is not None:
        print(json.dumps(write_heatmap(Path(args.heatmap), model, text, Path(args.run_dir), Path(args.score))))
        return
    bits = byte_bits(model, text)
    for byte, cost in zip(text.tolist(), bits.tolist(), strict=True):
        line = {"byte": byte, "bits": round(cost, 4)}
        print(json.dumps(line) if args.json else f"{byte:3d} {chr(byte)!r:7} {cost:8.4f}")
    print(json.dumps({"bits_per_byte": round(bits.mean(), 5), "bytes": len(text)}))


if __name__ == "__main__":
    main()
