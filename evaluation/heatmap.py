"""A page that shows what each byte of a text costs a model, what it expected instead, and what each level adds."""

import json
import re
import unicodedata
from math import log
from pathlib import Path

import numpy as np

from data import scoring_windows
from evaluation.bits_per_byte import FIRST_BYTE, window_nats
from evaluation.level_ablation import averaging, levels_to_leave_out, without
from model import HierarchicalTransformer
from utils.files import write_text

PAGE = Path(__file__).with_name("heatmap.html")
LONGEST = 100_000  # bytes of a text that a browser still shows at once
LIKELIEST = 5  # predictions that the page has of each byte


def byte_bits(model: HierarchicalTransformer, text: np.ndarray) -> np.ndarray:
    """What each byte of a text (n), uint8, costs in bits: (n) float64. The first byte has no context: 8 bits.

    Read in windows of `seq_len` bytes that advance by half of it, each byte scored by the first that reaches it.
    """
    length, device = min(model.config.seq_len, len(text) - 1), next(model.parameters()).device
    nats = window_nats(model, text, *text_windows(model, text), length, 16, device)
    return np.concatenate([[FIRST_BYTE], *nats]) / log(2)


def text_windows(model: HierarchicalTransformer, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows of a text (n) that advance by half of the context: starts and first scored targets, (w) each."""
    return scoring_windows(len(text), model.config.seq_len, max(1, model.config.seq_len // 2))


def measure(model: HierarchicalTransformer, text: np.ndarray) -> dict:
    """Of a text (n), uint8: what the page shows of its bytes, as JSON values.

    `bits` is each byte's cost (n); `likely` and `chances` are the likeliest bytes and their probabilities, those that
    come first are first, of all bytes but the first (n-1 LIKELIEST); `gains` is by level, such as "4x", how many bits
    more each byte costs without it (n), see `without`.
    """
    tops = []

    def keep_likeliest(model, inputs, logits):
        tops.append([t.cpu().numpy() for t in logits.float().softmax(dim=-1).topk(LIKELIEST)])

    hook = model.register_forward_hook(keep_likeliest)
    try:
        with averaging(model) as means:
            bits = byte_bits(model, text)
    finally:
        hook.remove()
    chances, likely = (np.concatenate(t) for t in zip(*tops, strict=True))
    starts, first_scored = text_windows(model, text)
    scored = starts[:, None] + np.arange(1, likely.shape[1] + 1) >= first_scored[:, None]

    gains = {}
    for i in levels_to_leave_out(model):
        with without(model, i, means):
            gains[f"{model.config.levels[i].compression}x"] = byte_bits(model, text) - bits
    return {
        "bits_per_byte": bits.mean(),
        "bits": bits.round(4).tolist(),
        "likely": likely[scored].ravel().tolist(),
        "chances": chances[scored].ravel().astype(np.float64).round(4).tolist(),
        "gains": {name: gain.round(4).tolist() for name, gain in gains.items()},
        "mean_gains": {name: gain.mean() for name, gain in gains.items()},
    }


def characters(text: bytes) -> list[tuple[str, int]]:
    """What to show for each character of a text, and how many bytes it has.

    A byte that belongs to no character, or to one that shows nothing, is two hexadecimal digits, and so on: other
    characters that cannot be seen are their code, U+200B; a line's end is ⏎ and a tab ⇥; an accent has a circle to
    stand on.
    """
    shown = []
    for character in text.decode("utf-8", errors="surrogateescape"):
        code, size = ord(character), len(character.encode("utf-8", errors="surrogateescape"))
        if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of broken UTF-8
            glyph = f"{code - 0xDC00:02X}"
        elif not character.isprintable():
            glyph = {"\n": "⏎", "\t": "⇥"}.get(character) or (f"{code:02X}" if code < 0x80 else f"U+{code:04X}")
        else:
            glyph = "◌" + character if unicodedata.category(character).startswith("M") else character
        shown.append((glyph, size))
    return shown


def write_heatmap(path: Path, model: HierarchicalTransformer, text: np.ndarray, run_dir: Path, source: Path) -> dict:
    """Write the page of a text (n), uint8, from the file `source` as a run's model sees it; returns its figures.

    Raises:
        ValueError: when the text is too short or too long, or the page is no .html in a folder that exists.
    """
    if path.suffix != ".html" or not path.parent.is_dir():
        raise ValueError(f"heatmap: got {path}, allowed: a name that ends in .html, in a folder that exists")
    if not 2 <= len(text) <= LONGEST:
        raise ValueError(f"score: got {len(text):,} bytes in {source}, allowed with --heatmap: 2 to {LONGEST:,}")
    measured, shown = measure(model, text), characters(text.tobytes())
    validation = re.search(r"^\| bits per byte \| (.+?) \|$", model.card or "", re.MULTILINE)  # of the run's own card
    page = {
        "run": run_dir.resolve().name,
        "source": source.name,
        "validation": validation and validation[1],
        "alone": f"{model.config.levels[model.heads[0]].compression}x" if len(model.heads) == 1 else None,
        "context": model.config.seq_len,
        "bytes": text.tolist(),
        "glyphs": [glyph for glyph, _ in shown],
        "sizes": [size for _, size in shown],
        "names": [characters(bytes([byte]))[0][0] for byte in range(256)],
        **measured,
    }
    data = json.dumps(page, separators=(",", ":")).replace("<", "\\u003c")  # no text may end the element it is in
    write_text(path, PAGE.read_text(encoding="utf-8").replace("DATA", data, 1))
    figures = {f"{level}_adds": round(gain, 5) + 0.0 for level, gain in measured["mean_gains"].items()}
    return {"bits_per_byte": round(measured["bits_per_byte"], 5), "bytes": len(text), **figures, "heatmap": str(path)}
