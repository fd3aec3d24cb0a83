"""What stress programs have in common: which cases they run, and their report.

A report has a line for each case, all that is needed to look at a failure, and a summary.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator

SECONDS_BETWEEN = 20  # two lines about how far a fuzzer is


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


def fuzzing_parser(description: str | None) -> argparse.ArgumentParser:
    """The command line of a fuzzer."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=sys.maxsize, help="end after this many cases, if not before")
    parser.add_argument("--case", type=int, help="the number of a single case, whose files are kept")
    return parser


def case_numbers(args: argparse.Namespace, report: Report) -> Iterator[int]:
    """The numbers of the cases that a fuzzer runs: one, or as many as there is time for. Now and then it says how far
    it is."""
    if args.case is not None:
        yield args.case
        return
    deadline = time.monotonic() + 60 * args.minutes
    said = time.monotonic()
    for number in range(args.cases):
        if time.monotonic() > deadline:
            return
        yield number
        if time.monotonic() - said > SECONDS_BETWEEN:
            said = time.monotonic()
            report.progress(f"{number + 1} cases")


def indented(text: object) -> str:
    return "\n".join(f"    {line}" for line in str(text).splitlines())
