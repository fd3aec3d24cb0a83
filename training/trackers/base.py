"""The interface of a tracker."""

from dataclasses import dataclass, field
from pathlib import Path

from training.config import Config
from training.record import Change


@dataclass
class Line:
    """What was measured at a step: a line of metrics.jsonl, or a row of a dashboard."""

    step: int
    metrics: dict[str, int | float] = field(default_factory=dict)
    """by name, such as "train/loss"; not always finite"""
    offsets: list[int] = field(default_factory=list)
    """first byte of each sequence in the training split, of a step that was skipped; else empty"""


class Tracker:
    """Receives what a run measures, on the main process. Every method but `log` may be left as it is.

    Attributes:
        location: where the user finds the results: an address, a path or a command. A run prints it at its end.
    """

    location: str | None = None

    def __init__(self, config: Config):
        """Check that the tracker can work. Nothing may be written yet.

        Raises:
            UserError: when it cannot.
        """
        self.config = config

    def start(self, run_id: str | None) -> str | None:
        """Start a dashboard, or continue the one that an earlier `start` of this run returned the id of.

        The run directory exists. Returns the id to keep in checkpoints; None if there is none.
        """
        return None

    def log_changes(self, changes: list[Change]) -> None:
        """Take all settings that resumes of this run have changed, the latest last."""

    def log(self, lines: list[Line]) -> None:
        """Take the metrics of some steps. Steps increase, also from call to call, and each comes once."""
        raise NotImplementedError

    def log_sample(self, step: int, text: str) -> None:
        """Take a text that the model wrote."""

    def log_model(self, folder: Path, step: int, bits_per_byte: float) -> None:
        """Take the folder of the best model so far: its weights, config and card."""

    def finish(self) -> None:
        """The run is over."""
