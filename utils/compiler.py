"""Whether PyTorch's compiler has the tools that it needs on a machine."""

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

import torch

from utils.errors import UserError

TOOLS = {"cuda": "a C compiler (gcc, clang or $CC)"}  # by type of device; Triton needs one to start its kernels
CPU_TOOL = "a C++ compiler (g++, clang++ or $CXX)"


@contextmanager
def recursion_limit(calls: int) -> Generator[None]:
    """Allow this many nested calls within. Python's default is 1,000."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(calls)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def check_compiler(name: str, device_type: str) -> None:
    """Compile something small on a type of device, as the compiler may be missing, broken or without its headers.

    It takes seconds the first time. PyTorch's cache then makes them a part of what the real compilation would take.

    Raises:
        UserError: if that fails. It names the setting or flag, and the tool that is needed.
    """
    try:
        with torch.no_grad():
            torch.compile(torch.nn.functional.silu)(torch.zeros(8, device=device_type))
    except Exception as error:  # PyTorch, Triton and the system raise exceptions of many kinds
        tool = TOOLS.get(device_type, CPU_TOOL)
        raise UserError(f"{name} needs {tool} that works: {reason_of(error)}") from error


def check_cpp_compiler(name: str) -> None:
    """Let the C++ compiler read a header of its standard library, which takes a tenth of a second.

    Raises:
        UserError: if it does not work. It names the setting or flag.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as PyTorch chooses it
    command = [compiler, "-fsyntax-only", "-x", "c++", "-"]
    try:
        done = subprocess.run(command, input="#include <vector>\n", capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{name} needs {CPU_TOOL} that works: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """The line of a compiler's output that names the error, or else the first line of the message."""
    lines = [line for line in str(error).splitlines() if line]
    named = [line for line in lines if "error: " in line]
    return (named or lines or [type(error).__name__])[0]
