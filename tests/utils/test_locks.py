import subprocess
import sys

from tests.conftest import ROOT
from utils.locks import holder_of, is_locked, release, try_lock

HOLD = """
import sys, time
from pathlib import Path
from utils.locks import try_lock
lock = try_lock(Path(sys.argv[1]))
print("held" if lock else "refused", flush=True)
time.sleep(1000)
"""


def test_a_lock_is_held_until_its_process_is_killed(tmp_path):
    path = tmp_path / "lock"
    line = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert try_lock(path) is None and is_locked(path)
        assert holder_of(path).startswith(f"process {other.pid} on ")
        other.kill()
        other.wait()
        lock = try_lock(path)
    assert lock is not None
    release(lock)
    assert sorted(tmp_path.iterdir()) == [path]  # nobody is named who holds it no more
    assert not is_locked(path)
    assert try_lock(path) is not None
