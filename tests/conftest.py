"""Settings for all tests: one thread, so that results do not depend on the machine, and no network."""

import os
import signal
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_SILENT"] = "true"

import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import HealthCheck, settings

import train as train_script
from tests.runs import NO_GPU

# A shell's background job ignores SIGINT, and nohup SIGHUP. The programs that are tested would ignore them, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
torch.set_num_threads(1)
worker = os.environ.get("PYTEST_XDIST_WORKER")
if worker and hasattr(os, "sched_setaffinity"):  # a core for each worker and the runs that it starts
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("tests")

ROOT = Path(__file__).parents[1]

# Files that take longest, by name. They begin first, so that no process waits at the end for another.
SLOWEST = ["survival", "replay", "parallel", "generate", "race", "transformer", "stress", "cache", "hour", "recipes"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return SLOWEST.index(name) if name in SLOWEST else len(SLOWEST)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def cache_of_these_tests(tmp_path_factory):
    """Nothing is read from the user's cache of corpora and compiled steps, or written to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def no_accelerator_is_left_behind():
    """Accelerate keeps one state in a process. The next test may need another precision."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    contenders = sys.modules.get("benchmarks.contenders")
    if contenders is not None:
        contenders.accelerator_for.cache_clear()


TINY = """
model: {dim: [16, 24], depth: 1, seq_len: 32, dim_head: 8, heads: 2, hierarchies: [1, 4], window_sizes: [8, null]}
data: {name: files}
train: {max_steps: 12, batch_size: 4, warmup_steps: 2, log_every: 3, validate_every: 6, validate_bytes: 640,
        sample_every: 0, sample_length: 16, checkpoint_every: 5, learning_rate: 0.01, mixed_precision: 'no'}
wandb: {mode: disabled}
"""


TEXT = "".join(f"{i} times {i} is {i * i}, and that is a fact worth repeating.\n" for i in range(400))


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """A folder with a small text and a tiny config for it, shared by all tests that train."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "text.txt").write_text(TEXT)
    config = TINY.replace("name: files", f"name: files, path: {folder / 'text.txt'}, cache_dir: {folder / 'cache'}")
    (folder / "tiny.yaml").write_text(config)
    return folder


@pytest.fixture
def command():
    """Run one of the project's programs as a user without a GPU would: command("train.py", …) -> CompletedProcess."""

    def run(
        program: str, *arguments: str, launcher: tuple[str, ...] = (), **environment
    ) -> subprocess.CompletedProcess:
        typed = [os.fsdecode(each) if isinstance(each, bytes) else str(each) for each in arguments]
        line = [*(launcher or (sys.executable,)), str(ROOT / program), *typed]
        environment = os.environ | NO_GPU | environment
        return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL)

    return run


@pytest.fixture
def train(workplace, command):
    def run(name, *arguments, **options):
        run_dir = workplace / name
        config = () if "--resume" in arguments else ("--config", workplace / "tiny.yaml")
        return run_dir, command("train.py", *config, "--run_dir", run_dir, *arguments, **options)

    return run


@pytest.fixture
def train_here(workplace, monkeypatch, capsys):
    """Train in this process: train_here(name, …) -> the lines that it prints. The run may end in SystemExit."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(name: str, *arguments: str) -> list[str]:
        config = () if {"--resume", "--config"} & set(arguments) else ("--config", str(workplace / "tiny.yaml"))
        capsys.readouterr()
        try:
            train_script.main([*config, "--run_dir", str(workplace / name), *arguments])
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def whole(workplace, train):
    """A finished run, trained once for all tests."""
    run_dir = workplace / "whole"
    if not run_dir.exists():
        _, done = train("whole", "--train.keep_checkpoints=9")
        assert done.returncode == 0, done.stderr
        (run_dir / "printed.txt").write_text(done.stdout)
    return run_dir
