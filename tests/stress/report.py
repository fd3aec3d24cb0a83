"""The report of a stress program: a line for each case, all that is needed to look at a failure, and a summary."""

import time
from collections import Counter


class Fault(AssertionError):
    """A case that did not go as it must. The message says what was wrong, and holds what is needed to look."""


class Report:
    """Prints the cases of a program as they end, and counts them.

    Args:
        name: the program.
        seed: from which its cases are drawn.
    """

    def __init__(self, name: str, seed: int):
        self.name, self.seed = name, seed
        self.counts: Counter[str] = Counter()  # cases by outcome
        self.faults = 0
        self.started = time.monotonic()
        print(f"{name}: seed {seed}", flush=True)

    def passed(self, case: str, outcome: str = "ok", show: bool = True) -> None:
        """Count a case that went well."""
        self.counts[outcome] += 1
        if show:
            print(f"{self.elapsed():7.1f} s  {case}: {outcome}", flush=True)

    def failed(self, case: str, problem: object) -> None:
        """Count a failure, and print it in full."""
        self.faults += 1
        print(f"{self.elapsed():7.1f} s  {case}: FAILED (seed {self.seed})\n{indented(problem)}", flush=True)

    def progress(self, case: str) -> None:
        """Print how far the program is."""
        print(f"{self.elapsed():7.1f} s  {case}: {self.outcomes()}", flush=True)

    def finish(self) -> int:
        """Print the summary. Returns the exit code: 1 if anything failed."""
        print(f"{self.name}: seed {self.seed}, {self.outcomes()}, in {self.elapsed():.0f} s", flush=True)
        return 1 if self.faults else 0

    def outcomes(self) -> str:
        counted = [f"{count} {outcome}" for outcome, count in sorted(self.counts.items())]
        return ", ".join([*counted, f"{self.faults} failed"])

    def elapsed(self) -> float:
        return time.monotonic() - self.started


def indented(text: object) -> str:
    return "\n".join(f"    {line}" for line in str(text).splitlines())
