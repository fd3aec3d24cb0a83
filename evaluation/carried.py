"""Score a text by reading it once: each piece of it after the state that the model keeps of the pieces before.

The simple version reads windows that overlap (evaluation/bits_per_byte.py). To give the bytes that it scores some
context, it reads most bytes twice. Here the cache of generation carries the context on from piece to piece.

A text is cut into streams, which are read side by side as a batch. Each begins with the bytes before those that it
scores, which only give context.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from tqdm import tqdm

from evaluation.adaptation import Adaptation
from evaluation.bits_per_byte import nats_of_targets
from model import Cache, HierarchicalTransformer

MOST_EXTRA = 1 / 8  # bytes that are read for context alone, as a share of those that are scored


@dataclass(frozen=True)
class Streams:
    """Parts of a text, of which each reads as many bytes."""

    starts: np.ndarray
    """the first byte that each reads, (s)"""
    scored: np.ndarray
    """the first byte that each scores, and the one behind the last, (s 2)"""
    length: int
    """bytes that each reads, not counting the last, which is only predicted"""

    def part(self, process: int, processes: int) -> "Streams":
        """The streams of one of several processes, which take turns."""
        return Streams(self.starts[process::processes], self.scored[process::processes], self.length)


def cut_streams(size: int, warm_up: int, most: int) -> Streams:
    """Cut a text of `size` bytes into at most `most` streams, or fewer if it is short. Its first byte is not scored.

    Args:
        warm_up: bytes that a stream reads before the first one that it scores, unless the text begins there.
    """
    targets = size - 1
    count = max(1, min(most, int(MOST_EXTRA * targets / max(1, warm_up))))
    share = ceil(targets / count)
    length = min(targets, share + warm_up) if count > 1 else targets

    first = np.arange(1, size, share)
    starts = np.clip(first - 1 - warm_up, 0, targets - length)
    return Streams(starts, np.stack((first, np.append(first[1:], size)), axis=1), length)


@torch.no_grad()
def carried_nats(
    model: HierarchicalTransformer,
    data: np.ndarray,
    streams: Streams,
    piece: int,
    adaptation: Adaptation | None = None,
    show: bool = False,
) -> float:
    """Sum of the nats of all bytes of a text (n), uint8, that streams score.

    Args:
        piece: bytes of a stream that are read at once, a multiple of the model's period.
        adaptation: a copy of the model, which is scored in its place, and learns from each piece.
        show: print a progress bar, if the output is a terminal.
    """
    if len(streams.starts) == 0:
        return 0.0
    model = model if adaptation is None else adaptation.model
    model.eval()
    device = model.to_logits.weight.device
    first = streams.scored[:, :1]
    behind = streams.scored[:, 1:]
    cache = Cache()
    total = 0.0
    for place in tqdm(range(0, streams.length, piece), unit="piece", disable=None if show else True):
        count = min(piece, streams.length - place)
        index = streams.starts[:, None] + place + np.arange(count + 1)
        ids = torch.from_numpy(data[index].astype(np.int64)).to(device)
        if adaptation is None:
            nats = nats_of_targets(model, ids, cache)
        else:
            nats, cache = adaptation.read(ids, cache)

        targets = index[:, 1:]
        is_scored = (targets >= first) & (targets < behind)
        total += nats.cpu().double().numpy()[is_scored].sum()
    return float(total)
