"""Checks of arguments, with one wording for every mistake."""

from math import inf
from typing import Any

from utils.errors import Mistake, UserError


def is_number(value: Any, low: float, kind: Any = int | float) -> bool:
    """Whether value is a finite number of the given kind, at least `low`."""
    return isinstance(value, kind) and not isinstance(value, bool) and low <= value < inf


def is_increasing(values: Any, low: int) -> bool:
    """Whether values is a list of strictly increasing whole numbers, none below `low`; an empty list is."""
    if not isinstance(values, list | tuple):
        return False
    return all(is_number(v, low, int) for v in values) and list(values) == sorted(set(values))


def require(given: dict[str, Any], **checks: tuple[bool, str]) -> None:
    """Raise a UserError that lists every argument that does not fit.

    Args:
        given: the arguments by name.
        checks: for each argument, whether it fits, and what is allowed.
    """
    mistakes = [Mistake(name, given[name], allowed) for name, (fits, allowed) in checks.items() if not fits]
    if mistakes:
        raise UserError(*mistakes)
