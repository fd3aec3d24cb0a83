"""Units of a fixed stride, byte by byte."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from model.segments import FixedStride, align

STRIDES = st.integers(1, 9)
LENGTHS = st.integers(1, 40)


@given(stride=STRIDES, n=LENGTHS)
def test_down_takes_the_last_byte_of_each_unit(stride, n):
    segments = FixedStride(stride)
    ends = segments.down(torch.arange(n).reshape(1, n, 1)).flatten().tolist()
    assert ends == [byte for byte in range(n) if segments.ends_unit(byte)]
    assert len(ends) == segments.count(n)


@given(stride=STRIDES, n=LENGTHS)
def test_up_gives_each_byte_the_latest_unit_that_has_ended(stride, n):
    segments = FixedStride(stride)
    units = torch.arange(segments.count(n)).reshape(1, -1, 1)
    latest = segments.up(units, n).flatten().tolist()
    assert latest == [sum(segments.ends_unit(byte) for byte in range(t + 1)) - 1 for t in range(n)]
    assert latest == [segments.unit(t) for t in range(n)]


@given(stride=STRIDES, size=st.integers(1, 5), n=LENGTHS)
def test_windows_are_the_bytes_up_to_each_end(stride, size, n):
    before_and_bytes = torch.arange(-size + 1, n).reshape(1, -1)
    windows = FixedStride(stride).windows(before_and_bytes, size)[0].tolist()
    assert windows == [list(range(end - size + 1, end + 1)) for end in range(0, n, stride)]


@given(source=STRIDES, target=STRIDES, n=LENGTHS)
def test_align_is_up_and_then_down(source, target, n):
    source, target = FixedStride(source), FixedStride(target)
    units = torch.randn(2, source.count(n), 3)
    assert torch.equal(align(units, source, target, n), target.down(source.up(units, n)))


@given(source=STRIDES, target=STRIDES)
def test_align_passes_a_single_unit_on(source, target):
    """In generation a level's latest unit is all there is."""
    unit = torch.randn(2, 1, 3)
    assert torch.equal(align(unit, FixedStride(source), FixedStride(target), 1), unit)
