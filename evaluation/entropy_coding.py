"""Compress a text with a range coder that the model drives, and decompress it again: this proves a score.

A range coder turns a sequence of symbols and a probability distribution for each into nearly -log2 p bits per symbol
(G. N. N. Martin, "Range encoding", 1979; here by constriction, arXiv 2201.01741). The encoder asks the model for the
distribution of each next byte and narrows its range to the share of the actual next byte. The decoder asks the same
model for the same distribution, finds which byte's share the compressed words fall into, and feeds that byte back.

The text is cut into contiguous streams. The model reads one byte of each stream at a time, as a batch with a cache.
Each stream begins without context, and all values of its first byte are equally likely. Probabilities are float64. The
coder rounds them to 24 bits and gives every byte at least the smallest share, so no byte is impossible.

A model may also learn from the text as it goes (evaluation/adaptation.py). Then it reads a single stream, and that of
the decoder learns from what it has decoded.

The decoder needs bit-identical probabilities, which take the same streams, device, number of threads and library
versions. This is a proof, not a file format. The decoder must also be given the number of bytes.
"""

from collections.abc import Iterator
from math import ceil, log

import numpy as np
import torch
from constriction import stream
from tqdm import tqdm

from evaluation.adaptation import Adaptation
from model import Cache, HierarchicalTransformer

STREAMS = 32  # more streams are faster, but cost bits, since more bytes have little context
CATEGORICAL = stream.model.Categorical(perfect=False)


def encode(
    model: HierarchicalTransformer, text: np.ndarray, adaptation: Adaptation | None = None
) -> tuple[np.ndarray, float]:
    """Compress a text (n), uint8, with a model that learns from it if there is an adaptation.

    Returns:
        words: the compressed text, (w) uint32.
        bits: the size that the model predicts, the sum of -log2 p(byte).
    """
    encoder = stream.queue.RangeEncoder()
    nats = 0.0
    for positions, log_probs in predictions(model, text, "encoding", adaptation):
        symbols = text[positions]
        encoder.encode(symbols.astype(np.int32), CATEGORICAL, np.exp(log_probs))
        nats -= log_probs[np.arange(len(symbols)), symbols].sum()
    return encoder.get_compressed(), nats / log(2)


def decode(
    model: HierarchicalTransformer, words: np.ndarray, size: int, adaptation: Adaptation | None = None
) -> np.ndarray:
    """Decompress the words (w), uint32, of a text of `size` bytes: (size) uint8.

    Raises:
        ValueError: if the coder finds that this model cannot have written the words. It does not find every such case.
    """
    decoder = stream.queue.RangeDecoder(words)
    text = np.zeros(size, dtype=np.uint8)
    try:
        for positions, log_probs in predictions(model, text, "decoding", adaptation):
            text[positions] = decoder.decode(CATEGORICAL, np.exp(log_probs))
    except AssertionError as error:  # raised by constriction for words that no text is compressed to
        raise ValueError(f"words: {error}") from error
    return text


@torch.no_grad()
def predictions(
    model: HierarchicalTransformer, text: np.ndarray, description: str, adaptation: Adaptation | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the model's predictions for a text (n), uint8, one byte of each stream at a time.

    The bytes at the yielded positions are read when the next item is requested, so a decoder can fill them in first.
    The first streams are one byte longer if the text does not divide evenly; the last step is for them alone.

    Args:
        description: label of the progress bar.
        adaptation: a copy of the model, which predicts in its place, and learns from each piece once it is known.

    Yields:
        positions: index in the text of each stream's next byte, (b).
        log_probs: log probabilities of each value of that byte, (b num_tokens) float64.
    """
    # Cut the text into streams.
    num_streams = min(STREAMS, len(text)) if adaptation is None else 1
    shortest, longer_streams = divmod(len(text), num_streams)
    index = np.arange(num_streams)
    starts = index * shortest + np.minimum(index, longer_streams)

    model = model if adaptation is None else adaptation.model
    cache = Cache()
    cache_before_piece = Cache()
    device = model.to_logits.weight.device
    logits = torch.zeros(num_streams, model.config.num_tokens)  # the first bytes: uniform
    for step in tqdm(range(ceil(len(text) / num_streams)), desc=description, unit="step", disable=None):
        if adaptation is not None and cache.length > 0 and cache.length % adaptation.piece == 0:
            piece = text[None, step - 1 - adaptation.piece : step].astype(np.int64)
            _, cache = adaptation.read(torch.from_numpy(piece).to(device), cache_before_piece)
            cache_before_piece = cache.copy()
        if step > 0:
            previous = text[starts + step - 1, None].astype(np.int64)
            ids = torch.from_numpy(previous).to(device)
            logits = model(ids, cache=cache)[:, -1].float().cpu()

        # In the last step only the longer streams have a byte left.
        active = min(num_streams, len(text) - step * num_streams)
        positions = starts[:active] + step
        yield positions, logits[:active].double().log_softmax(dim=-1).numpy()
