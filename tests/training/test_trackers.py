"""Trackers: what a dashboard receives, read back from where it keeps it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import yaml
from wandb.proto.wandb_internal_pb2 import Record

from tests.conftest import ROOT
from tests.runs import NO_GPU, losses, metrics
from training.checkpoints import RunState
from training.config import Config, TrainConfig, load_config
from training.record import Change
from training.trackers import TRACKERS, Tracker, Trackers
from utils.errors import UserError

KEY = "0123456789abcdef" * 3
NO_NETWORK = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY, "WANDB_HTTP_TIMEOUT": "1"}
NO_PROXY = {"HTTPS_PROXY": "http://127.0.0.1:9", "WANDB_API_KEY": KEY, "WANDB_HTTP_TIMEOUT": "1"}


def records(file: Path) -> list[Record]:
    """The records of a .wandb file. It is a LevelDB log that starts after 7 bytes: blocks of 32 KiB, with chunks that
    have a header of 7 bytes (crc, length, type)."""
    content = file.read_bytes()
    found, partial = [], b""
    position = 7
    while position + 7 <= len(content):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        size = int.from_bytes(content[position + 4 : position + 6], "little")
        chunk_type = content[position + 6]
        partial += content[position + 7 : position + 7 + size]
        position += 7 + size
        if chunk_type in (1, 4):  # a whole record, or the last chunk of one
            found.append(Record.FromString(partial))
            partial = b""
    return found


def wandb_files(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))


def history(run_dir: Path) -> list[dict]:
    """The rows that a run logged, over all files of its resumes."""
    rows = []
    for file in wandb_files(run_dir):
        for record in records(file):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


@pytest.fixture(scope="module")
def watched(workplace):
    return workplace / "watched"


def test_an_offline_wandb_run_has_every_metric_sample_setting_and_model(watched, train):
    options = ("--wandb.mode=offline", "--wandb.log_model=true", "--train.max_steps=8", "--train.sample_every=3")
    loud = {"WANDB_SILENT": "false"}  # as users have it
    run_dir, done = train("watched", *options, "--model.next_latent_loss_weight=0.1", **loud)
    assert done.returncode == 0, done.stderr
    (file,) = wandb_files(run_dir)
    assert f"dashboard   wandb sync {file.parent}\n" in done.stdout
    assert "Run summary" not in done.stdout + done.stderr

    # every step, with the values of metrics.jsonl
    rows = [row for row in history(run_dir) if "train/loss" in row]
    assert [row["_step"] for row in rows] == list(range(1, 9))
    for row, line in zip(rows, metrics(run_dir), strict=True):
        assert {key: row[key] for key in line if key != "step"} == {k: v for k, v in line.items() if k != "step"}
    for key in ("levels/next_latent/1x", "levels/next_latent/4x", "levels/activation/4x"):
        assert key in rows[-1]
    for key in ("bytes", "seconds", "train/bits_per_byte", "train/gradient_norm", "train/learning_rate"):
        assert key in rows[-1]
    measured = ("train/update_ratio", "speed/bytes_per_second", "speed/mfu", "speed/peak_memory_gib", "speed/data_wait")
    assert all(key in rows[5] for key in measured)  # step 6, a multiple of log_every

    tables = sorted((file.parent / "files" / "media" / "table").glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
    texts = [row for table in tables for row in json.loads(table.read_text())["data"]]
    assert [step for step, _ in texts] == [3, 6, 8] and all("│" in text for _, text in texts)

    found = records(file)
    updates = [item for r in found for config in (r.run.config, r.config) for item in config.update]
    settings = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}
    assert settings["model"]["dim"] == [16, 24] and settings["train"]["max_steps"] == 8
    assert settings["code_version"] not in ("", "unknown") or not (ROOT / ".git").exists()
    artifacts = [r for r in found if "artifact" in str(r.WhichOneof("record_type")) or "log_artifact" in str(r)[:200]]
    assert any("model-" in str(artifact) and "model.safetensors" in str(artifact) for artifact in artifacts)


def test_wandb_draws_over_bytes_and_seconds_and_keeps_the_best_validation(watched):
    defined = {}
    for record in records(wandb_files(watched)[0]):
        if record.WhichOneof("record_type") == "metric":
            defined[record.metric.name or record.metric.glob_name] = record.metric
    assert {"bytes", "seconds"} <= defined.keys()
    for group, axis in {"train": "bytes", "levels": "bytes", "validation": "bytes", "speed": "seconds"}.items():
        assert defined[f"{group}/*"].step_metric == axis
    best = defined["validation/bits_per_byte"]
    assert best.step_metric == "bytes" and best.summary.min

    scores = [line["validation/bits_per_byte"] for line in metrics(watched) if "validation/bits_per_byte" in line]
    updates = [item for record in records(wandb_files(watched)[0]) for item in record.summary.update]
    summaries = [json.loads(item.value_json) for item in updates if "validation/bits_per_byte" in item.nested_key]
    assert summaries[-1] == {"min": min(scores)}


def test_a_resume_continues_the_same_dashboard(watched, train):
    _, done = train("watched", "--resume", "--train.max_steps=10", "--train.learning_rate=0.005")
    assert done.returncode == 0, done.stderr
    updates = [
        item for r in records(wandb_files(watched)[-1]) for part in (r.run.config, r.config) for item in part.update
    ]
    (changes,) = [json.loads(item.value_json) for item in updates if item.key == "changes"]
    assert {"step": 8, "setting": "train.learning_rate", "old": 0.01, "new": 0.005} in changes
    assert len({p.name.rsplit("-", 1)[1] for p in (watched / "wandb").glob("offline-run-*")}) == 1
    assert len(losses(watched)) == 10
    assert [row["_step"] for row in history(watched) if "train/loss" in row] == list(range(1, 11))


def test_a_run_killed_right_after_its_start_continues_the_same_dashboard(workplace, train):
    run_dir, done = train("early", "--wandb.mode=offline", "--train.max_steps=4")
    assert done.returncode == 0, done.stderr
    for checkpoint in sorted((run_dir / "checkpoints").iterdir())[1:]:
        for file in checkpoint.iterdir():
            file.unlink()
    _, done = train("early", "--resume")
    assert done.returncode == 0, done.stderr
    assert len({p.name.rsplit("-", 1)[1] for p in (run_dir / "wandb").glob("offline-run-*")}) == 1


NEW_TRACKER = """
import json, sys
from training.trackers import TRACKERS, Tracker
import train

