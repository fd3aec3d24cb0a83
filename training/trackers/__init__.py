"""Where a run's measurements go: metrics.jsonl always, and the dashboards that `train.trackers` names.

A new tracker is a subclass of `Tracker` in a file here, and a line in TRACKERS.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from training.checkpoints import RunState
from training.config import Config
from training.record import Change
from training.trackers.base import Line, Tracker
from training.trackers.metrics_file import MetricsFile
from training.trackers.trackio import TrackioTracker
from training.trackers.wandb import WandbTracker
from utils.errors import Mistake, UserError
from utils.terminal import warn

__all__ = ["TRACKERS", "Line", "MetricsFile", "Tracker", "Trackers"]

TRACKERS: dict[str, type[Tracker]] = {
    "metrics_file": MetricsFile,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}


class Trackers:
    """All trackers of a run, in the order of `train.trackers` after metrics.jsonl.

    Only the main process has any. The others call the same methods, and nothing happens. A dashboard that fails gets a
    warning and nothing more; the run goes on, and metrics.jsonl has all that the dashboard would have had.

    Raises:
        UserError: on a name that TRACKERS does not have, or a tracker that cannot work. Nothing is written by then.
    """

    def __init__(self, config: Config, is_main_process: bool):
        names = ["metrics_file", *config.train.trackers]
        dashboards = [name for name in TRACKERS if name != "metrics_file"]
        unknown = [name for name in names if name not in TRACKERS]
        if unknown:
            raise UserError(Mistake("train.trackers", list(config.train.trackers), f"any of {', '.join(dashboards)}"))

        self.trackers: dict[str, Tracker] = {}
        if is_main_process:
            self.trackers = {name: TRACKERS[name](config) for name in names}  # a name given twice counts once
        self.failed: set[str] = set()
        self.pending: dict[int, Line] = {}  # by step
        self.last_logged_step = -1

    def start(self, state: RunState) -> None:
        """Start all trackers, or continue those of the run that `state` is from, and note their ids in it."""
        for name, tracker in self.trackers.items():
            with self.going_on_without(name):
                run_id = tracker.start(state.tracker_ids.get(name))
                if run_id is not None:
                    state.tracker_ids[name] = run_id
            if isinstance(tracker, MetricsFile):
                self.last_logged_step = tracker.last_step

    def log_changes(self, changes: list[Change]) -> None:
        """Pass on all settings that resumes of this run have changed."""
        self.tell_all(lambda tracker: tracker.log_changes(changes))

    def log(self, step: int, metrics: Mapping[str, int | float], offsets: list[int] | None = None) -> None:
        """Add metrics to those of a step. They are passed on when `flush` is called."""
        line = self.pending.setdefault(step, Line(step))
        line.metrics.update(metrics)
        line.offsets.extend(offsets or [])

    def flush(self) -> None:
        """Pass on what was logged, except for steps that a resumed run repeats and metrics.jsonl already has."""
        lines = [line for line in self.pending.values() if line.step > self.last_logged_step]
        self.pending.clear()
        if not lines:
            return
        self.tell_all(lambda tracker: tracker.log(lines))
        self.last_logged_step = lines[-1].step

    def log_sample(self, step: int, text: str) -> None:
        """Pass on a text that the model wrote after a step."""
        self.flush()  # wandb takes no metrics of a step after something else was logged
        self.tell_all(lambda tracker: tracker.log_sample(step, text))

    def log_model(self, folder: Path, step: int, bits_per_byte: float) -> None:
        """Pass on the folder of the best model so far, with its validation score."""
        self.flush()
        self.tell_all(lambda tracker: tracker.log_model(folder, step, bits_per_byte))

    def finish(self) -> None:
        """Flush, and close all trackers."""
        self.flush()
        self.tell_all(lambda tracker: tracker.finish())
        for name in self.failed:
            with suppress(Exception):  # it was said when it failed
                self.trackers[name].finish()

    def tell_all(self, tell: Callable[[Tracker], None]) -> None:
        """Call `tell` with each tracker that has not failed."""
        for name, tracker in self.trackers.items():
            if name not in self.failed:
                with self.going_on_without(name):
                    tell(tracker)

    @contextmanager
    def going_on_without(self, name: str) -> Generator[None]:
        """If a dashboard fails within, warn of it and leave it alone from then on. metrics.jsonl must not fail."""
        try:
            yield
        except Exception as error:  # dashboards and the network raise exceptions of many kinds
            if name == "metrics_file":
                raise
            self.failed.add(name)
            warn(f"{name} failed, and the run goes on without it: {type(error).__name__}: {error}")

    @property
    def locations(self) -> list[str]:
        """Where the user finds the results of each tracker: an address, a path or a command."""
        return [tracker.location for tracker in self.trackers.values() if tracker.location is not None]
