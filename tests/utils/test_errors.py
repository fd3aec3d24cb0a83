import pytest

from utils.errors import Mistake, UserError, as_typed, reading_errors


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (0.1, "0.1"),
        ((64, None), "[64, null]"),
        ({"a": [True]}, "{a: [true]}"),
        ("no", "no"),
    ],
)
def test_values_are_printed_as_they_are_typed(value, text):
    assert as_typed(value) == text


def test_an_error_joins_its_mistakes():
    error = UserError(Mistake("seed", -1, "0 or above"), "--resume takes no value")
    assert str(error) == "seed: got -1, allowed: 0 or above; --resume takes no value"
    assert error.mistakes[0].name == "seed"


def test_a_file_that_cannot_be_read_is_named_with_its_setting(tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(UserError) as raised, reading_errors("file", missing):
        missing.read_bytes()
    assert str(raised.value) == f"file: {missing} cannot be read (No such file or directory)"


def test_other_errors_while_reading_pass_through():
    with pytest.raises(ZeroDivisionError), reading_errors("file", "a"):
        _ = 1 / 0
