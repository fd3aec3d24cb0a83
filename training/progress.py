"""How far a run is, and how long it will still take."""

import sys
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from statistics import fmean

from tqdm import tqdm

from training.config import TrainConfig
from utils.terminal import say

BAR = "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} steps, {elapsed}{postfix}"


class Progress:
    """A bar with the time left on a terminal, and lines that stay, on a terminal and elsewhere.

    The time left is that of the steps, validations, samples and checkpoints to come. Each is taken to last as long as
    the last one of its kind, steps as long as the last 100 on average. Before the first validation, it is estimated as
    a third of the training time on as many bytes; before the first sample, samples are left out.

    Args:
        step: finished steps.
        bytes_per_step: of all processes together.
        shown: whether this process prints.
    """

    def __init__(self, config: TrainConfig, step: int, bytes_per_step: int, shown: bool):
        self.step, self.first_step, self.last_step = step, step, config.max_steps
        self.shown = shown
        self.every = {
            "validation": config.validate_every,
            "checkpoint": config.checkpoint_every,
            "sample": config.sample_every,
        }
        self.validation_steps = config.validate_bytes / bytes_per_step / 3

        # seconds
        self.step_seconds: deque[float] = deque(maxlen=100)
        self.last_seconds: dict[str, float] = {}  # of the last validation, sample and checkpoint
        self.since_step: dict[str, float] = {}  # the same, since the last step was finished
        self.step_finished = time.perf_counter()

        disabled = not (shown and sys.stderr.isatty())
        self.bar = tqdm(total=self.last_step, initial=step, bar_format=BAR, disable=disabled, dynamic_ncols=True)
        self.text = ""

    @contextmanager
    def clock(self, kind: str) -> Generator[None]:
        """Count the time inside as that of a validation, sample or checkpoint, and not of a step."""
        started = time.perf_counter()
        yield
        self.since_step[kind] = self.since_step.get(kind, 0.0) + time.perf_counter() - started

    def describe(self, text: str) -> None:
        """Show a text beside the bar, from the next `advance` on."""
        self.text = text

    def advance(self) -> None:
        """Count a step, with everything that followed it."""
        now = time.perf_counter()
        if self.step == self.first_step + 1:
            self.step_seconds.clear()  # the first step is slow, as libraries load and compile
        self.step_seconds.append(now - self.step_finished - sum(self.since_step.values()))
        self.last_seconds |= self.since_step

        self.step += 1
        self.step_finished = now
        self.since_step = {}
        if not self.bar.disable:
            left = tqdm.format_interval(round(self.seconds_left()))
            self.bar.set_postfix_str(f"{left} left{self.text}", refresh=False)
            self.bar.update()

    def seconds_left(self) -> float:
        """Seconds to the end of the run."""
        if self.step >= self.last_step:
            return 0.0
        step_seconds = fmean(self.step_seconds)
        seconds = (self.last_step - self.step) * step_seconds
        estimates = {"validation": self.validation_steps * step_seconds} | self.last_seconds
        for kind, every in self.every.items():
            seconds += self.number_left(every) * estimates.get(kind, 0.0)
        return seconds

    def number_left(self, every: int) -> int:
        """How often something still happens, every so many steps and after the last; 0 = after the last only."""
        if not every:
            return 1
        regular = self.last_step // every - self.step // every
        return regular if self.last_step % every == 0 else regular + 1

    def say(self, *lines: str) -> None:
        """Print lines to stdout, above the bar."""
        if self.shown:
            say(*lines)

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()
