"""A process that does cases for a fuzzer, and is started again when it died or took too long."""

import ctypes
import multiprocessing
import os
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from tests.stress.report import Fault

MAX_MEMORY = 1 << 30  # that a case may take, in bytes
SPARE_BYTES = 3 << 30  # of address space, on top of what the libraries take


@dataclass
class Answer:
    """What a case gave."""

    result: Any = None
    traceback: str | None = None
    """of the exception that ended it"""
    peak_bytes: int = 0
    """the most memory that the process has had so far"""


class Worker:
    """A process that calls a function for one argument after another.

    Args:
        function: what to call; it and its argument go to the process by name, as multiprocessing does.
        prepare: is called first, with the rights of this process.
    """

    def __init__(self, function: Callable[[Any], Any], prepare: Callable[[], None]):
        self.options = function, prepare
        self.process: Any = None

    def call(self, argument: Any, seconds: float) -> Answer:
        """Call the function. Raises a Fault if the process dies, or needs more time."""
        if self.process is None:
            self.start()
        self.connection.send(argument)
        try:
            if self.connection.poll(seconds):
                return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            self.stop()
            raise Fault(f"the process died with code {code}\n{self.written()}") from None
        self.stop()
        raise Fault(f"it takes more than {seconds:.0f} s\n{self.written()}")

    def start(self) -> None:
        spawning = multiprocessing.get_context("spawn")
        self.connection, other = spawning.Pipe()
        self.stderr = tempfile.NamedTemporaryFile(prefix="worker-")  # noqa: SIM115, it is read after a death
        self.process = spawning.Process(target=serve, args=(other, self.stderr.name, *self.options), daemon=True)
        self.process.start()
        other.close()
        self.connection.recv()

    def stop(self) -> None:
        """End the process; the next call starts another."""
        if self.process is None:
            return
        self.connection.close()  # which ends it, unless it hangs
        self.process.join(2)
        self.process.kill()
        self.process.join()
        self.process = None

    def written(self) -> str:
        """The last lines that the process wrote to its stderr, for example by faulthandler."""
        with open(self.stderr.name, errors="backslashreplace") as file:
            return "".join(file.readlines()[-30:])


def serve(connection, stderr: str, function: Callable, prepare: Callable) -> None:
    """Answer one argument after another. Runs in the process."""
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_APPEND), 2)
    prepare()
    obey_permissions()
    address_space = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (address_space + SPARE_BYTES, resource.RLIM_INFINITY))
    connection.send("ready")
    while True:
        try:
            argument = connection.recv()
        except EOFError:  # the fuzzer has closed it
            return
        answer = Answer()
        try:
            answer.result = function(argument)
        except BaseException:
            answer.traceback = traceback.format_exc()
        answer.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        connection.send(answer)


def obey_permissions() -> None:
    """Let root be denied files as others are. On Linux two capabilities exempt it; elsewhere there is nothing to do."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface, and this process
    sets = (ctypes.c_uint32 * 6)()  # the first word: capabilities that are in effect
    libc.capget(header, sets)
    cap_dac_override, cap_dac_read_search = 1, 2
    sets[0] &= ~(1 << cap_dac_override | 1 << cap_dac_read_search)
    libc.capset(header, sets)
