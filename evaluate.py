"""Measure bits per byte of a trained model on a whole split: `python evaluate.py RUN_DIR --split test`.

Every byte is scored exactly once. The text is read in windows of `--context` bytes that advance by `--stride` bytes.
Each window scores only the bytes that no earlier window has scored, so all of them except those of the first window
have at least context - stride bytes of context. The first byte has no context and counts 8 bits. The last line of the
output is JSON.

`--carry` reads each byte once instead: the context is carried on from piece to piece, as in generation. `--adapt`
scores the text once more, with a model that learns from each piece after scoring it (dynamic evaluation): another kind
of figure, which stands beside the first. With `--verify` the same bytes are also compressed with an entropy coder that
the model drives, and decompressed again.

`accelerate launch --num_processes N evaluate.py …` divides windows and streams among processes.
"""

import hashlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from accelerate.utils import gather_object
from jsonargparse.typing import PositiveFloat, PositiveInt

from data import Corpus, bytes_of_file, open_corpus, scoring_windows
from evaluation.adaptation import RATE, Adaptation, whole_pieces
from evaluation.bits_per_byte import FIRST_BYTE, bits_per_byte, total_nats
from evaluation.carried import carried_nats, cut_streams
from evaluation.entropy_coding import decode, encode
from model import HierarchicalTransformer
from model.generation.load import load_model
from model.generation.prepare import prepare_for_generation
from training.command_line import parse_as, user_errors
from training.config import Config, TrainConfig, WandbConfig
from training.parallel import build_accelerator, main_process_first, prepare_process
from training.record import changed_splits, load_data_config, read_corpora
from utils.errors import Mistake, UserError
from utils.files import user_path
from utils.terminal import run_program, warn

VERIFIED_BYTES = 100_000  # scored by --verify if there is no --limit, since decoding takes one forward pass per byte


@dataclass(frozen=True)
class Arguments:
    """The command line."""

    run_dir: str
    """a run directory"""
    split: Literal["train", "valid", "test"] | None = None
    """the split to score; test if left out"""
    file: str | None = None
    """a file to score instead of a split"""
    limit: PositiveInt | None = None
    """score only this many bytes from the beginning; if left out all, or 100,000 with --verify"""
    context: PositiveInt | None = None
    """bytes in a window; the model's seq_len if left out"""
    stride: PositiveInt | None = None
    """bytes that a window advances; half of the context if left out"""
    batch_size: PositiveInt = 16
    """windows in a batch; with --carry, parts of the text that are read side by side, or fewer if it is short"""
    carry: bool = False
    """read each byte once, with the context carried on, instead of windows that overlap"""
    adapt: bool = False
    """also score the text with a model that learns from it as it goes (arXiv 1904.08378)"""
    adapt_rate: PositiveFloat = RATE
    """learning rate of --adapt; find a better one on the validation split"""
    verify: bool = False
    """compress the bytes with the model and decompress them again"""
    device: str | None = None
    """cpu, cuda or mps; the best that this machine has if left out"""

    def __post_init__(self):
        if self.split is not None and self.file is not None:
            raise UserError("pass either --split or --file")
        if self.stride is not None and self.carry:
            raise UserError("pass either --stride or --carry")


@dataclass(frozen=True)
class Text:
    """The text to score."""

    data: np.ndarray
    """(n) uint8"""
    source: dict[str, str | bool | None]
    """where it comes from, as part of the result"""


