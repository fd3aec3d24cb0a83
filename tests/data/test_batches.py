"""Training batches are a pure function of seed and step; scoring windows count every byte once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data import batch, scoring_windows, sequence_starts, spread_windows
from utils import UserError

DATA = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8)


@given(seed=st.integers(0, 2**32), step=st.integers(0, 2**40), size=st.integers(1, 24), seq_len=st.integers(1, 4999))
def test_a_batch_depends_on_its_arguments_alone_and_rows_select_from_it(seed, step, size, seq_len):
    arguments = {"seed": seed, "step": step, "global_batch_size": size}
    together = batch(DATA, seq_len, **arguments)
    assert together.shape == (size, seq_len + 1)
    assert together.dtype == torch.int64

    np.random.seed(1)  # the global generator has no effect
    half = size // 2
    parts = [batch(DATA, seq_len, rows=rows, **arguments) for rows in (slice(0, half), slice(half, size))]
    assert torch.equal(together, torch.cat(parts))

    starts = sequence_starts(len(DATA), seq_len, **arguments)
    for row, start in zip(together, starts, strict=True):
        assert row.tolist() == DATA[start : start + seq_len + 1].tolist()


def test_every_start_is_drawn_and_steps_and_seeds_differ():
    draws = [sequence_starts(12, 8, seed=0, step=step, global_batch_size=8) for step in range(50)]
    assert set(np.concatenate(draws)) == {0, 1, 2, 3}

    large = {"num_bytes": 10**8, "seq_len": 8, "global_batch_size": 8}
    first = sequence_starts(seed=0, step=0, **large)
    assert (first != sequence_starts(seed=0, step=1, **large)).any()
    assert (first != sequence_starts(seed=1, step=0, **large)).any()


@given(n=st.integers(2, 300), seq_len=st.integers(1, 64), data=st.data())
def test_every_byte_but_the_first_is_scored_once(n, seq_len, data):
    stride = data.draw(st.integers(1, seq_len), label="stride")
    starts, first_scored = scoring_windows(n, seq_len, stride)
    length = min(seq_len, n - 1)
    times_scored = np.zeros(n, int)
    for window, (start, first) in enumerate(zip(starts, first_scored, strict=True)):
        assert start >= 0 and start + length < n
        assert start < first <= start + length
        bytes_of_context = first - start
        assert window == 0 or bytes_of_context > seq_len - stride
        times_scored[first : start + length + 1] += 1
    assert times_scored.tolist() == [0] + [1] * (n - 1)


def test_an_illegal_stride_and_a_split_that_is_too_small_are_named():
    for stride in (0, 9):
        with pytest.raises(UserError, match=f"stride: got {stride}, allowed: 1 to context = 8"):
            scoring_windows(100, 8, stride)
    with pytest.raises(UserError, match="split: got 1 bytes, allowed: at least 2"):
        scoring_windows(1, 8, 4)


@given(n=st.integers(2, 5000), seq_len=st.integers(1, 64), count=st.integers(1, 6000))
def test_spread_windows_do_not_overlap_and_reach_the_end(n, seq_len, count):
    seq_len = min(seq_len, n - 1)
    starts = spread_windows(n, seq_len, count)
    assert starts[0] == 0 or len(starts) == 1
    assert (np.diff(starts) >= seq_len).all()
    assert starts[-1] + seq_len < n
    assert len(starts) == 1 or starts[-1] + seq_len == n - 1
    assert len(starts) <= max(1, count / seq_len + 1)
