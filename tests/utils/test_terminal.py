"""What is printed: text of others cannot do harm, and streams that break end a program quietly or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from utils.terminal import coloured, harmless, one_line, say, warn

ANY_TEXT = st.text(st.characters())  # with control characters and halves of surrogate pairs


@given(ANY_TEXT)
def test_only_printable_characters_are_left_and_each_is_in_its_place(text):
    shown = harmless(text)
    for before, after in zip(text, shown, strict=True):
        printable = category(before) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or before in "\t\n\u200c\u200d"
        assert after == (before if printable else "·")


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[2J",  # clears a terminal
        "\x9b2J",  # the same in one character
        "\r",  # returns to the start of the line
        "\u202e",  # from here on, right to left
        "\u2066",
        "\u200f",
        "\u200b",  # has no width
        "\ufeff",
        "\U000e0041",  # an invisible A
        "\u2028",  # the next line
        "\udcff",  # a byte of a file name
    ],
    ids=ascii,
)
def test_harm_becomes_a_dot(text):
    assert harmless(f"a{text}b").replace(text[1:], "") == "a·b"


def test_emoji_and_persian_stay_as_they_are():
    for text in ("👩\u200d🚀 👍🏽 🏳️\u200d🌈", "می\u200cخواهم", "naïve Ω 你好 ①"):
        assert harmless(text) == text


@given(ANY_TEXT)
def test_one_line_is_one_line(text):
    assert len(f"a{one_line(text)}b".splitlines()) == 1


@given(lines=st.lists(ANY_TEXT, max_size=3))
def test_every_argument_is_a_line(lines, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "said"
    with path.open("w", encoding="utf-8") as stream:
        say(*lines, stream=stream)
    assert path.read_bytes().count(b"\n") == len(lines)


def test_a_warning_is_one_harmless_line(capsys):
    warn(ValueError("two\nlines\x1b[31m"))
    assert capsys.readouterr().err == "warning: two lines·[31m\n"


def test_colours_are_for_terminals_only_and_no_color_turns_them_off(monkeypatch, tmp_path):
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, end = os.openpty()
    with open(end, "w") as screen, open(tmp_path / "file", "w") as file:
        assert coloured("error:", 31, screen) == "\033[1;31merror:\033[0m"
        assert coloured("error:", 31, file) == "error:"
        monkeypatch.setenv("NO_COLOR", "1")
        assert coloured("error:", 31, screen) == "error:"
    os.close(terminal)


PROGRAM = """
import os, signal, sys, time, warnings
from utils.terminal import end_without_output, go_on_without_output, run_program, say, warn

def count():
    for number in range(20_000):
        print(number)

def count_and_save():
    count()
    say("counted")
    open("saved", "w").write("all of it")

def print_a_line():
    print("a line")

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

def write_odd():
    say("├ naïve")
    print("你", "\\udcff")
    warnings.warn("two\\nlines\\x1b[31m")

def fail():
    sys.exit(3)

def bug():
    raise ValueError("a bug")

def nothing():
    pass

run_program(globals()[sys.argv[1]], globals()[sys.argv[2]])
"""


@pytest.fixture
def run(tmp_path):
    """Run one of the functions of PROGRAM as a program: run("count") -> CompletedProcess."""

    def run_in_shell(main: str, when_lost="end_without_output", shell='"$@"', pass_fds=(), **environment):
        (tmp_path / "program.py").write_text(PROGRAM)
        line = ["bash", "-c", f"set -o pipefail; {shell}", "bash", sys.executable, "program.py", main, when_lost]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, pass_fds=pass_fds)

    return run_in_shell


@pytest.mark.parametrize("buffering", ["", "1"])
def test_a_closed_pipe_ends_a_program_silently(run, buffering):
    done = run("count", shell='"$@" | head -n 2', PYTHONUNBUFFERED=buffering)
    assert (done.returncode, done.stdout, done.stderr) == (141, b"0\n1\n", b"")


def test_a_pipe_that_is_closed_when_the_program_ends_is_silent_too(run):
    """A short text waits in a buffer until the end."""
    read, write = os.pipe()
    os.close(read)
    done = run("print_a_line", shell=f'"$@" >&{write}', pass_fds=(write,))
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_program_that_saves_its_work_goes_on_without_output(run, tmp_path):
    done = run("count_and_save", "go_on_without_output", '"$@" | head -n 1')
    assert (done.returncode, done.stdout) == (0, b"0\n")
    assert (tmp_path / "saved").read_text() == "all of it"
    assert done.stderr == b"warning: the output cannot be written any more (Broken pipe); the program goes on\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_the_output(run, tmp_path):
    done = run("count", shell='"$@" > /dev/full')
    assert done.returncode == 1
    assert done.stderr == b"error: the output cannot be written (No space left on device)\n"
    done = run("count_and_save", "go_on_without_output", '"$@" &> /dev/full')
    assert done.returncode == 0 and (tmp_path / "saved").exists()


def test_a_program_may_be_started_without_any_output(run, tmp_path):
    done = run("count_and_save", shell='"$@" >&- 2>&-')
    assert done.returncode == 0 and (tmp_path / "saved").exists()


def test_an_interrupt_has_an_exit_code_and_no_traceback(run):
    done = run("interrupt")
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, b"", b"")


def test_exit_codes_and_bugs_stay(run):
    assert run("nothing").returncode == 0
    assert run("fail").returncode == 3
    done = run("bug")
    assert done.returncode == 1 and b"Traceback" in done.stderr and done.stderr.endswith(b"ValueError: a bug\n")


@pytest.mark.parametrize(
    ("encoding", "line"),
    [("utf-8", "├ naïve".encode()), ("latin-1", b"\\u251c na\xefve"), ("ascii", b"\\u251c na\\xefve")],
)
def test_characters_that_the_output_does_not_have_are_written_as_codes(run, encoding, line):
    done = run("write_odd", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == line and second.endswith(b"\\udcff")
    (warning,) = done.stderr.splitlines()
    assert b"UserWarning: two lines" in warning and b"\x1b" not in done.stderr
