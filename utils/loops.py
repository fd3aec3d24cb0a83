"""Loops that Numba compiles. Importing it takes half a second, so modules of loops are imported when first needed."""

from collections.abc import Callable

from numba import njit


def compiled(function: Callable) -> Callable:
    """A function that Numba compiles when it is first called, and keeps on the disk for later processes if it can."""
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # there is no folder that it may write to
        return njit(function)
