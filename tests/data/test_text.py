"""Text becomes bytes and comes back; bytes that cannot be shown are replaced."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.text import to_ids, to_text
from utils import UserError
from utils.terminal import harmless


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_text_comes_back_from_its_bytes_as_far_as_it_is_harmless(text):
    assert to_text(to_ids(text)[0]) == harmless(text)


def test_invalid_bytes_and_characters_that_could_do_harm_are_replaced():
    assert to_text(torch.tensor([72, 0xC3, 105, 7, 10, 9, 27])) == "H\ufffdi·\n\t·"
    assert to_text(to_ids("abc \u202e fed")[0]) == "abc · fed"


def test_bytes_of_a_command_line_that_are_no_utf_8_stay_as_they_are():
    typed = b"\xff\xfeabc \xc3"
    assert to_ids(os.fsdecode(typed))[0].tolist() == list(typed)


def test_an_empty_text_is_refused():
    with pytest.raises(UserError, match="prompt: got an empty text, allowed: at least one byte"):
        to_ids("")
