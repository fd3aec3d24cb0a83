"""Weights & Biases (https://docs.wandb.ai)."""

import os
import shlex
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from training.code_version import code_version
from training.config import Config
from training.record import Change
from training.trackers.base import Line, Tracker
from utils.errors import Mistake, UserError
from utils.terminal import warn

if TYPE_CHECKING:
    import wandb

Mode = Literal["online", "offline", "disabled"]
MODES: dict[str, Mode] = {
    "online": "online",
    "offline": "offline",
    "disabled": "disabled",
    # wandb's older names, in WANDB_MODE only
    "run": "online",
    "dryrun": "offline",
}
NO_KEY = "there is no API key; `wandb login` stores one"


class WandbTracker(Tracker):
    """A run at Weights & Biases. With `wandb.mode=disabled` it does nothing, and wandb is not even imported."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.mode = choose_mode(config.wandb.mode)
        self.run: wandb.Run | None = None

    def start(self, run_id: str | None) -> str | None:
        if self.mode == "disabled":
            return None
        try:
            self.run = self.init(self.mode, run_id)
        except Exception as error:  # wandb raises exceptions of many kinds
            if self.mode == "offline":
                raise
            warn(f"wandb goes offline: {error}")
            self.run = self.init("offline", run_id)

        self.run.config.update(self.config.to_dict() | {"code_version": code_version()}, allow_val_change=True)
        define_axes(self.run)
        self.samples = import_wandb().Table(["step", "text"], log_mode="INCREMENTAL")
        self.location = f"wandb sync {shlex.quote(self.run.sync_dir)}" if self.run.offline else self.run.url
        return self.run.id

    def init(self, mode: Mode, run_id: str | None) -> "wandb.Run":
        """Start a run at wandb, or continue the one with this id."""
        wandb = import_wandb()
        return wandb.init(
            project=self.config.wandb.project,
            name=self.config.wandb.name or self.config.folder.name,
            dir=str(self.config.folder),
            mode=mode,
            id=run_id,
            resume="allow" if run_id else None,
            settings=wandb.Settings(quiet=True),  # train.py prints its own summary
        )

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
        metadata = {"step": step, "validation_bits_per_byte": bits_per_byte}
        artifact = import_wandb().Artifact(f"model-{self.run.id}", "model", metadata=metadata)
        artifact.add_dir(str(folder))
        self.run.log_artifact(artifact, aliases=["best", f"step-{step}"])

    def finish(self) -> None:
        if self.run is None:
            return
        try:
            self.run.finish()
        except Exception:
            # its process is gone, which it would otherwise tell in a traceback when Python exits
            with suppress(Exception, SystemExit):
                import_wandb().teardown()
            raise


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
    """wandb's mode for `wandb.mode`. `auto` is what the environment says, or else online if there is an API key that
    works, or else offline. A warning says why a key does not work.

    Raises:
        UserError: when online is asked for by name, and cannot work.
    """
    name = "wandb.mode"
    if mode == "auto":
        name = "WANDB_MODE"
        mode = mode_of_environment()
    if mode in ("offline", "disabled"):
        return MODES[mode]

    problem = why_not_online()
    if problem is None:
        return "online"
    if mode == "online":
        raise UserError(Mistake(name, "online", f"auto or offline, as {problem}"))
    if problem != NO_KEY:
        warn(f"wandb goes offline: {problem}")
    return "offline"


def mode_of_environment() -> str:
    """The mode that WANDB_DISABLED and WANDB_MODE name: one of MODES, or auto if they are not set."""
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    mode = os.environ.get("WANDB_MODE") or "auto"
    if mode == "auto":
        return "auto"
    if mode not in MODES:
        warn(f"wandb goes offline: {Mistake('WANDB_MODE', mode, 'online, offline or disabled')}")
        return "offline"
    return MODES[mode]


def why_not_online() -> str | None:
    """Why this machine cannot log to wandb's server, or None if it can. Waits for an answer for 10 seconds."""
    try:
        if import_wandb().login(prompt=False, verify=True):
            return None
    except Exception as error:  # wandb, its settings and the network raise exceptions of many kinds
        return str(error)
    return NO_KEY


def import_wandb():
    """The module wandb. The import takes a second, which runs without wandb need not wait for."""
    os.environ.pop("WANDB_MODE", None)  # wandb reads it at every step, but the mode is chosen here
    import wandb

    return wandb
