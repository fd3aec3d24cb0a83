"""What programs print: text of others in a form that cannot do harm, on streams that may break."""

import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn, TextIO, cast
from unicodedata import category

from tqdm import tqdm

# Cc: control characters, of which ESC begins the commands of a terminal. Cf: invisible ones, of which some turn the
# direction of writing. Cs: halves of a pair, which stand for bytes of a file name that are no UTF-8. Zl, Zp: line ends.
UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# In Cf as well, but part of how Persian, the scripts of India and composed emoji are written.
JOINERS = "\u200c\u200d"


def harmless(text: str) -> str:
    """Replace each character that is not printable by ·, except tab and newline."""
    return "".join("·" if category(c) in UNPRINTABLE and c not in JOINERS + "\t\n" else c for c in text)


def one_line(text: object) -> str:
    """A text made harmless, on one line: every run of white space becomes a space."""
    return harmless(" ".join(str(text).split()))


def coloured(text: str, colour: int, stream: TextIO) -> str:
    """Text in a colour, given as its SGR code, if the stream is a terminal and NO_COLOR is not set."""
    if not stream.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[1;{colour}m{text}\033[0m"


def say(*lines: object, stream: TextIO | None = None) -> None:
    """Print each line at once, made harmless, above a progress bar if there is one. A newline within becomes ·."""
    stream = stream or sys.stdout
    for line in lines:
        tqdm.write(harmless(str(line)).replace("\n", "·"), file=stream)
    stream.flush()


def warn(message: object) -> None:
    """Print a warning on stderr, in one line."""
    tqdm.write(f"{coloured('warning:', 33, sys.stderr)} {one_line(message)}", file=sys.stderr)


def print_error(message: object) -> None:
    """Print an error on stderr, in one line."""
    tqdm.write(f"{coloured('error:', 31, sys.stderr)} {one_line(message)}", file=sys.stderr)


class Output:
    """A standard stream whose other end may go away: a closed pipe or terminal, or a full disk behind it.

    `when_lost` is called with the error, once. If it returns, all that is written from then on goes nowhere.
    """

    def __init__(self, stream: TextIO, when_lost: Callable[[OSError], None]):
        self.stream = stream
        self.when_lost = when_lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self.lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self.lose(error)

    def lose(self, error: OSError) -> None:
        """Let the stream end in the null device, also for what it has not written yet."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.stream.fileno())
        os.close(null)
        self.when_lost(error)


def end_without_output(error: OSError) -> NoReturn:
    """End the program because nobody reads on: silently after a closed pipe, as after `| head`."""
    if isinstance(error, BrokenPipeError):
        sys.exit(141)  # what a shell reports for a program that SIGPIPE ended
    print_error(f"the output cannot be written ({error.strerror or error})")
    sys.exit(1)


def go_on_without_output(error: OSError) -> None:
    """Say that nobody reads on, if anybody reads that."""
    warn(f"the output cannot be written any more ({error.strerror or error}); the program goes on")


def run_program(main: Callable[[], object], when_output_is_lost: Callable[[OSError], None] = end_without_output):
    """Run a program to its end. Ctrl-C ends it with exit code 130, without a traceback.

    Characters that the encoding of the output does not have are written as their codes, such as \\u2502. A warning of a
    library is one line.
    """
    sys.stdout = standard_stream(sys.stdout, when_output_is_lost)
    sys.stderr = standard_stream(sys.stderr, when_output_is_lost)
    warnings.formatwarning = format_warning  # ty: ignore[invalid-assignment]
    try:
        main()
        code: Any = 0
    except KeyboardInterrupt:
        code = 130
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()  # at the exit of Python it is too late to handle an error
    sys.exit(code)


def standard_stream(stream: TextIO | None, when_lost: Callable[[OSError], None]) -> TextIO:
    """stdout or stderr as an `Output`. It goes nowhere if the program was started without it."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return cast(TextIO, Output(stream, when_lost))


def format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of a library as one line, with where it comes from."""
    return one_line(f"{filename}:{lineno}: {category.__name__}: {message}") + "\n"
