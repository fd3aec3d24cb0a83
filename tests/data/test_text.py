import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.text import to_ids, to_text


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Z", "Cf"]), min_size=1))
def test_text_survives(text):
    assert to_text(to_ids(text)[0]) == text


def test_what_cannot_be_shown_is_marked():
    assert to_text(torch.tensor([72, 0xC3, 105, 7, 10, 9, 27])) == "H\ufffdi·\n\t·"
    with pytest.raises(ValueError, match="prompt: got an empty text"):
        to_ids("")
