"""How many threads a run has: those that were given, however it is launched, or else the cores that it may use."""

import os
import subprocess
import sys
from math import inf

import pytest

from tests.conftest import ROOT
from tests.runs import LAUNCH, NO_GPU
from training.launcher import MARKS
from training.threads import VARIABLES, are_threads_given, cpu_quota

COUNT = """
import os
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, range(os.cpu_count()))
import torch
from training.threads import set_threads, usable_cores
set_threads()
print("threads", torch.get_num_threads(), "of", int(usable_cores()))
"""
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master-port=0")

# How a program is started, with which environment, and the threads of each process; None = its share of the cores.
WAYS = {
    "alone, OMP": ((sys.executable,), {"OMP_NUM_THREADS": "1"}, 1),
    "accelerate": (LAUNCH, {}, None),
    "accelerate, OMP": (LAUNCH, {"OMP_NUM_THREADS": "1"}, 1),
    "accelerate, flag": ((*LAUNCH, "--num-cpu-threads-per-process=1"), {}, 1),
    "torchrun": (TORCHRUN, {}, None),
    "torchrun, OMP": (TORCHRUN, {"OMP_NUM_THREADS": "2"}, 2),
}


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """What each way prints. All are started before the first is waited for."""
    script = tmp_path_factory.mktemp("threads") / "count.py"
    script.write_text(COUNT)
    plain = {name: value for name, value in os.environ.items() if name not in (*VARIABLES, "LOCAL_RANK")}
    plain |= NO_GPU | {"PYTHONPATH": str(ROOT)}
    started = {
        name: subprocess.Popen([*launcher, str(script)], env=plain | given, stdout=subprocess.PIPE, text=True)
        for name, (launcher, given, _) in WAYS.items()
    }
    return {name: process.communicate()[0] for name, process in started.items()}


@pytest.mark.parametrize("way", WAYS)
def test_threads_that_are_given_stay_and_others_are_shared(counted, way):
    launcher, _, threads = WAYS[way]
    processes = 2 if launcher is TORCHRUN else 1
    lines = [line.split() for line in counted[way].splitlines() if line.startswith("threads ")]
    assert len(lines) == processes
    for _, number, _, cores in lines:
        assert int(number) == (threads or max(1, int(cores) // processes))


@pytest.mark.parametrize("given", [{}, *({name: "1"} for name in VARIABLES)], ids=str)
def test_without_a_launcher_the_environment_tells(monkeypatch, given):
    for name in (*VARIABLES, *MARKS):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert are_threads_given() == bool(given)


class TestQuota:
    """Control groups as Linux lays them out in /sys/fs/cgroup and /proc/self/cgroup."""

    @pytest.fixture
    def quota(self, tmp_path):
        def read(own: str, **files: str) -> float:
            (tmp_path / "own").write_text(own)
            for name, content in files.items():
                path = tmp_path / "groups" / name.replace("__", "/").replace("_max", ".max").replace("cfs", ".cfs")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
            return cpu_quota(tmp_path / "groups", tmp_path / "own")

        return read

    def test_version_2(self, quota, tmp_path):
        assert quota("0::/a/b\n", a__b__cpu_max="150000 100000\n") == 1.5
        assert quota("0::/a/b\n", a__cpu_max="50000 100000\n") == 0.5  # of the group above
        assert quota("0::/a/b\n", a__cpu_max="max 100000\n") == 1.5
        assert quota("0::/other\n") == inf
        assert quota("0::/\n", cpu_max="400000 200000\n") == 2  # a container sees its own group as the root
        assert quota("0::/../..\n") == 2

    def test_version_1(self, quota):
        own = "3:memory:/m\n4:cpu,cpuacct:/docker/x:y\n0::/\n"
        assert quota(own) == inf
        assert quota(own, **{"cpu__docker__x:y__cpucfs_quota_us": "-1\n"}) == inf
        assert quota(own, **{"cpu__docker__x:y__cpucfs_period_us": "100000\n"}) == inf
        assert quota(own, **{"cpu__docker__x:y__cpucfs_quota_us": "250000\n"}) == 2.5
        root = {"cpu__cpucfs_quota_us": "100000\n", "cpu__cpucfs_period_us": "100000\n"}
        assert quota("4:cpu:/unseen\n", **root) == 1  # a container that cannot see the path of its group

    def test_without_control_groups(self, tmp_path):
        assert cpu_quota(tmp_path, tmp_path / "nothing") == inf

    @pytest.mark.parametrize("content", ["", "x y\n", "0 100000\n", "100000 0\n", "1 2 3\n", "-1 100000\n"])
    def test_what_is_no_quota(self, quota, content):
        assert quota("0::/\n", cpu_max=content) == inf
