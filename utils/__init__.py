"""Shared by every other package: files written in one step, argument checks, and errors that the user can fix."""

from utils.checks import is_increasing, is_number, require
from utils.errors import Mistake, UserError

__all__ = [
    "Mistake",
    "UserError",
    "checks",
    "compiler",
    "errors",
    "files",
    "is_increasing",
    "is_number",
    "locks",
    "loops",
    "new_weights",
    "require",
    "terminal",
    "threads",
]
