"""Every byte of a split is scored once, from the context that the windows promise, however the work is cut."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from data import scoring_windows
from evaluation.bits_per_byte import bits_per_byte, total_nats, validate
from tests.model.test_transformer import build

DATA = np.random.default_rng(0).integers(0, 256, 500).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    config = {"dim": (8, 12), "heads": 2, "dim_head": 4, "depth": 2, "seq_len": 16}
    return build(config | {"hierarchies": (1, 4), "window_sizes": (5, None)})


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)  # the next one may be of another kind


def cost(model, start: int, first: int, end: int) -> float:
    """Nats of the bytes from `first` up to `end`, read from `start` on."""
    ids = torch.from_numpy(DATA[start:end].astype(np.int64))[None]
    with torch.no_grad():
        nats = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="none")
    return nats[first - start - 1 :].double().sum().item()


@pytest.mark.parametrize(("context", "batch_size"), [(7, 16), (16, 7), (50, 1), (50, 64), (499, 3), (2000, 3)])
def test_a_split_costs_what_its_bytes_cost_one_window_at_a_time(model, accelerator, context, batch_size):
    """Of contexts below and above the model's seq_len of 16."""
    stride, length = max(1, context // 3), min(context, len(DATA) - 1)
    windows = scoring_windows(len(DATA), context, stride)
    nats = total_nats(accelerator, model, DATA, windows, length, batch_size)

    expected, scored = 0.0, 1
    while scored < len(DATA):  # the next window begins where all but `stride` bytes of it are old
        end = min(length + 1 if scored == 1 else scored + stride, len(DATA))
        expected += cost(model, end - length - 1, scored, end)
        scored = end
    assert nats == pytest.approx(expected, rel=1e-6)


def test_validation_is_the_mean_over_windows_side_by_side(model, accelerator):
    model.train()
    score = validate(accelerator, model, DATA, seq_len=33, batch_size=4, count_bytes=10**6)
    assert model.training
    starts = np.linspace(0, len(DATA) - 34, 15).astype(int)  # as many as fit
    model.eval()
    nats = sum(cost(model, start, start + 1, start + 34) for start in starts)
    assert score == pytest.approx(bits_per_byte(nats, 15 * 33), rel=1e-6)
