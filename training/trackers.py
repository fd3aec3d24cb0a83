"""Where a run's figures go: metrics.jsonl always, Weights & Biases if wanted."""

import json
import os
import shlex
import subprocess
from math import isfinite
from pathlib import Path

from accelerate import Accelerator

from training.checkpoints import RunState
from training.config import Config


class MetricsFile:
    """RUN_DIR/metrics.jsonl: one JSON object a step, in order, appended to and never rewritten.

    After a resume, steps that already have their line are computed again, to the same figures, and not written again.
    """

    def __init__(self, path: Path):
        path.touch()
        whole = path.read_bytes().rpartition(b"\n")[0] + b"\n"
        lines = whole.split()
        os.truncate(path, len(whole) if len(whole) > 1 else 0)  # a line that a kill cut short
        self.last_step = json.loads(whole.splitlines()[-1])["step"] if lines else 0
        self.path = path

    def append(self, lines: list[dict]) -> list[dict]:
        """Write the lines that are new, all at once, to the disk; returns them. What is not finite becomes null."""
        lines = [line for line in lines if line["step"] > self.last_step]
        if lines:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(finite(line)) + "\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
            self.last_step = lines[-1]["step"]
        return lines


def finite(line: dict) -> dict:
    """The same with null, which JSON has, for the numbers that it has not."""
    return {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in line.items()}


class Dashboard:
    """A run at Weights & Biases, on the main process; nothing happens where it is disabled.

    `place` is its address or, of a run that is offline, the command that sends it there; None if there is neither.
    """

    def __init__(self, accelerator: Accelerator, config: Config, state: RunState, mode: str):
        """Begin the dashboard in a mode of wandb, or go on with that of `state`. Every process calls this."""
        self.run, self.table, self.place, self.log_model = None, None, None, config.wandb.log_model
        if config.wandb.mode == "disabled":
            return
        run_dir = config.folder
        options = {"mode": mode, "dir": str(run_dir), "name": config.wandb.name or run_dir.name}
        options["settings"] = {"quiet": True}  # no figures at the end, which the run's own table has
        if state.tracker_id:
            options |= {"id": state.tracker_id, "resume": "allow"}
        settings = config.to_dict() | {"code_version": code_version()}
        accelerator.init_trackers(config.wandb.project, config=settings, init_kwargs={"wandb": options})
        if accelerator.is_main_process:
            import wandb

            self.run = accelerator.get_tracker("wandb", unwrap=True)
            self.place = f"wandb sync {shlex.quote(self.run.sync_dir)}" if self.run.offline else self.run.url
            self.table = wandb.Table(["step", "text"], log_mode="INCREMENTAL")
            state.tracker_id = self.run.id

    def log(self, lines: list[dict]) -> None:
        """Figures of steps, as they stand in metrics.jsonl."""
        if self.run is None:
            return
        for line in lines:
            self.run.log({k: v for k, v in line.items() if k not in ("step", "offsets")}, step=line["step"])

    def log_sample(self, step: int, text: str) -> None:
        """One more row of the table of samples."""
        if self.run is not None and self.table is not None:
            self.table.add_data(step, text)
            self.run.log({"samples": self.table})

    def log_best_model(self, folder: Path, step: int, score: float) -> None:
        """The best model's folder, as a new version of the run's artifact, if that is wanted."""
        if self.run and self.log_model:
            import wandb

            artifact = wandb.Artifact(
                f"model-{self.run.id}", "model", metadata={"step": step, "validation_bits_per_byte": score}
            )
            artifact.add_dir(str(folder))
            self.run.log_artifact(artifact, aliases=["best", f"step-{step}"])


def wandb_mode(config: Config) -> str:
    """The configured mode, with `auto` made online or offline by whether a key is at hand.

    Raises:
        ValueError: when it is to be online and there is no key.
    """
    mode = config.wandb.mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or "auto"
    if mode not in ("auto", "online"):
        return mode
    import wandb  # heavy, and not needed by runs without it

    if wandb.login(prompt=False):
        return "online"
    if mode == "online":
        raise ValueError("wandb.mode: got online without a key, allowed: auto, offline, or after `wandb login`")
    return "offline"


def code_version() -> str:
    """The commit of this code, with a + if it was changed since; unknown outside a git checkout."""
    git = ["git", "-C", str(Path(__file__).parents[1]), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
