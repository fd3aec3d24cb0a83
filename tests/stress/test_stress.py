"""Each stress program runs, on the fewest cases; see the head of each for how to run it in earnest."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.runs import NO_GPU
from tests.stress import full_disk


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("kills", ["--kills", "1", "--races", "0", "--steps", "20"]),
        ("full_disk", ["--only", "corpus", "--rounds", "1"]),
        ("fuzz_readers", ["--cases", "10"]),
        ("fuzz_command_line", ["--cases", "10"]),
    ],
)
def test_a_program_finds_no_fault(program, arguments):
    if program == "full_disk" and not full_disk.can_mount():
        pytest.skip("may not mount a file system")
    line = [sys.executable, "-m", f"tests.stress.{program}", *arguments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=os.environ | NO_GPU)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 failed, in " in done.stdout.splitlines()[-1]