def main(argv: list[str] | None = None) -> None:
    args = parse_as(Arguments, argv, "evaluate.py", __doc__)
    with user_errors():
        # -- the model and the text
        float32 = Config(train=TrainConfig(mixed_precision="no"), wandb=WandbConfig(mode="disabled"))
        accelerator = build_accelerator(float32)
        prepare_process(accelerator.device)
        for flag in ("verify", "adapt"):
            if getattr(args, flag) and accelerator.num_processes > 1:
                raise UserError(f"--{flag} needs a single process")
        model = load_model(user_path(args.run_dir), args.device or str(accelerator.device))
        with main_process_first(accelerator):  # it unpacks the corpus, the others then find it unpacked
            text = read_text(args)
        if accelerator.is_main_process:
            warn_of_other_bytes(args.run_dir, text.source)
        data = text.data

        # -- how the text is read
        context = args.context or model.config.seq_len
        stride = args.stride or max(1, context // 2)
        windows = scoring_windows(len(data), context, stride)

    # -- the score
    started = time.monotonic()
    if args.carry:
        streams = cut_streams(len(data), context, args.batch_size)
        own = streams.part(accelerator.process_index, accelerator.num_processes)
        piece = whole_pieces(context, model)
        own_nats = carried_nats(model, data, own, piece, show=accelerator.is_main_process)
        nats = sum(gather_object([own_nats]))
        how = {"context": context, "streams": len(streams.starts)}
    else:
        length = min(context, len(data) - 1)
        nats = total_nats(accelerator, model, data, windows, length, args.batch_size, show=True)
        how = {"context": context, "stride": stride, "overlap": context - stride}
    result = {
        "bits_per_byte": score(nats, len(data)),
        "bytes": len(data),
        **text.source,
        "sha256": hashlib.sha256(data.data).hexdigest(),
        "seq_len": model.config.seq_len,
        **how,
        "parameters": sum(p.numel() for p in model.parameters()),
        "processes": accelerator.num_processes,
        "seconds": round(time.monotonic() - started, 1),
    }

    # -- the same with a model that learns, and the proof
    if args.adapt:
        result |= adapted_score(model, data, args.adapt_rate)
    if args.verify:
        result |= verify(model, data, args.adapt_rate if args.adapt else None)

    # -- the result
    accelerator.print(json.dumps(result))
    accelerator.end_training()
    if args.verify and not result["verified"]:
        sys.exit(1)


def read_text(args: Arguments) -> Text:
    """Read the file or the split that the arguments name, up to their limit.

    Raises:
        UserError: if it cannot be read or has fewer than two bytes.
    """
    if args.file is not None:
        data = bytes_of_file("file", user_path(args.file))
        source: dict[str, str | bool | None] = {"file": args.file}
    else:
        split = args.split or "test"
        run_dir = user_path(args.run_dir)
        corpus = open_corpus(load_data_config(run_dir))
        data = corpus[split]
        source = {"split": split, "corpus": corpus.name, "same_as_training": is_split_of(run_dir, split, corpus)}

    limit = args.limit
    if limit is None and args.verify:
        limit = VERIFIED_BYTES
    data = data[:limit]
    if len(data) < 2:
        flag = "split" if args.file is None else "file"
        raise UserError(Mistake(flag, f"{len(data)} bytes", "at least 2"))
    return Text(data, source)


def is_split_of(run_dir: Path, split: str, corpus: Corpus) -> bool | None:
    """Whether a split has the bytes that the run had in it last; None if that is not known.

    Raises:
        UserError: if the run's corpus.json is damaged.
    """
    return split not in changed_splits(run_dir, corpus) if read_corpora(run_dir) else None


def warn_of_other_bytes(run_dir: str, source: dict[str, str | bool | None]) -> None:
    """Print a warning if the text is a split that is not, or perhaps not, that of the run's training."""
    same = source.get("same_as_training", True)
    split = f"the {source.get('split')} split of {source.get('corpus')}"
    if same is None:
        warn(f"{run_dir} has no corpus.json, so it is not known whether {split} had the same bytes in training")
    elif not same:
        warn(f"{split} had other bytes when {run_dir} was trained")


def score(nats: float, size: int) -> float:
    """Bits per byte of a text of `size` bytes, of which all but the first cost some nats."""
    return round(bits_per_byte(FIRST_BYTE + nats, size), 10)


def adapted_score(model: HierarchicalTransformer, data: np.ndarray, rate: float) -> dict:
    """Score bytes (n) with a copy of the model that learns from each piece of them after scoring it."""
    started = time.monotonic()
    learner = Adaptation(model, rate)
    streams = cut_streams(len(data), warm_up=0, most=1)
    nats = carried_nats(model, data, streams, learner.piece, learner, show=True)
    return {
        "adapted_bits_per_byte": score(nats, len(data)),
        "adapt_rate": rate,
        "adapt_piece": learner.piece,
        "adapt_seconds": round(time.monotonic() - started, 1),
    }


def verify(model: HierarchicalTransformer, data: np.ndarray, adapt_rate: float | None = None) -> dict:
    """Compress bytes (n) with the model, decompress them from the compressed words alone, and compare.

    With a rate, the encoder's model learns from the bytes, and so does the decoder's from what it has decoded.

    Returns whether they are the same, how many bits a byte took, and how many the model predicted. The coder of a model
    that does not learn cuts the text into streams, each of which starts without context, so both numbers differ a
    little from the score by windows.
    """
    encoder = decoder = None
    if adapt_rate is None:
        prepare_for_generation(model)
    else:
        encoder = Adaptation(model, adapt_rate)
        decoder = Adaptation(model, adapt_rate)
    words, predicted_bits = encode(model, data, encoder)
    try:
        decoded = decode(model, words, len(data), decoder)
    except ValueError:  # the words do not fit the model's predictions
        decoded = None
    return {
        "verified": decoded is not None and np.array_equal(decoded, data),
        "coded_bytes": words.nbytes,
        "coded_bits_per_byte": round(8 * words.nbytes / len(data), 5),
        "predicted_bits_per_byte": round(predicted_bits / len(data), 5),
    }


if __name__ == "__main__":
    run_program(main)
