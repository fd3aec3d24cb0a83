"""How far a run is, and how long it will still take."""

import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from statistics import fmean

from tqdm import tqdm

from training.config import TrainConfig

BAR = "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} steps, {elapsed}{postfix}"


class Progress:
    """On a terminal a bar with the time that is left, and lines that stay, there and elsewhere.

    What is left is so many steps, validations, samples and checkpoints, each as long as the last one of its kind, or as
    the last 100 steps. A validation, before there was one, is taken for a third of training on as many bytes.

    Args:
        step: finished ones, of an earlier life of the run.
        bytes_per_step: of all processes together.
        shown: whether this process speaks.
    """

    def __init__(self, config: TrainConfig, step: int, bytes_per_step: int, shown: bool):
        self.step, self.last, self.shown = step, config.max_steps, shown
        self.every = {"validation": config.validate_every, "checkpoint": config.checkpoint_every}
        self.every["sample"] = config.sample_every
        self.validation_steps = config.validate_bytes / bytes_per_step / 3
        self.steps, self.took, self.within = deque(maxlen=100), {}, {}  # seconds; of late, and since the last step
        off = not (shown and sys.stderr.isatty())
        self.bar = tqdm(total=self.last, initial=step, bar_format=BAR, disable=off, dynamic_ncols=True)
        self.begin, self.since, self.text = step, time.perf_counter(), ""

    @contextmanager
    def clock(self, what: str) -> Generator[None]:
        """Time spent inside is that of a validation, sample or checkpoint, and not of a step."""
        begun = time.perf_counter()
        yield
        self.within[what] = self.within.get(what, 0.0) + time.perf_counter() - begun

    def rehearse(self, what: str, action: Callable[[], object], share: float) -> None:
        """Do a share of something, once to wake it and once to see how long all of it will take."""
        before = time.perf_counter()
        action()
        begun = time.perf_counter()
        action()
        now = time.perf_counter()
        self.took[what], self.since = (now - begun) / share, self.since + now - before

    def advance(self, text: str = "") -> None:
        """One more step is done, with all that follows it. A text beside the bar stays until there is another."""
        now, self.text = time.perf_counter(), text or self.text
        if self.step == self.begin + 1:
            self.steps.clear()  # the first one wakes all libraries
        self.steps.append(now - self.since - sum(self.within.values()))
        self.took |= self.within
        self.step, self.since, self.within = self.step + 1, now, {}
        if not self.bar.disable:
            left = tqdm.format_interval(round(self.left()))
            self.bar.set_postfix_str(f"{left} left{self.text}", refresh=False)
            self.bar.update()

    def left(self) -> float:
        """Seconds to the end of the run."""
        if self.step >= self.last:
            return 0.0
        step = fmean(self.steps)
        seconds, took = (self.last - self.step) * step, {"validation": self.validation_steps * step} | self.took
        for what, every in self.every.items():  # the last step has all of them
            to_come = self.last // every - self.step // every + (self.last % every > 0) if every else 1
            seconds += to_come * took.get(what, 0.0)
        return seconds

    def say(self, line: str) -> None:
        """A line on stdout, above the bar."""
        if self.shown:
            self.bar.write(line)
            sys.stdout.flush()

    def close(self) -> None:
        """No more steps; the bar stays as it is."""
        self.bar.close()
