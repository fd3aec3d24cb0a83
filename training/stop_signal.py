"""Signals to a run: save a checkpoint and exit, or save one and go on."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

from training.launcher import is_launched


def ignore_save_requests() -> None:
    """Ignore SIGUSR1 until a `StopSignal` handles it, as there is nothing to save yet. By default it ends a program."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class StopSignal:
    """Remembers signals, so that the run can finish its step and then act on them.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal is closed) ask it to save a checkpoint and exit. Systems may send
    the last two more than once, but a second signal that is a Ctrl-C exits at once. SIGUSR1 asks it to save a
    checkpoint and go on.

    SIGHUP stays ignored under `nohup`, except with torchrun, as `accelerate launch` starts several processes: it
    handles SIGHUP even so, passes it on, and kills processes that have not ended after 30 seconds.
    """

    def __init__(self):
        self.number = 0  # the signal that asked to exit; 0 = none
        self.save_requested = False
        self.terminals = [file for file in (1, 2) if os.isatty(file)]  # among standard output and standard error

        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN or "TORCHELASTIC_RUN_ID" in os.environ:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            signal.signal(number, self._on_signal)

    @property
    def received(self) -> bool:
        """Whether to save and exit."""
        return self.number != 0

    def take_save_request(self) -> bool:
        """Whether to save and go on: SIGUSR1 came since the last call."""
        requested, self.save_requested = self.save_requested, False
        return requested

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._leave_terminals()

        name = signal.Signals(number).name
        if number == signal.SIGUSR1:
            self.save_requested = True
            say_now(f"{name}: saving a checkpoint after this step, then going on")
        elif not self.received:
            self.number = number
            say_now(f"{name}: saving a checkpoint after this step, then exiting; Ctrl-C exits at once")
            if is_launched():
                say_now("a traceback that follows is the launcher's; the run goes on until it has saved")
        elif number == signal.SIGINT:
            os._exit(128 + number)

    def _leave_terminals(self) -> None:
        """Print nowhere instead of to a terminal, because the terminal is gone and printing to it would fail."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for file in self.terminals:
            os.dup2(nowhere, file)
        os.close(nowhere)

    def exit_if_received(self) -> None:
        """Exit with 128 + the signal's number, as shells expect of a program that a signal ended."""
        if self.received:
            sys.exit(128 + self.number)


def say_now(line: str) -> None:
    """Print a line to standard error, even if a signal came while Python was printing, or nobody reads it any more."""
    with suppress(OSError):
        os.write(2, f"\n{line}\n".encode())
