"""An HTML page with the cost of each byte of a text, the model's predictions, and the gain of each level."""

import json
import unicodedata
from math import log
from pathlib import Path

import numpy as np

from data import scoring_windows
from evaluation.bits_per_byte import FIRST_BYTE, window_nats
from evaluation.level_ablation import level_replaced_by_mean, measure_means, removable_levels
from model import HierarchicalTransformer
from utils.checks import require
from utils.errors import UserError
from utils.files import read_json, write_text
from utils.terminal import one_line

TEMPLATE = Path(__file__).with_name("heatmap.html")
MAX_BYTES = 100_000  # longer texts are slow in a browser
TOP_K = 5  # predictions on the page for each byte
BATCH_SIZE = 16  # windows at once


def byte_bits(model: HierarchicalTransformer, text: np.ndarray) -> np.ndarray:
    """Cost of each byte of a text (n), uint8, in bits: (n) float64. The first byte has no context and costs 8 bits.

    The text is read in windows, see `text_windows`.
    """
    length = min(model.config.seq_len, len(text) - 1)
    device = next(model.parameters()).device
    starts, first_scored = text_windows(model, text)
    nats = window_nats(model, text, starts, first_scored, length, BATCH_SIZE, device)
    return np.concatenate([[FIRST_BYTE], *nats]) / log(2)


def text_windows(model: HierarchicalTransformer, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The windows that score a text, which advance by half of `seq_len`: starts and first_scored, (w) each."""
    seq_len = model.config.seq_len
    return scoring_windows(len(text), seq_len, max(1, seq_len // 2))


def measure(model: HierarchicalTransformer, text: np.ndarray) -> dict:
    """Everything that the page shows about the bytes of a text (n), uint8, as JSON values.

    Returns a dict with:
        bits_per_byte: mean of `bits`.
        bits: cost of each byte in bits, (n).
        likely, chances: the TOP_K most likely values of each byte but the first, and their probabilities, most likely
            first: (n-1)·TOP_K each, flat.
        gains: for each level that can be left out, by name such as "4x": how many bits more each byte costs without
            the level, (n), see `without`.
        mean_gains: mean of each level's gains.
    """
    predictions = []

    def keep_top_predictions(module, inputs, logits):
        top = logits.float().softmax(dim=-1).topk(TOP_K)
        predictions.append((top.values.cpu().numpy(), top.indices.cpu().numpy()))

    # Costs and predictions of the whole model; `measure_means` takes the means that stand in for a level below.
    hook = model.register_forward_hook(keep_top_predictions)
    try:
        with measure_means(model) as means:
            bits = byte_bits(model, text)
    finally:
        hook.remove()

    # Windows overlap: keep the predictions of those targets that each window scores.
    chances = np.concatenate([values for values, _ in predictions])
    likely = np.concatenate([indices for _, indices in predictions])
    starts, first_scored = text_windows(model, text)
    targets = starts[:, None] + np.arange(1, likely.shape[1] + 1)
    scored = targets >= first_scored[:, None]

    # Costs without each level.
    gains = {}
    for i in removable_levels(model):
        with level_replaced_by_mean(model, i, means):
            bits_without = byte_bits(model, text)
        gains[f"{model.config.levels[i].compression}x"] = bits_without - bits

    return {
        "bits_per_byte": bits.mean(),
        "bits": bits.round(4).tolist(),
        "likely": likely[scored].ravel().tolist(),
        "chances": chances[scored].ravel().astype(np.float64).round(4).tolist(),
        "gains": {name: gain.round(4).tolist() for name, gain in gains.items()},
        "mean_gains": {name: gain.mean() for name, gain in gains.items()},
    }


def characters(text: bytes) -> list[tuple[str, int]]:
    """Split UTF-8 into characters: for each one the glyph on the page, and its size in bytes.

    Every character must be visible:
        - a byte of invalid UTF-8, or an ASCII control character: two hexadecimal digits, such as 0D;
        - another character without a glyph: its code, such as U+200B;
        - a newline: ⏎, a tab: ⇥;
        - a combining mark: on a dotted circle.
    """
    shown = []
    for character in text.decode("utf-8", errors="surrogateescape"):
        size = len(character.encode("utf-8", errors="surrogateescape"))
        shown.append((_glyph(character), size))
    return shown


def _glyph(character: str) -> str:
    """The glyph of a character on the page."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape maps an invalid byte 0x80 … 0xFF to these codes
        return f"{code - 0xDC00:02X}"
    if character == "\n":
        return "⏎"
    if character == "\t":
        return "⇥"
    if not character.isprintable():
        return f"{code:02X}" if code < 0x80 else f"U+{code:04X}"
    if unicodedata.category(character).startswith("M"):
        return "◌" + character
    return character


def validation_score(run_dir: Path) -> str | None:
    """The validation score of a run's best model, for people to read; None for a run that did not record it."""
    path = run_dir / "model" / "training.json"
    if not path.is_file():
        return None
    record = read_json(path)
    try:
        return f"{record['validation_bits_per_byte']:.4f} bits per byte after step {record['step']:,}"
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no score and step of a validation") from error


def write_heatmap(path: Path, model: HierarchicalTransformer, text: np.ndarray, run_dir: Path, source: Path) -> dict:
    """Write the page of a text and return its main figures.

    Args:
        path: the page, NAME.html in an existing folder.
        text: bytes (n), uint8.
        run_dir: where the model comes from.
        source: where the text comes from.

    Returns:
        bits_per_byte, bytes, the mean gain of each level (such as 4x_adds), and the path as heatmap.

    Raises:
        UserError: if the text is too short or too long, or the path is no .html in an existing folder.
    """
    require(
        {"heatmap": path, "score": f"{len(text):,} bytes in {source}"},
        heatmap=(path.suffix == ".html" and path.parent.is_dir(), "a name that ends in .html, in a folder that exists"),
        score=(2 <= len(text) <= MAX_BYTES, f"2 to {MAX_BYTES:,} bytes with --heatmap"),
    )
    measured = measure(model, text)
    shown = characters(text.tobytes())
    predicts_alone = None
    if len(model.predicting_levels) == 1:
        predicts_alone = f"{model.config.levels[model.predicting_levels[0]].compression}x"
    page = {
        "run": one_line(run_dir.resolve().name),
        "source": one_line(source.name),
        "validation": validation_score(run_dir),
        "predicts_alone": predicts_alone,
        "context": model.config.seq_len,
        "bytes": text.tolist(),
        "glyphs": [glyph for glyph, _ in shown],
        "sizes": [size for _, size in shown],
        "names": [_glyph(bytes([byte]).decode("utf-8", errors="surrogateescape")) for byte in range(256)],
        **measured,
    }
    data = json.dumps(page, separators=(",", ":"))
    # Escaped, because a text could otherwise close the script element that holds the data.
    data = data.replace("<", "\\u003c")
    write_text(path, TEMPLATE.read_text(encoding="utf-8").replace("DATA", data, 1))

    figures = {"bits_per_byte": round(measured["bits_per_byte"], 5), "bytes": len(text)}
    for level, gain in measured["mean_gains"].items():
        figures[f"{level}_adds"] = round(gain, 5) + 0.0  # + 0.0 turns -0.0 into 0.0
    figures["heatmap"] = str(path)
    return figures
