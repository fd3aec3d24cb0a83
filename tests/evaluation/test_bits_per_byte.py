"""Every byte of a split is scored once, with the context that its window gives it, for every batch size."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from data import scoring_windows
from evaluation.bits_per_byte import bits_per_byte, total_nats, validation_bits_per_byte
from tests.model.test_transformer import build

DATA = np.random.default_rng(0).integers(0, 256, 500).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    config = {"dim": (8, 12), "heads": 2, "dim_head": 4, "depth": 2, "seq_len": 16}
    return build(config | {"hierarchies": (1, 4), "window_sizes": (5, None)})


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)  # other tests may need another kind of accelerator


def expected_nats(model, start: int, first: int, end: int) -> float:
    """Nats of bytes `first` to `end` - 1, with the context from byte `start` on."""
    ids = torch.from_numpy(DATA[start:end].astype(np.int64))[None]
    with torch.no_grad():
        nats = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="none")
    return nats[first - start - 1 :].double().sum().item()


@pytest.mark.parametrize(("context", "batch_size"), [(7, 16), (16, 7), (50, 1), (50, 64), (499, 3), (2000, 3)])
def test_the_nats_of_a_split_are_the_sum_over_its_windows_read_one_by_one(model, accelerator, context, batch_size):
    """For contexts shorter and longer than the model's seq_len of 16."""
    stride = max(1, context // 3)
    length = min(context, len(DATA) - 1)
    windows = scoring_windows(len(DATA), context, stride)
    nats = total_nats(accelerator, model, DATA, windows, length, batch_size)

    expected = 0.0
    scored = 1  # bytes that are scored or have no context
    while scored < len(DATA):
        new_bytes = length if scored == 1 else stride
        end = min(scored + new_bytes, len(DATA))
        expected += expected_nats(model, end - length - 1, scored, end)
        scored = end
    assert nats == pytest.approx(expected, rel=1e-6)


def test_validation_is_the_mean_over_windows_that_do_not_overlap(model, accelerator):
    model.train()
    score = validation_bits_per_byte(accelerator, model, DATA, seq_len=33, batch_size=4, count_bytes=10**6)
    assert model.training

    starts = np.linspace(0, len(DATA) - 34, 15).astype(int)  # 15 windows fit
    model.eval()
    nats = sum(expected_nats(model, start, start + 1, start + 34) for start in starts)
    assert score == pytest.approx(bits_per_byte(nats, 15 * 33), rel=1e-6)
