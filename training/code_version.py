"""Which code a run was made with."""

import subprocess
from pathlib import Path


def code_version() -> str:
    """The commit of this code, with a + if files changed since; "unknown" outside a git checkout."""
    folder = Path(__file__).parents[1]
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return "unknown"
    return done.stdout.strip()
