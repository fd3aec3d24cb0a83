"""Where a run's figures go: metrics.jsonl always, Weights & Biases if wanted."""

import json
import os
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
        """Write the lines that are new, all at once, to the disk; returns them."""
        lines = [line for line in lines if line["step"] > self.last_step]
        if lines:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
            self.last_step = lines[-1]["step"]
        return lines


def wandb_mode(config: Config) -> str:
    """The configured mode, with `auto` made online or offline by whether a key is at hand."""
    if config.wandb.mode != "auto":
        return config.wandb.mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    import wandb  # heavy, and not needed by runs without it

    return "online" if wandb.login(prompt=False) else "offline"


def start_wandb(accelerator: Accelerator, config: Config, state: RunState) -> None:
    """Begin, or go on with, the run's dashboard. Every process calls this."""
    run_dir = Path(config.run_dir)
    mode = wandb_mode(config) if accelerator.is_main_process else "disabled"
    options = {"mode": mode, "dir": str(run_dir), "name": config.wandb.name or run_dir.name}
    if state.tracker_id:
        options |= {"id": state.tracker_id, "resume": "allow"}
    accelerator.init_trackers(config.wandb.project, config=config.to_dict(), init_kwargs={"wandb": options})
    if accelerator.is_main_process:
        state.tracker_id = accelerator.get_tracker("wandb", unwrap=True).id
