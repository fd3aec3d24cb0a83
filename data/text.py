"""Between text and bytes, for people to read."""

from unicodedata import category

import torch
from torch import Tensor


def to_ids(text: str) -> Tensor:
    """UTF-8 bytes of a text: (1 n) int64.

    Raises:
        ValueError: on an empty text.
    """
    if not text:
        raise ValueError("prompt: got an empty text, allowed: at least one byte")
    return torch.tensor([list(text.encode("utf-8"))])


def to_text(ids: Tensor) -> str:
    """Bytes (n) as text: broken UTF-8 as �, control characters other than tab and newline as ·."""
    return show(bytes(ids.tolist()).decode("utf-8", errors="replace"))


def show(text: str) -> str:
    """Text with its control characters other than tab and newline as ·."""
    return "".join(c if category(c) != "Cc" or c in "\t\n" else "·" for c in text)
