import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data import batch, offsets, scoring_windows, spread_windows

DATA = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8)


@given(seed=st.integers(0, 2**32), step=st.integers(0, 2**40), size=st.integers(1, 24), seq_len=st.integers(1, 4999))
def test_a_batch_is_a_pure_function_however_it_is_cut(seed, step, size, seq_len):
    arguments = {"seed": seed, "step": step, "global_batch_size": size}
    together = batch(DATA, seq_len, **arguments)
    assert together.shape == (size, seq_len + 1) and together.dtype == torch.int64
    np.random.seed(1)  # whatever else draws numbers does not matter
    cut = size // 2
    pieces = [batch(DATA, seq_len, rows=rows, **arguments) for rows in (slice(0, cut), slice(cut, size))]
    assert torch.equal(together, torch.cat(pieces))
    for row, start in zip(together, offsets(len(DATA), seq_len, **arguments), strict=True):
        assert row.tolist() == DATA[start : start + seq_len + 1].tolist()


def test_every_place_is_drawn_and_steps_and_seeds_differ():
    draws = [offsets(12, 8, seed=0, step=step, global_batch_size=8) for step in range(50)]
    assert set(np.concatenate(draws)) == {0, 1, 2, 3}
    big = {"num_bytes": 10**8, "seq_len": 8, "global_batch_size": 8}
    first = offsets(seed=0, step=0, **big)
    assert (first != offsets(seed=0, step=1, **big)).any() and (first != offsets(seed=1, step=0, **big)).any()


@given(n=st.integers(2, 300), seq_len=st.integers(1, 64), data=st.data())
def test_every_byte_but_the_first_is_scored_once(n, seq_len, data):
    stride = data.draw(st.integers(1, seq_len), label="stride")
    starts, first_scored = scoring_windows(n, seq_len, stride)
    length = min(seq_len, n - 1)
    times = np.zeros(n, int)
    for window, (start, first) in enumerate(zip(starts, first_scored, strict=True)):
        assert start >= 0 and start + length < n
        assert start < first <= start + length
        assert window == 0 or first - start > seq_len - stride  # bytes of context
        times[first : start + length + 1] += 1
    assert times.tolist() == [0] + [1] * (n - 1)


def test_illegal_strides_are_named():
    for stride in (0, 9):
        with pytest.raises(ValueError, match=f"stride: got {stride}, allowed: 1 to context = 8"):
            scoring_windows(100, 8, stride)


@given(n=st.integers(2, 5000), seq_len=st.integers(1, 64), count=st.integers(1, 6000))
def test_spread_windows_do_not_overlap_and_reach_the_end(n, seq_len, count):
    seq_len = min(seq_len, n - 1)
    starts = spread_windows(n, seq_len, count)
    assert starts[0] == 0 or len(starts) == 1
    assert (np.diff(starts) >= seq_len).all()
    assert starts[-1] + seq_len < n and (len(starts) == 1 or starts[-1] + seq_len == n - 1)
    assert len(starts) <= max(1, count / seq_len + 1)
