"""Conversion between text and bytes."""

import torch
from torch import Tensor

from utils.errors import Mistake, UserError
from utils.terminal import harmless


def to_ids(text: str) -> Tensor:
    """A text as its UTF-8 bytes: (1 n) int64.

    Bytes of a command line that are no UTF-8, which Python keeps as lone surrogates, come back as they were typed.

    Raises:
        UserError: if the text is empty.
    """
    if not text:
        raise UserError(Mistake("prompt", "an empty text", "at least one byte"))
    return torch.tensor([list(text.encode("utf-8", errors="surrogateescape"))])


def to_text(ids: Tensor) -> str:
    """Bytes (n) as text for the terminal: invalid UTF-8 becomes �, and what is not printable ·, as in `harmless`."""
    return harmless(bytes(ids.tolist()).decode("utf-8", errors="replace"))
