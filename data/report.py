"""What was read of a corpus, and what was left out and why."""

from dataclasses import asdict, dataclass, field
from typing import Any

from utils.checks import is_number

NAMES_SHOWN = 3  # names that a report gives for each reason


@dataclass(frozen=True)
class LeftOut:
    """Things that were left out for one reason."""

    unit: str
    """what they are: file, link, folder, special file, member (of an archive), row, split"""
    reason: str
    """why they were left out"""
    count: int
    """how many there are"""
    bytes: int = 0
    """their size in bytes, where it is known"""
    names: tuple[str, ...] = ()
    """names of the first few"""

    def line(self) -> str:
        """For example `left out 4 files (120 bytes), hidden: .a, sub/.b, sub/.c, …`."""
        plural = "" if self.count == 1 else "s"
        size = f" ({self.bytes:,} bytes)" if self.bytes else ""
        text = f"left out {self.count:,} {self.unit}{plural}{size}, {self.reason}"
        names = [name if name.isprintable() else repr(name) for name in self.names]
        if self.count > len(names) > 0:
            names.append("…")
        return f"{text}: {', '.join(names)}" if names else text


@dataclass(frozen=True)
class CorpusReport:
    """What was read, and what was left out. Every regular file at data.path is in one of the two, by its path."""

    files: int = 0
    """files that were read, at least in part"""
    bytes: int = 0
    """size of these files on the disk, packed as they are"""
    rows: int = 0
    """rows of a dataset that were read"""
    revision: str | None = None
    """commit of the dataset on the hub, if it was read as a stream"""
    left_out: tuple[LeftOut, ...] = ()
    """what was left out, a reason each"""

    def lines(self) -> list[str]:
        """The report for people to read, one fact a line."""
        lines = []
        if self.files:
            lines.append(f"read {self.files:,} file{'' if self.files == 1 else 's'} ({self.bytes:,} bytes)")
        if self.rows:
            revision = f" of revision {self.revision}" if self.revision else ""
            lines.append(f"read {self.rows:,} row{'' if self.rows == 1 else 's'}{revision}")
        return lines + [each.line() for each in self.left_out]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for a JSON file."""
        return asdict(self)


def report_from_dict(values: Any) -> CorpusReport:
    """The report of which `to_dict` made plain values.

    Raises:
        ValueError, TypeError: if the values are not those of a report.
    """
    left_out = []
    for each in values["left_out"]:
        settings: dict[str, Any] = {**each, "names": tuple(each["names"])}
        left_out.append(LeftOut(**settings))
    settings = {**values, "left_out": tuple(left_out)}
    report = CorpusReport(**settings)

    numbers = [report.files, report.bytes, report.rows]
    texts = [] if report.revision is None else [report.revision]
    for each in left_out:
        numbers += [each.count, each.bytes]
        texts += [each.unit, each.reason, *each.names]
    if not all(is_number(number, 0, int) for number in numbers) or not all(isinstance(text, str) for text in texts):
        raise ValueError("a number or a text of the report is something else")
    return report


@dataclass
class Tally:
    """Counts what is read and what is left out, while it happens."""

    files: int = 0
    bytes: int = 0
    rows: int = 0
    revision: str | None = None
    named: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    """by unit and reason: names of what was left out, with their bytes"""
    unnamed: dict[tuple[str, str], int] = field(default_factory=dict)
    """by unit and reason: how many were left out that have no names"""

    def leave_out(self, unit: str, reason: str, name: str, size: int = 0) -> None:
        """Count something that is left out. The same name counts once."""
        self.named.setdefault((unit, reason), {})[name] = size

    def leave_out_row(self, reason: str) -> None:
        """Count a row that is left out."""
        self.unnamed["row", reason] = self.unnamed.get(("row", reason), 0) + 1

    def report(self) -> CorpusReport:
        """The counts so far."""
        left_out = []
        for (unit, reason), sizes in self.named.items():
            names = tuple(sorted(sizes)[:NAMES_SHOWN])
            left_out.append(LeftOut(unit, reason, len(sizes), sum(sizes.values()), names))
        for (unit, reason), count in self.unnamed.items():
            left_out.append(LeftOut(unit, reason, count))
        left_out.sort(key=lambda each: (each.unit, each.reason))
        return CorpusReport(self.files, self.bytes, self.rows, self.revision, tuple(left_out))
