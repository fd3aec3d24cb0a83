"""Weights & Biases (https://docs.wandb.ai)."""

import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from training.code_version import code_version
from training.config import Config
from training.record import Change
from training.trackers.base import Line, Tracker
from utils.errors import Mistake, UserError

if TYPE_CHECKING:
    import wandb

Mode = Literal["online", "offline", "disabled"]


class WandbTracker(Tracker):
    """A run at Weights & Biases. With `wandb.mode=disabled` it does nothing, and wandb is not even imported."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.mode = choose_mode(config.wandb.mode)
        self.run: wandb.Run | None = None

    def start(self, run_id: str | None) -> str | None:
        if self.mode == "disabled":
            return None
        import wandb  # takes a second, which runs without it need not wait for

        settings = self.config.wandb
        run = wandb.init(
            project=settings.project,
            name=settings.name or self.config.folder.name,
            dir=str(self.config.folder),
            mode=self.mode,
            id=run_id,
            resume="allow" if run_id else None,
            settings=wandb.Settings(quiet=True),  # train.py prints its own summary
        )
        run.config.update(self.config.to_dict() | {"code_version": code_version()}, allow_val_change=True)
        define_axes(run)
        self.run = run
        self.samples = wandb.Table(["step", "text"], log_mode="INCREMENTAL")
        self.location = f"wandb sync {shlex.quote(run.sync_dir)}" if run.offline else run.url
        return run.id

    def log_changes(self, changes: list[Change]) -> None:
        """Add the changes to the run's config, which has the settings of now."""
        if self.run is not None:
            self.run.config.update({"changes": [asdict(change) for change in changes]}, allow_val_change=True)

    def log(self, lines: list[Line]) -> None:
        if self.run is None:
            return
        for line in lines:
            self.run.log(line.metrics, step=line.step)

    def log_sample(self, step: int, text: str) -> None:
        """Add a row to the table of samples."""
        if self.run is None:
            return
        self.samples.add_data(step, text)
        self.run.log({"samples": self.samples})

    def log_model(self, folder: Path, step: int, bits_per_byte: float) -> None:
        """Upload the model as a new version of the run's artifact, if `wandb.log_model` asks for it."""
        if self.run is None or not self.config.wandb.log_model:
            return
        import wandb

        metadata = {"step": step, "validation_bits_per_byte": bits_per_byte}
        artifact = wandb.Artifact(f"model-{self.run.id}", "model", metadata=metadata)
        artifact.add_dir(str(folder))
        self.run.log_artifact(artifact, aliases=["best", f"step-{step}"])

    def finish(self) -> None:
        if self.run is not None:
            self.run.finish()


def define_axes(run: "wandb.Run") -> None:
    """Draw losses over bytes, so that runs with different batches compare, and speed over seconds. The dashboard can
    change either. Its summary has the best validation, not the last."""
    for axis in ("bytes", "seconds"):
        run.define_metric(axis)
    for group in ("train", "levels", "validation"):
        run.define_metric(f"{group}/*", step_metric="bytes")
    run.define_metric("speed/*", step_metric="seconds")
    run.define_metric("validation/bits_per_byte", step_metric="bytes", summary="min")


def choose_mode(mode: str) -> Mode:
    """wandb's mode for `wandb.mode`: `auto` becomes online if an API key is found, and offline otherwise.

    Raises:
        UserError: when online is asked for and there is no key.
    """
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "auto")
    if mode not in ("auto", "online"):
        return cast(Mode, mode)  # checked by the config, or else by wandb

    import wandb

    if wandb.login(prompt=False):
        return "online"
    if mode == "online":
        allowed = "auto or offline, as there is no API key; `wandb login` stores one"
        raise UserError(Mistake("wandb.mode", "online", allowed))
    return "offline"
