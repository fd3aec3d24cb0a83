"""Checks of what a user gives, with one wording for all mistakes."""

from math import inf


def is_number(value, low: int, kind=int | float) -> bool:
    """Whether value is a finite number of a kind, at least low."""
    return isinstance(value, kind) and not isinstance(value, bool) and low <= value < inf


def is_increasing(values, low: int) -> bool:
    """Whether values are a list of whole numbers from low, each above the one before; an empty one is."""
    return isinstance(values, list) and all(is_number(v, low, int) for v in values) and values == sorted(set(values))


def require(given: dict, **checks: tuple[bool, str]) -> None:
    """Raise a ValueError that names each argument that does not fit, what it got and what is allowed."""
    wrong = [f"{name}: got {given[name]}, allowed: {allowed}" for name, (fits, allowed) in checks.items() if not fits]
    if wrong:
        raise ValueError("; ".join(wrong))