class Notebook(Tracker):
    location = "a notebook"

    def note(self, *entry):
        with open(self.config.folder / "notebook.jsonl", "a") as file:
            file.write(json.dumps(entry) + "\\n")

    def start(self, run_id):
        self.note("start", run_id)
        return run_id or "first"

    def log(self, lines):
        self.note("log", [{"step": line.step, **line.metrics} for line in lines])

    def log_sample(self, step, text):
        self.note("sample", step, text)

    def log_model(self, folder, step, bits_per_byte):
        self.note("model", str(folder), step, bits_per_byte)

    def finish(self):
        self.note("finish")

TRACKERS["notebook"] = Notebook
train.main(sys.argv[1:])
"""


def test_a_new_tracker_is_a_class_and_a_line_and_receives_everything(workplace):
    run_dir = workplace / "noted"
    command = [sys.executable, "-c", NEW_TRACKER, f"--run_dir={run_dir}"]
    new = ["--config", str(workplace / "tiny.yaml"), "--train.trackers=[notebook]", "--train.sample_every=5"]
    for options in (new, ["--resume", "--train.max_steps=14"]):
        environment = os.environ | NO_GPU | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "dashboard   a notebook\n" in done.stdout

    entries = [json.loads(line) for line in (run_dir / "notebook.jsonl").read_text().splitlines()]
    by_kind = {kind: [rest for first, *rest in entries if first == kind] for kind, *_ in entries}
    assert by_kind["start"] == [[None], ["first"]] and len(by_kind["finish"]) == 2
    assert [line for (lines,) in by_kind["log"] for line in lines] == metrics(run_dir)  # each step once
    for step, text in by_kind["sample"]:
        assert (run_dir / "samples" / f"step-{step:08d}.txt").read_text() == text
    assert [step for step, _ in by_kind["sample"]] == [5, 10, 12, 14]
    scores = {line["step"]: line["validation/bits_per_byte"] for line in metrics(run_dir) if line["step"] in (6, 12)}
    best = [[str(run_dir / "model"), step, score] for step, score in scores.items()]
    assert by_kind["model"][:2] == best and scores[12] < scores[6]


def test_steps_that_a_resumed_run_repeats_are_logged_once(tmp_path):
    config = Config(run_dir=str(tmp_path), train=TrainConfig(trackers=()))
    for steps in (range(1, 4), range(2, 6)):
        trackers = Trackers(config, is_main_process=True)
        trackers.start(RunState())
        for step in steps:
            trackers.log(step, {"train/loss": float("nan")})
            trackers.log(step, {"seconds": 1.0})
        trackers.finish()
    assert metrics(tmp_path) == [{"step": step, "train/loss": None, "seconds": 1.0} for step in range(1, 6)]


def test_other_processes_have_no_trackers(tmp_path):
    trackers = Trackers(Config(run_dir=str(tmp_path)), is_main_process=False)
    trackers.start(RunState())
    trackers.log(1, {"train/loss": 1.0})
    trackers.finish()
    assert trackers.locations == [] and not list(tmp_path.iterdir())


def test_a_tracker_that_does_not_exist_is_named_with_those_that_do(tmp_path):
    config = Config(run_dir=str(tmp_path), train=TrainConfig(trackers=("wandb", "abacus")))
    with pytest.raises(UserError, match=r"train.trackers: got \[wandb, abacus\], allowed: .*trackio"):
        Trackers(config, is_main_process=True)
    assert {"metrics_file", "wandb", "trackio"} <= TRACKERS.keys()


def test_trackio_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("training.trackers.trackio.find_spec", lambda name: None)
    config = Config(run_dir=str(tmp_path), train=TrainConfig(trackers=("trackio",)))
    with pytest.raises(UserError, match="trackio, which is not installed: pip install trackio"):
        Trackers(config, is_main_process=True)


READ_TRACKIO = """
import json
from trackio.sqlite_storage import SQLiteStorage
(name,) = SQLiteStorage.get_runs("shelf")
config = SQLiteStorage.get_run_config("shelf", name)
print(json.dumps([name, config["train"]["max_steps"], SQLiteStorage.get_logs("shelf", name)], default=str))
"""


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is optional")
def test_trackio_receives_every_step_over_a_resume(workplace, train, tmp_path):
    local = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    options = ("--train.trackers=[trackio]", "--trackio.project=shelf", "--train.max_steps=6")
    run_dir, done = train("trackio", *options, **local)
    assert done.returncode == 0, done.stderr
    assert "dashboard   trackio show --project shelf\n" in done.stdout and "Trackio project" not in done.stdout
    _, done = train("trackio", "--resume", "--train.max_steps=8", **local)
    assert done.returncode == 0, done.stderr

    read = subprocess.run([sys.executable, "-c", READ_TRACKIO], env=os.environ | local, capture_output=True, text=True)
    assert read.returncode == 0, read.stderr
    name, max_steps, rows = json.loads(read.stdout.splitlines()[-1])
    assert name.startswith("trackio-") and max_steps in (6, 8)
    logged = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert logged == {line["step"]: pytest.approx(line["train/loss"]) for line in metrics(run_dir)}


def test_the_sweep_config_has_settings_and_a_metric_that_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    sweep = yaml.safe_load((ROOT / "configs" / "sweep.yaml").read_text())
    assert sweep["metric"]["name"] == "validation/bits_per_byte"
    values = {name: options["values"] for name, options in sweep["parameters"].items()}
    for choice in product(*values.values()):
        flags = [f"--{name}={value}" for name, value in zip(values, choice, strict=True)]
        config = load_config(["--config", "configs/quickstart.yaml", *flags])
        assert config.run_dir == "runs/quickstart-abc123"
        assert config.train.learning_rate == choice[0]


def test_online_without_a_key_is_one_line_and_leaves_nothing_behind(tmp_path):
    command = [sys.executable, "train.py", "--config", "configs/quickstart.yaml", f"--run_dir={tmp_path / 'run'}"]
    keyless = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_CONFIG_DIR": str(tmp_path)}
    done = subprocess.run(
        [*command, "--wandb.mode=online"], cwd=ROOT, env=keyless | home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    message = (
        "error: wandb.mode: got online, allowed: auto or offline, as there is no API key; `wandb login` stores one\n"
    )
    assert done.stderr.endswith(message) and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


CHOOSE_MODE = """
import os, sys
from training.trackers.wandb import choose_mode
from utils.errors import UserError
try:
    print(choose_mode(sys.argv[1]), flush=True)
