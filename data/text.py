"""Conversion between text and bytes, and the bytes of a file."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.errors import Mistake, UserError, reading_errors
from utils.files import refuse_endless
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


def bytes_of_file(name: str, path: Path) -> np.ndarray:
    """All bytes of a file as they are, packed or not: (n) uint8.

    Args:
        name: the setting or flag that the path is from.

    Raises:
        UserError: if it cannot be read, or is a pipe or a device; it names the setting.
    """
    with reading_errors(name, path):
        refuse_endless(name, path)
        return np.fromfile(path, dtype=np.uint8)
