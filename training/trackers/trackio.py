"""Trackio (https://huggingface.co/docs/trackio): a dashboard on this machine, without an account."""

from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from uuid import uuid4

from training.code_version import code_version
from training.config import Config
from training.record import Change
from training.trackers.base import Line, Tracker
from utils.errors import UserError


class TrackioTracker(Tracker):
    """A run in Trackio's local database, or in a Space of the Hugging Face hub if `trackio.space` names one.

    The database is Trackio's own, outside of the run directory, so that one dashboard compares all runs; the
    environment variable TRACKIO_DIR moves it.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        if find_spec("trackio") is None:
            raise UserError("train.trackers asks for trackio, which is not installed: pip install trackio")

    def start(self, run_id: str | None) -> str:
        trackio = import_module("trackio")  # optional, so there may be nothing to import

        settings = self.config.trackio
        name = settings.name or self.config.folder.name
        with redirect_stdout(None):  # train.py says where to look
            self.run = trackio.init(
                project=settings.project,
                name=run_id or f"{name}-{uuid4().hex[:4]}",  # trackio finds a run to continue by its name
                space_id=settings.space,
                config=self.config.to_dict() | {"code_version": code_version()},
                resume="allow" if run_id else "never",
                embed=False,
            )
        if settings.space is None:
            self.location = f"trackio show --project {quote(settings.project)}"
        else:
            self.location = f"https://huggingface.co/spaces/{settings.space}"
        return self.run.name

    def log_changes(self, changes: list[Change]) -> None:
        rows = [[change.step, str(change)] for change in changes]
        table = import_module("trackio").Table(columns=["step", "change"], data=rows)
        self.run.log({"changes": table}, step=changes[-1].step)

    def log(self, lines: list[Line]) -> None:
        for line in lines:
            self.run.log(dict(line.metrics), step=line.step)

    def log_sample(self, step: int, text: str) -> None:
        table = import_module("trackio").Table(columns=["step", "text"], data=[[step, text]])
        self.run.log({"samples": table}, step=step)

    def log_model(self, folder: Path, step: int, bits_per_byte: float) -> None:
        """Note the step of the best model. Its files stay in the run directory."""
        self.run.log({"validation/best_bits_per_byte": bits_per_byte}, step=step)

    def finish(self) -> None:
        with redirect_stdout(None):
            self.run.finish()
