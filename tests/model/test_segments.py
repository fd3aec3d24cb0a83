"""Units of a fixed stride and units that end at words, byte by byte."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from model.segments import FixedStride, Step, align
from model.words import WordEnds
from tests.model.strategies import WORDS

RULES = st.builds(FixedStride, st.integers(1, 9)) | st.builds(WordEnds, st.integers(2, 9))
LENGTHS = st.integers(1, 40)
ROWS = 3


def draw_text(n):
    """Words and gaps (b n), and none of either for a while."""
    ids = WORDS[torch.randint(0, len(WORDS), (ROWS, n))]
    ids[1, n // 2 :] = ord(" ")
    ids[2, : n // 2] = ord("a")
    return ids


def ends_byte_by_byte(rule, ids):
    """The last byte of each unit of each row, as the docstrings of the rules define it."""
    ends = []
    for row in ids.tolist():
        of_row, since = [], 0
        for t, byte in enumerate(row):
            place = t % rule.period
            if isinstance(rule, FixedStride):
                ends_unit = t % rule.stride == 0
            else:
                word_has_ended = not is_word(byte) and t > 0 and is_word(row[t - 1])
                since = 0 if word_has_ended or place == 0 else since + 1
                in_period = sum(end >= t - place for end in of_row)
                ends_unit = since % (2 * rule.stride) == 0 and in_period <= place // rule.stride
            if ends_unit:
                of_row.append(t)
        ends.append(of_row)
    return ends


def is_word(byte):
    return byte >= 128 or chr(byte).isalnum()


@given(rule=RULES, n=LENGTHS | st.integers(300, 700))
def test_units_end_where_the_rule_says(rule, n):
    ids = draw_text(n)
    units, expected = rule.cut(ids), ends_byte_by_byte(rule, ids)
    bytes_at_ends = units.down(torch.arange(n).expand(ROWS, -1)[..., None])[..., 0]
    real = torch.ones_like(bytes_at_ends, dtype=torch.bool) if units.real is None else units.real
    assert [row[kept].tolist() for row, kept in zip(bytes_at_ends, real, strict=True)] == expected
    assert units.n == n and units.count == rule.count(n) == bytes_at_ends.shape[1]
    assert all(ends[0] == 0 for ends in expected)  # so that every byte has a unit to read
    assert all(b - a <= rule.longest for ends in expected for a, b in pairwise(ends))


def test_a_unit_is_a_word():
    text = b"levels follow the text, wide where they go."
    ends = WordEnds(5).cut(torch.tensor([list(text)])).ends(torch.device("cpu"))[0].unique().tolist()
    pieces = [text[a + 1 : b + 1] for a, b in pairwise(ends)]
    assert pieces == [b"evels ", b"follow ", b"the ", b"text,", b" wide ", b"where ", b"they ", b"go."]


@given(rule=RULES, n=LENGTHS)
def test_up_gives_each_byte_the_latest_unit_that_has_ended(rule, n):
    ids = draw_text(n)
    units = rule.cut(ids)
    number = torch.arange(units.count).expand(ROWS, -1)
    latest = units.up(number[..., None])[..., 0]
    expected = [[sum(end <= t for end in ends) - 1 for t in range(n)] for ends in ends_byte_by_byte(rule, ids)]
    assert latest.tolist() == expected
    assert units.latest_at(torch.arange(n).expand(ROWS, -1)).tolist() == expected
    last = units.last(number[..., None])
    assert last.flatten().tolist() == [row[-1] for row in expected]


@given(rule=RULES, size=st.integers(1, 5), n=LENGTHS)
def test_windows_are_the_bytes_up_to_each_end(rule, size, n):
    ids = draw_text(n)
    units = rule.cut(ids)
    windows = units.windows(torch.arange(-size + 1, n).expand(ROWS, -1), size)
    for row, ends in zip(windows.tolist(), ends_byte_by_byte(rule, ids), strict=True):
        assert row[: len(ends)] == [list(range(end - size + 1, end + 1)) for end in ends]


@given(source=RULES, target=RULES, n=LENGTHS)
def test_align_is_up_and_then_down(source, target, n):
    ids = draw_text(n)
    source, target = source.cut(ids), target.cut(ids)
    units = torch.randn(ROWS, source.count, 3)
    assert torch.equal(align(units, source, target), target.down(source.up(units)))


@given(compression=st.integers(2, 9), n=LENGTHS | st.integers(300, 700), data=st.data())
def test_words_step_by_step_are_those_of_the_whole_text(compression, n, data):
    rule, ids = WordEnds(compression), draw_text(n)
    first = data.draw(st.integers(1, n), label="bytes at once")
    state = rule.cut(ids[:, :first]).state
    found = [[] for _ in range(ROWS)]
    expected = ends_byte_by_byte(rule, ids)
    for t in range(first, n):
        for row, unit in enumerate(rule.step(ids[:, t], state, t)):
            if unit is not None:
                found[row].append(t)
                assert expected[row][unit] == t
    assert found == [[end for end in ends if end >= first] for ends in expected]
    assert torch.equal(state, rule.cut(ids).state)


@given(compression=st.integers(2, 9), cut=st.integers(1, 3))
def test_units_from_a_period_on_are_those_of_the_text_that_begins_there(compression, cut):
    rule = WordEnds(compression)
    first = cut * rule.period
    ids = draw_text(first + 200)
    whole, end = ends_byte_by_byte(rule, ids), ends_byte_by_byte(rule, ids[:, first:])
    assert [[t - first for t in ends if t >= first] for ends in whole] == end


def test_a_step_computes_some_rows_and_keeps_the_others():
    values = torch.arange(8.0).reshape(4, 1, 2)
    rows, mask = torch.tensor([0, 2]), torch.tensor([True, False, True, False])
    for step, new in ((Step(True, rows=rows), -values[rows]), (Step(True, mask=mask), -values)):
        assert torch.equal(step.put(values, new), torch.where(mask[:, None, None], -values, values))
        assert torch.equal(step.take(values), values[rows] if step.mask is None else values)
        assert torch.equal(align(values, step, FixedStride(3).cut(torch.zeros(4, 1))), values)  # a single unit


def test_letters_digits_and_bytes_from_128_up_are_words():
    state = torch.zeros(256, 4, dtype=torch.long)
    WordEnds(4).step(torch.arange(256), state, 1)
    assert state[:, 1].tolist() == [is_word(byte) for byte in range(256)]
