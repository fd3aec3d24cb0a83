"""What a dashboard is sent, read back from the file that an offline run leaves for `wandb sync`."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import yaml
from wandb.proto.wandb_internal_pb2 import Record

from tests.conftest import ROOT
from tests.runs import losses, metrics
from training.config import load_config


def records(file: Path) -> list[Record]:
    """Of a .wandb file: a log in LevelDB's format (blocks of 32 KiB, chunks with crc, length and type), 7 bytes in."""
    content, found, whole, at = file.read_bytes(), [], b"", 7
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last chunk of one
            found.append(Record.FromString(whole))
            whole = b""
    return found


def history(run_dir: Path) -> list[dict]:
    rows = []
    for file in sorted((run_dir / "wandb").glob("offline-run-*/*.wandb")):
        for record in records(file):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


@pytest.fixture(scope="module")
def watched(workplace):
    return workplace / "watched"


def test_an_offline_run_holds_all_that_a_dashboard_shows(watched, train):
    options = ("--wandb.mode=offline", "--wandb.log_model=true", "--train.max_steps=8", "--train.sample_every=3")
    loud = {"WANDB_SILENT": "false"}  # as users have it
    run_dir, done = train("watched", *options, "--model.next_latent_loss_weight=0.1", **loud)
    assert done.returncode == 0, done.stderr
    (file,) = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    assert f"dashboard   wandb sync {file.parent}\n" in done.stdout
    assert "Run summary" not in done.stdout + done.stderr

    rows = [row for row in history(run_dir) if "train/loss" in row]
    assert [row["_step"] for row in rows] == list(range(1, 9))
    for row, line in zip(rows, metrics(run_dir), strict=True):
        assert {key: row[key] for key in line if key != "step"} == {k: v for k, v in line.items() if k != "step"}
    for key in (
        "levels/next_latent/1x",
        "levels/next_latent/4x",
        "levels/activation/4x",
        "train/gradient_norm",
        "train/learning_rate",
    ):
        assert key in rows[-1]
    for key in (
        "train/update_ratio",
        "speed/bytes_per_second",
        "speed/mfu",
        "speed/peak_memory_gib",
        "speed/data_wait",
    ):
        assert key in rows[5]  # step 6, a multiple of log_every

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


def test_a_resume_goes_on_with_the_same_dashboard(watched, train):
    _, done = train("watched", "--resume", "--train.max_steps=10")
    assert done.returncode == 0, done.stderr
    assert len({p.name.rsplit("-", 1)[1] for p in (watched / "wandb").glob("offline-run-*")}) == 1
    assert len(losses(watched)) == 10
    assert [row["_step"] for row in history(watched) if "train/loss" in row] == list(range(1, 11))


def test_a_run_that_is_killed_at_once_goes_on_with_the_same_dashboard(workplace, train):
    run_dir, done = train("early", "--wandb.mode=offline", "--train.max_steps=4")
    assert done.returncode == 0, done.stderr
    for checkpoint in sorted((run_dir / "checkpoints").iterdir())[1:]:
        for file in checkpoint.iterdir():
            file.unlink()
    _, done = train("early", "--resume")
    assert done.returncode == 0, done.stderr
    assert len({p.name.rsplit("-", 1)[1] for p in (run_dir / "wandb").glob("offline-run-*")}) == 1


def test_the_sweep_names_settings_that_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    sweep = yaml.safe_load((ROOT / "configs" / "sweep.yaml").read_text())
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
    message = "error: wandb.mode: got online without a key, allowed: auto, offline, or after `wandb login`\n"
    assert done.stderr.endswith(message) and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
