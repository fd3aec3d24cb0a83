"""The program that started this one: `accelerate launch`, torchrun, or none of them."""

import os
from collections.abc import Mapping

import psutil

MARKS = ("ACCELERATE_MIXED_PRECISION", "LOCAL_RANK")  # what launchers set, for the processes that they start only


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `accelerate launch` or torchrun started a program with this environment."""
    return any(mark in environment for mark in MARKS)


def find_launcher() -> psutil.Process | None:
    """The program that started this one with others: the nearest ancestor without the marks of a launcher.

    Raises:
        psutil.Error: if an ancestor has ended, or belongs to somebody else.
    """
    for ancestor in psutil.Process().parents():
        if not is_launched(ancestor.environ()):
            return ancestor
    return None
