import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from training.speed import keep_freed_memory

if {keep}:
    keep_freed_memory()


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


tables = [torch.zeros(1 << 20) for _ in range(16)]
del tables
before = faults()
tables = [torch.zeros(1 << 20) for _ in range(16)]
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="does nothing on other C libraries")
def test_freed_memory_is_used_again_without_page_faults():
    kept, left_alone = (
        int(subprocess.run((sys.executable, "-c", FAULTS.format(keep=keep)), capture_output=True, check=True).stdout)
        for keep in (True, False)
    )
    assert 8 * kept < left_alone  # pages, of which 64 MiB are 16,384, or 32 large ones
