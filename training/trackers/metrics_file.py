"""RUN_DIR/metrics.jsonl."""

import json
import os
from math import isfinite

from training.trackers.base import Metrics, Tracker


class MetricsFile(Tracker):
    """RUN_DIR/metrics.jsonl: one JSON object per step, in order. Lines are appended and never rewritten.

    Attributes:
        last_step: the step of the last line, 0 if there is none.
    """

    last_step: int = 0

    def start(self, run_id: str | None) -> None:
        self.path = self.config.folder / "metrics.jsonl"
        self.path.touch()
        complete, newline, _ = self.path.read_bytes().rpartition(b"\n")
        os.truncate(self.path, len(complete + newline))  # drops a line that a kill cut short
        if complete:
            last_line = json.loads(complete.splitlines()[-1])
            self.last_step = last_line["step"]

    def log(self, lines: list[Metrics]) -> None:
        """Write lines all at once, to the disk."""
        text = "".join(json.dumps(without_nan(line)) + "\n" for line in lines)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.last_step = lines[-1]["step"]


def without_nan(line: Metrics) -> dict[str, int | float | list[int] | None]:
    """The same line with null for NaN and infinity, which JSON does not have."""
    return {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in line.items()}
