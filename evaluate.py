"""Bits per byte of a trained model over a whole split: `python evaluate.py RUN_DIR --split test`.

Every byte counts once. The split is read in windows of the model's seq_len that advance by `--stride` bytes, and each
window scores only the bytes that no window before it has scored, so that all but the first window's have at least
seq_len - stride bytes of context. The split's first byte, which has none, counts 8 bits. The last line is JSON.
"""

import json
import time
from math import log
from pathlib import Path

import yaml
from jsonargparse.typing import PositiveInt
from tqdm import tqdm

from data import DataConfig, open_corpus, scoring_windows
from training.config import Parser, user_errors
from training.evaluation import bits_per_byte, window_nats
from training.loading import best_device, load_model


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="evaluate.py", description=__doc__)
    parser.add_argument("run_dir", type=str, help="a run directory")
    parser.add_argument("--split", choices=["train", "valid", "test"], default="test", help="what to score")
    parser.add_argument(
        "--stride", type=PositiveInt | None, help="bytes between windows; half of seq_len when left out"
    )
    parser.add_argument("--batch-size", type=PositiveInt, default=16, help="windows at once")
    parser.add_argument("--device", type=str, default=best_device(), help="cpu, cuda or mps")
    args = parser.parse_args(argv)

    with user_errors():
        model = load_model(Path(args.run_dir), args.device)
        settings = yaml.safe_load((Path(args.run_dir) / "config.yaml").read_text())
        corpus = open_corpus(DataConfig(**settings["data"]))
        data, seq_len = corpus[args.split], model.config.seq_len
        stride = args.stride or max(1, seq_len // 2)
        starts, first_scored = scoring_windows(len(data), seq_len, stride)

    begun, length, size = time.monotonic(), min(seq_len, len(data) - 1), args.batch_size
    nats, scored = log(256), 1
    batches = window_nats(model, data, starts, first_scored, length, size, args.device)
    for batch in tqdm(batches, total=-(-len(starts) // size), unit="batch", disable=None):
        nats += batch.sum()
        scored += len(batch)
    result = {
        "bits_per_byte": round(bits_per_byte(nats, scored), 5),
        "bytes": scored,
        "split": args.split,
        "corpus": corpus.name,
        "sha256": corpus.sha256[args.split],
        "seq_len": seq_len,
        "stride": stride,
        "least_context": seq_len - stride,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.monotonic() - begun, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
