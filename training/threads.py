"""How many threads PyTorch computes with on a CPU: as many as the user says, or else as there are cores for it."""

import os
from math import inf
from pathlib import Path, PurePosixPath

import psutil
import torch

from training.launcher import find_launcher, is_launched

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
FLAG = "--num_cpu_threads_per_process"  # a flag of `accelerate launch`


def set_threads() -> None:
    """Leave PyTorch the number of threads that the user gave. Else divide the cores among the processes here."""
    if are_threads_given():
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(max(1, int(usable_cores()) // processes))


def are_threads_given() -> bool:
    """Whether the user gave a number of threads, which PyTorch has read at its import.

    Without a launcher the environment tells. `accelerate launch` and `torchrun` set OMP_NUM_THREADS themselves, to 1 or
    the number of cores, when it is not given. So the environment that the launcher was started with tells, and its
    command line.
    """
    if not is_launched():
        return any(name in os.environ for name in VARIABLES)
    try:
        launcher = find_launcher()
        if launcher is None:
            return False
        flags = [word.partition("=")[0].replace("-", "_") for word in launcher.cmdline()]
        return FLAG.replace("-", "_") in flags or any(name in launcher.environ() for name in VARIABLES)
    except psutil.Error:  # it has ended, or belongs to somebody else
        return False


def usable_cores() -> float:
    """Cores that this process may use: those of the machine, its affinity and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, cpu_quota())


def cpu_quota(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """CPUs that the control groups of this process grant it, version 1 or 2; infinite if they set no limit.

    Args:
        groups: where control groups are mounted.
        own: the groups of this process, as lines of "ID:CONTROLLERS:PATH". Version 2 has no controllers there.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return inf
    quotas = [inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        group = PurePosixPath(path.lstrip("/"))
        for folder in (group, *group.parents):  # a limit holds for all groups below; a container may see the root only
            if controllers == "":
                quotas.append(quota_of(groups / folder, "cpu.max"))
            elif "cpu" in controllers.split(","):
                quotas.append(quota_of(groups / "cpu" / folder, "cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return min(quotas)


def quota_of(folder: Path, *files: str) -> float:
    """CPUs that the files of a group grant: microseconds of all CPUs ("max" or -1 for no limit), and of the period."""
    try:
        words = [word for file in files for word in (folder / file).read_text().split()]
        quota, period = (float(word) for word in words)
    except (OSError, ValueError):  # no such group or file, or "max"
        return inf
    return quota / period if quota > 0 and period > 0 else inf
