"""Text for a terminal, in a form that cannot do harm there."""

import sys
from typing import TextIO
from unicodedata import category

# Cc: control characters, of which ESC begins the commands of a terminal. Cf: invisible ones, of which some turn the
# direction of writing. Cs: halves of a pair, which stand for bytes of a file name that are no UTF-8. Zl, Zp: line ends.
UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def harmless(text: str) -> str:
    """Replace each character that is not printable by ·, except tab and newline."""
    return "".join("·" if category(c) in UNPRINTABLE and c not in "\t\n" else c for c in text)


def say(*lines: object, stream: TextIO | None = None) -> None:
    """Print lines made harmless, with � for what the stream's encoding does not have."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    for line in lines:
        text = harmless(str(line))
        print(text.encode(encoding, errors="replace").decode(encoding), file=stream)