except UserError as error:
    print(error, flush=True)
os._exit(0)  # without waiting for wandb
"""


@pytest.fixture
def python(tmp_path):
    """Run a script in a process of its own, as wandb leaves threads and processes behind: python(script, …) -> what it
    did. wandb knows of no key, and of no variables but those that are given."""

    def run(script: str, *arguments: object, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        no_key = {"NETRC": str(tmp_path / "netrc"), "WANDB_CONFIG_DIR": str(tmp_path)}
        return subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            cwd=ROOT,
            env=others | NO_GPU | no_key | variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )

    return run


@pytest.mark.parametrize(
    ("variables", "mode", "warning"),
    [
        ({}, "offline", ""),
        ({"WANDB_MODE": "dryrun"}, "offline", ""),
        ({"WANDB_MODE": "offline", **NO_NETWORK}, "offline", ""),
        ({"WANDB_MODE": "disabled"}, "disabled", ""),
        ({"WANDB_DISABLED": "true", **NO_NETWORK}, "disabled", ""),
        ({"WANDB_DISABLED": "1"}, "disabled", ""),
        ({"WANDB_DISABLED": "false", "WANDB_MODE": "offline"}, "offline", ""),
        (NO_NETWORK, "offline", "Failed to authenticate with http://127.0.0.1:9"),
        ({"WANDB_API_KEY": "short"}, "offline", "WANDB_API_KEY invalid: API key must have 40+ characters"),
        ({"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "nonsense"}, "offline", "Input should be a valid URL"),
        (NO_PROXY, "offline", "Failed to authenticate with https://"),
        ({"WANDB_MODE": "bogus"}, "offline", "WANDB_MODE: got bogus, allowed: online, offline or disabled"),
        ({"WANDB_MODE": "shared"}, "offline", "WANDB_MODE: got shared, allowed: online, offline or disabled"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_auto_takes_the_mode_that_works_and_says_why_in_a_line(python, variables, mode, warning):
    done = python(CHOOSE_MODE, "auto", variables=variables)
    assert done.stdout == f"{mode}\n"
    lines = done.stderr.splitlines()
    assert len(lines) == (1 if warning else 0)
    assert all(line.startswith("warning: wandb goes offline: ") and warning in line for line in lines)


@pytest.mark.parametrize("variables", [NO_NETWORK, {"WANDB_API_KEY": "short"}, {}, {"WANDB_API_KEY": " "}])
@pytest.mark.parametrize(
    ("mode", "other", "name"), [("online", "offline", "wandb.mode"), ("auto", "run", "WANDB_MODE")]
)
def test_online_that_cannot_work_is_one_line(python, variables, mode, other, name):
    done = python(CHOOSE_MODE, mode, variables=variables | {"WANDB_MODE": other})
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{name}: got online, allowed: auto or offline, as ")


def test_a_key_without_a_network_trains_offline(train):
    run_dir, done = train("keyed", "--wandb.mode=auto", "--train.max_steps=3", **NO_NETWORK)
    assert done.returncode == 0, done.stderr
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("warning: wandb goes offline: Failed to authenticate with http://127.0.0.1:9")
    (file,) = wandb_files(run_dir)
    assert f"dashboard   wandb sync {file.parent}\n" in done.stdout
    assert [row["_step"] for row in history(run_dir) if "train/loss" in row] == [1, 2, 3]


OFFLINE_RUN = """
import sys
from pathlib import Path
import psutil
from training.checkpoints import RunState
from training.config import Config, TrainConfig, WandbConfig
from training.trackers import Trackers

