from math import inf, nan

import pytest

from utils.checks import is_increasing, is_number, require
from utils.errors import UserError


@pytest.mark.parametrize(
    ("value", "fits"), [(1, True), (1.5, True), (0.9, False), (inf, False), (nan, False), (True, False), ("1", False)]
)
def test_a_number_is_finite_and_at_least_its_minimum(value, fits):
    assert is_number(value, 1) is fits


def test_a_number_can_be_required_to_be_whole():
    assert is_number(2, 1, int) and not is_number(2.0, 1, int)


@pytest.mark.parametrize(
    ("values", "fits"),
    [((), True), ([2, 3], True), ((2, 2), False), ((3, 2), False), ((1, 2), False), ((2.0, 3), False), (3, False)],
)
def test_increasing_whole_numbers(values, fits):
    assert is_increasing(values, 2) is fits


def test_all_that_does_not_fit_is_listed():
    given = {"depth": 0, "dim": 8, "windows": (4, None)}
    with pytest.raises(UserError) as raised:
        require(given, depth=(False, "1 or above"), dim=(True, "2 or above"), windows=(False, "one"))
    assert str(raised.value) == "depth: got 0, allowed: 1 or above; windows: got [4, null], allowed: one"
