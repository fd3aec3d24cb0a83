"""Errors that the user can fix."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Mistake:
    """One value that does not fit: the setting's name, its value, and what is allowed."""

    name: str
    got: Any
    allowed: str

    def __str__(self) -> str:
        return f"{self.name}: got {as_typed(self.got)}, allowed: {self.allowed}"


class UserError(ValueError):
    """Something the user can fix. Programs print one line for each mistake and exit with code 2, without a traceback.

    A mistake is a `Mistake`, or a sentence where "got X, allowed: Y" would be bad English. Every other exception is a
    bug, of ours or of a library, and keeps its traceback.
    """

    def __init__(self, *mistakes: Mistake | str):
        self.mistakes = mistakes
        super().__init__("; ".join(map(str, mistakes)))


@contextmanager
def reading_errors(name: str, path: str | Path) -> Generator[None]:
    """Raise a UserError if reading the file within fails. It names the setting that the file is from, and the reason.

    Args:
        name: the setting or flag, such as `file`.
        path: the file.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be read ({error.strerror or error})") from error


def as_typed(value: Any) -> str:
    """A value as it is written in YAML or on a command line: null, true, [64, null], {a: 1}."""
    if value is None:
        return "null"
    if value == "":
        return "an empty text"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_typed, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {as_typed(inner)}' for key, inner in value.items())}}}"
    return str(value)