folder = Path(sys.argv[1])
config = Config(run_dir=str(folder), train=TrainConfig(trackers=("wandb",)), wandb=WandbConfig(mode="offline"))
trackers, state = Trackers(config, is_main_process=True), RunState()
trackers.start(state)
"""
WANDB_DIES = """
for service in psutil.Process().children(recursive=True):
    if "wandb" in service.name():
        service.kill()
        service.wait()
for step in range(1, 30):
    trackers.log(step, {"train/loss": 1.0})
    trackers.flush()
trackers.log_sample(29, "a sample")
trackers.log_model(folder, 29, 1.0)
trackers.finish()
"""
WANDB_CANNOT_START = """
trackers.log(1, {"train/loss": 1.0})
trackers.finish()
print(state.tracker_ids, trackers.locations)
"""


def test_a_run_goes_on_when_wandb_dies(python, tmp_path):
    done = python(OFFLINE_RUN + WANDB_DIES, tmp_path, variables={})
    lines = [line for line in done.stderr.splitlines() if "socket.send" not in line and not line.startswith("wandb: ")]
    assert len(lines) == 1 and lines[0].startswith("warning: wandb failed, and the run goes on without it: Connection")
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, 30))


@pytest.mark.parametrize("variables", [{"WANDB_BASE_URL": "nonsense"}, {}])
def test_a_run_goes_on_when_wandb_cannot_start(python, tmp_path, variables):
    if not variables:
        (tmp_path / "wandb").write_text("in the way of its folder")
    done = python(OFFLINE_RUN + WANDB_CANNOT_START, tmp_path, variables=variables)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("wandb: ")]
    assert len(lines) == 1 and lines[0].startswith("warning: wandb failed, and the run goes on without it: ")
    assert done.stdout == "{} []\n" and len(metrics(tmp_path)) == 1


@pytest.mark.parametrize("method", ["start", "log_changes", "log", "log_sample", "log_model", "finish"])
def test_a_tracker_that_fails_is_left_alone(monkeypatch, tmp_path, capsys, method):
    calls = []

    class Broken(Tracker):
        location = "a board"

        def called(self, name):
            calls.append(name)
            if name == method:
                raise RuntimeError("out of\nchalk\x1b[31m")

        def start(self, run_id):
            self.called("start")

        def log_changes(self, changes):
            self.called("log_changes")

        def log(self, lines):
            self.called("log")

        def log_sample(self, step, text):
            self.called("log_sample")

        def log_model(self, folder, step, bits_per_byte):
            self.called("log_model")

        def finish(self):
            self.called("finish")

    monkeypatch.setitem(TRACKERS, "board", Broken)
    trackers = Trackers(Config(run_dir=str(tmp_path), train=TrainConfig(trackers=("board",))), is_main_process=True)
    trackers.start(RunState())
    trackers.log_changes([Change(0, "train.seed", 1, 2)])
    trackers.log(1, {"train/loss": 1.0})
    trackers.log_sample(1, "a sample")
    trackers.log_model(tmp_path, 1, 2.0)
    trackers.finish()
    order = ["start", "log_changes", "log", "log_sample", "log_model", "finish"]
    assert calls == [*order[: order.index(method) + 1], "finish"]  # closed in any case
    expected = "warning: board failed, and the run goes on without it: RuntimeError: out of chalk·[31m\n"
    assert capsys.readouterr().err == expected and len(metrics(tmp_path)) == 1


def test_metrics_that_cannot_be_written_end_the_run(tmp_path):
    trackers = Trackers(Config(run_dir=str(tmp_path), train=TrainConfig(trackers=())), is_main_process=True)
    trackers.start(RunState())
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    trackers.log(1, {"train/loss": 1.0})
    with pytest.raises(OSError, match=r"cannot write .*metrics.jsonl: Is a directory"):
        trackers.flush()
