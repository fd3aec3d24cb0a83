"""Bytes to words and back: a range coder driven by a model's own predictions stores a text in as many bits as they say.

The text is cut into streams, each contiguous, that the model reads side by side with its cache, a byte of each at a
time. Each begins without context, its first byte as likely as any other. Probabilities are float64; the coder (arXiv
2201.01741) keeps 24 bits of them, and at least one of its units for every byte, so that none is impossible.

A decoder needs the same floats to the last bit, and so the same streams, device, threads and library versions: this is
there to prove a score, not to keep files. It is told the number of bytes, which the words do not say.
"""

from collections.abc import Iterator
from math import ceil, log

import numpy as np
import torch
from constriction import stream
from tqdm import tqdm

from model import Cache, HierarchicalTransformer

STREAMS = 32  # more of them are faster, and spend more bits on bytes with little before them
FAMILY = stream.model.Categorical(perfect=False)


def encode(model: HierarchicalTransformer, text: np.ndarray) -> tuple[np.ndarray, float]:
    """The words (w), uint32, of a text (n), uint8, and the bits that the model predicted for it."""
    encoder, nats = stream.queue.RangeEncoder(), 0.0
    for places, logs in predictions(model, text, "coding"):
        encoder.encode(text[places].astype(np.int32), FAMILY, np.exp(logs))
        nats -= logs[np.arange(len(places)), text[places]].sum()
    return encoder.get_compressed(), nats / log(2)


def decode(model: HierarchicalTransformer, words: np.ndarray, size: int) -> np.ndarray:
    """The text (size), uint8, that `encode` made into words (w).

    Raises:
        ValueError: when the model cannot have led to these words.
    """
    decoder, text = stream.queue.RangeDecoder(words), np.zeros(size, dtype=np.uint8)
    try:
        for places, logs in predictions(model, text, "decoding"):
            text[places] = decoder.decode(FAMILY, np.exp(logs))
    except AssertionError as error:  # the coder's, on words that no text leads to
        raise ValueError(f"words: {error}") from error
    return text


@torch.inference_mode()
def predictions(
    model: HierarchicalTransformer, text: np.ndarray, doing: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Step by step, the places in a text (n) where its streams go on (b), and log probabilities (b num_tokens) there.

    The bytes in these places are read only when the next step is asked for, so that a decoder can fill them in. The
    first streams may be one byte longer than the others, which sit out the last step.
    """
    streams = min(STREAMS, len(text))
    shortest, longer = divmod(len(text), streams)
    starts = np.arange(streams) * shortest + np.minimum(np.arange(streams), longer)
    cache, logits = Cache(), torch.zeros(streams, model.config.num_tokens)
    for step in tqdm(range(ceil(len(text) / streams)), desc=doing, unit="step", disable=None):
        if step:
            ids = torch.from_numpy(text[starts + step - 1, None].astype(np.int64))
            logits = model(ids.to(model.to_logits.weight.device), cache=cache)[:, -1].float().cpu()
        places = starts[: len(text) - step * streams] + step
        yield places, logits[: len(places)].double().log_softmax(dim=-1).numpy()
