"""Bits per byte of a trained model over a whole split: `python evaluate.py RUN_DIR --split test`.

Every byte counts once. The text is read in windows of `--context` bytes that advance by `--stride` bytes, and each
window scores only the bytes that no window before it has scored: all but the first one's have at least the overlap,
context - stride bytes, before them. The text's first byte, which has none, counts 8 bits. The last line is JSON.

`accelerate launch --num_processes N evaluate.py …` shares the windows among processes. With `--verify` the same bytes
are also coded, by an entropy coder that the model drives, and decoded again from what came out.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from jsonargparse.typing import PositiveInt

from data import DataConfig, open_corpus, scoring_windows
from evaluation.bits_per_byte import FIRST_BYTE, bits_per_byte, total_nats
from evaluation.entropy_coding import decode, encode
from model import HierarchicalTransformer
from model.generation.load import load_model
from model.generation.prepare import prepare_for_generation
from training.command_line import Parser, user_errors
from training.config import Config, TrainConfig, WandbConfig
from training.parallel import build_accelerator


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="evaluate.py", description=__doc__)
    parser.add_argument("run_dir", type=str, help="a run directory")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--split", choices=["train", "valid", "test"], default="test", help="what to score")
    text.add_argument("--file", type=str, help="a file to score instead, as it is")
    parser.add_argument("--limit", type=PositiveInt, help="score this many bytes; 100,000 with --verify, else all")
    parser.add_argument("--context", type=PositiveInt, help="bytes of a window; the model's seq_len when left out")
    parser.add_argument("--stride", type=PositiveInt, help="new bytes of a window; half of it when left out")
    parser.add_argument("--batch-size", type=PositiveInt, default=16, help="windows at once")
    parser.add_argument("--verify", action="store_true", help="code the bytes and decode them again")
    parser.add_argument("--device", type=str, help="cpu, cuda or mps; the best there is when left out")
    args = parser.parse_args(argv)

    with user_errors():
        float32 = Config(train=TrainConfig(mixed_precision="no"), wandb=WandbConfig(mode="disabled"))
        accelerator = build_accelerator(float32)
        if args.verify and accelerator.num_processes > 1:
            raise ValueError(f"verify: got {accelerator.num_processes} processes, allowed: 1")
        model = load_model(Path(args.run_dir), args.device or str(accelerator.device))
        with accelerator.main_process_first():
            data, source = read(args)
        data = data[: args.limit or (100_000 if args.verify else None)]
        if len(data) < 2:
            raise ValueError(f"{next(iter(source))}: got {len(data)} bytes, allowed: at least 2")
        context = args.context or model.config.seq_len
        stride = args.stride or max(1, context // 2)
        windows = scoring_windows(len(data), context, stride)

    begun, length = time.monotonic(), min(context, len(data) - 1)
    nats = FIRST_BYTE + total_nats(accelerator, model, data, windows, length, args.batch_size, show=True)
    result = {
        "bits_per_byte": round(bits_per_byte(nats, len(data)), 10),
        "bytes": len(data),
        **source,
        "sha256": hashlib.sha256(data.data).hexdigest(),
        "seq_len": model.config.seq_len,
        "context": context,
        "stride": stride,
        "overlap": context - stride,
        "parameters": sum(p.numel() for p in model.parameters()),
        "processes": accelerator.num_processes,
    }
    if args.verify:
        result |= verify(model, data)
    result["seconds"] = round(time.monotonic() - begun, 1)
    accelerator.print(json.dumps(result))
    accelerator.end_training()
    if not result.get("verified", True):
        sys.exit(1)


def read(args) -> tuple[np.ndarray, dict[str, str]]:
    """Bytes (n), uint8, of the file or the split that was asked for, and where they are from."""
    if args.file is not None:
        return np.fromfile(args.file, dtype=np.uint8), {"file": args.file}
    settings = yaml.safe_load((Path(args.run_dir) / "config.yaml").read_text())
    corpus = open_corpus(DataConfig(**settings["data"]))
    return corpus[args.split], {"split": args.split, "corpus": corpus.name}


def verify(model: HierarchicalTransformer, data: np.ndarray) -> dict:
    """Code bytes (n), decode them from the words alone, and say how many bits a byte took beside those predicted.

    The coder reads the text in streams, each of which begins without context: what it predicts differs a little from
    the score by windows.
    """
    prepare_for_generation(model)
    words, bits = encode(model, data)
    try:
        verified = np.array_equal(decode(model, words, len(data)), data)
    except ValueError:
        verified = False
    return {
        "verified": verified,
        "coded_bytes": words.nbytes,
        "coded_bits_per_byte": round(8 * words.nbytes / len(data), 5),
        "predicted_bits_per_byte": round(bits / len(data), 5),
    }


if __name__ == "__main__":
    main()
