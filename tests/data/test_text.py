"""Text becomes bytes and comes back; bytes that cannot be shown are replaced."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.text import to_ids, to_text
from utils import UserError


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Z", "Cf"]), min_size=1))
def test_text_comes_back_from_its_bytes(text):
    assert to_text(to_ids(text)[0]) == text


def test_invalid_bytes_and_control_characters_are_replaced():
    assert to_text(torch.tensor([72, 0xC3, 105, 7, 10, 9, 27])) == "H\ufffdi·\n\t·"


def test_an_empty_text_is_refused():
    with pytest.raises(UserError, match="prompt: got an empty text, allowed: at least one byte"):
        to_ids("")
