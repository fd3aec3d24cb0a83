"""The interface of a tracker."""

from pathlib import Path

from training.config import Config

Metrics = dict[str, int | float | list[int]]
"""Measurements of a step by name, such as "train/loss"; the lists are `offsets`, on steps that were skipped."""


class Tracker:
    """Receives what a run measures, on the main process. Every method but `log` may be left as it is.

    Attributes:
        location: where the user finds the dashboard, an address or a command to type; None if there is nothing to say.
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

    def log(self, lines: list[Metrics]) -> None:
        """Take the metrics of steps, each with "step", in increasing order and each step once."""
        raise NotImplementedError

    def log_sample(self, step: int, text: str) -> None:
        """Take a text that the model wrote."""

    def log_model(self, folder: Path, step: int, bits_per_byte: float) -> None:
        """Take the folder of the best model so far: its weights, config and card."""

    def finish(self) -> None:
        """The run is over."""
