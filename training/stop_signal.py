"""Ctrl-C and SIGTERM: a run saves a checkpoint and then exits."""

import os
import signal
import sys
from types import FrameType


class StopSignal:
    """Remembers SIGINT (Ctrl-C) or SIGTERM, so that the run can finish its step and save; a second one exits."""

    def __init__(self):
        self.number = 0  # the signal received; 0 = none
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    @property
    def received(self) -> bool:
        return self.number != 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            os._exit(128 + number)
        self.number = number
        name = signal.Signals(number).name
        print(f"\n{name}: saving after this step; send it again to exit at once", file=sys.stderr)

    def exit_if_received(self) -> None:
        """Exit with 128 + the signal's number, as shells expect of a program that a signal ended."""
        if self.received:
            sys.exit(128 + self.number)
