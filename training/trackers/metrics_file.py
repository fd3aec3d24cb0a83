"""RUN_DIR/metrics.jsonl."""

import json
import os
from math import isfinite

from training.record import step_of_line
from training.trackers.base import Line, Tracker
from utils.errors import UserError
from utils.files import naming, refuse_endless


class MetricsFile(Tracker):
    """RUN_DIR/metrics.jsonl: one JSON object per step, in order. Lines are appended and never rewritten.

    Attributes:
        last_step: the step of the last line, -1 if there is none. A run that begins from trained weights has a step 0.
    """

    last_step: int = -1

    def start(self, run_id: str | None) -> None:
        """Open the file, without a last line that a kill or a full disk cut short.

        Raises:
            UserError: when the last line is no line of metrics, or the file is a pipe, which may never end.
        """
        self.path = self.config.folder / "metrics.jsonl"
        refuse_endless("run_dir", self.path)
        self.path.touch()
        complete, newline, _ = self.path.read_bytes().rpartition(b"\n")
        if complete:
            self.last_step = step_of_line(complete.splitlines()[-1])
            if self.last_step < 0:
                advice = "delete the lines at its end that are no metrics"
                raise UserError(f"the last line of {self.path} has no step: {advice}")
        os.truncate(self.path, len(complete + newline))

    def log(self, lines: list[Line]) -> None:
        """Write all lines at once, and wait until they are on the disk."""
        text = "".join(to_json(line) + "\n" for line in lines)
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.last_step = lines[-1].step


def to_json(line: Line) -> str:
    """A line as a JSON object: "step", its metrics, and "offsets" if it has any. NaN and infinity become null."""
    values: dict[str, int | float | list[int] | None] = {"step": line.step}
    for name, value in line.metrics.items():
        values[name] = value if isfinite(value) else None
    if line.offsets:
        values["offsets"] = line.offsets
    return json.dumps(values)
