"""What programs write where others read it, as bytes: text of others, encodings, pipes that close, Ctrl-C."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml

import evaluate
import generate
import plot
import train
from tests.conftest import ROOT
from tests.runs import NO_GPU, losses
from utils.terminal import end_without_output, run_program

EVIL = "e\x1b[31mvil\r\n<script>alert(1)<|>`x` \u202efed.txt"  # as a file name
RAW = [b"\x1b", b"\r", "\u202e".encode(), b"<script>alert"]


@pytest.fixture
def run(monkeypatch, capfd):
    """Run a program in this process, with an encoding of its output: run(plot, [...], "ascii") -> code, out, err."""

    def run_main(program, arguments: list, encoding: str = "utf-8") -> tuple[int, bytes, bytes]:
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        monkeypatch.setattr("warnings.formatwarning", None)
        threads = torch.get_num_threads()
        try:
            with pytest.raises(SystemExit) as ended:
                run_program(lambda: program.main([str(each) for each in arguments]), end_without_output)
        finally:
            torch.set_num_threads(threads)
        out, err = (stream.buffer.getvalue() for stream in streams)
        return ended.value.code, out, err

    return run_main


@pytest.fixture(scope="module")
def hostile(workplace, tmp_path_factory):
    """A run whose corpus and folder have such names, trained with an output that has ASCII only."""
    folder = tmp_path_factory.mktemp("hostile")
    corpus = folder / EVIL.replace("/", "")
    shutil.copy(workplace / "text.txt", corpus)
    run_dir = folder / "run <script>alert(2)\x1b[0m"
    line = [sys.executable, "train.py", "--config", str(workplace / "tiny.yaml"), f"--run_dir={run_dir}"]
    line += [f"--data.path={folder}/e*", "--train.max_steps=4", "--train.sample_every=2"]
    environment = os.environ | NO_GPU | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True)
    return run_dir, corpus, done


def test_training_goes_on_where_the_output_has_no_such_characters(hostile):
    run_dir, _, done = hostile
    assert done.returncode == 0, done.stderr
    assert done.stderr == b"" and done.stdout.isascii()
    assert len(losses(run_dir)) == 4
    said = done.stdout.decode()
    assert "--- sample at step 2 ---" in said and "\\u2502" in said  # the bar between prompt and sample
    assert "│" in (run_dir / "samples" / "step-00000002.txt").read_text(encoding="utf-8")
    assert "4 \\xd7 32 bytes" in said


def test_names_of_files_and_folders_do_no_harm(hostile):
    run_dir, _, done = hostile
    assert not [raw for raw in RAW[:3] if raw in done.stdout + done.stderr]
    card = (run_dir / "model" / "README.md").read_bytes()
    assert not [raw for raw in RAW[:3] if raw in card]
    assert b"<script>" not in card.partition(b"```yaml")[0]


def test_a_page_about_such_a_file_does_no_harm(hostile, run, tmp_path):
    run_dir, corpus, _ = hostile
    small = corpus.with_name(f"s{corpus.name}")
    small.write_bytes(corpus.read_bytes()[:100] + EVIL.encode())
    code, out, err = run(generate, [run_dir, "--score", small, "--heatmap", tmp_path / "page.html"])
    small.unlink()
    assert code == 0 and err == b""
    page = (tmp_path / "page.html").read_bytes()
    assert not [raw for raw in [*RAW, b"\\u202e", b"\\u001b"] if raw in page + out]


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (train, [f"--train.{EVIL}=1"]),
        (train, [f"--{EVIL}"]),
        (train, [EVIL]),
        (train, ["--config", EVIL]),
        (train, ["--train.seed", EVIL]),
        (train, ["--wandb.mode", EVIL]),
        (train, ["--data.name=files", f"--data.path={EVIL}", "--run_dir=nowhere", "--wandb.mode=disabled"]),
        (generate, [EVIL, "--prompt", "a"]),
        (generate, ["run", EVIL, EVIL]),
        (generate, ["run", "--prompt", "a", "--stop", "\u202e\x9b"]),
        (evaluate, [EVIL]),
        (evaluate, ["run", "--split", EVIL]),
        (plot, [EVIL]),
        (plot, ["run", "--by", EVIL]),
        (plot, ["run", "--output", EVIL]),
    ],
    ids=lambda value: ascii(value)[:60] if isinstance(value, list) else value.__name__,
)
def test_mistakes_echo_what_was_typed_without_harm(run, monkeypatch, tmp_path, program, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(program, arguments)
    assert code == 2 and out == b""
    assert err and all(line.startswith(b"error: ") for line in err.splitlines())
    assert not [raw for raw in RAW[:3] if raw in err]


@pytest.mark.parametrize("text", ["model: {'di\u202em': 1}", 'train: {"s\\e[31m": 1}', "a: \x1b", "\u202e: [", EVIL])
def test_names_in_a_config_file_do_no_harm(run, tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    code, _, err = run(train, ["--config", tmp_path / "mine.yaml"])
    assert code == 2 and err.startswith(b"error: ") and not [raw for raw in RAW[:3] if raw in err]


def test_a_printed_config_does_no_harm(run, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"data": {"name": "files", "path": EVIL}}))
    code, out, _ = run(train, ["--config", path, "--print_config"])
    assert code == 0 and yaml.safe_load(out)["data"]["path"] == EVIL
    assert not [raw for raw in RAW[:3] if raw in out]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_programs_print_in_any_encoding(whole, run, tmp_path, encoding):
    odd = tmp_path / "odd ├.txt"
    odd.write_bytes(bytes(range(256)) + "naïve ├ 你".encode())
    prompted = ["--prompt", "├ naïve \u202e", "--length", "5"]
    for program, arguments in [
        (generate, [whole, *prompted]),
        (generate, [whole, *prompted, "--num-samples", "2"]),
        (generate, [whole, *prompted, "--json"]),
        (generate, [whole, "--score", odd]),
        (evaluate, [whole, "--file", odd]),
        (plot, [whole, "--output", tmp_path / "├.png"]),
    ]:
        code, out, err = run(program, arguments, encoding)
        assert code == 0, err
        assert out.decode(encoding) and b"\x1b" not in out and "\u202e".encode() not in out
    assert (tmp_path / "├.png").is_file()
    assert run(plot, [tmp_path / "├"], encoding)[0] == 2


def test_ctrl_c_ends_the_other_programs_without_a_traceback(whole, run, monkeypatch):
    def interrupt(*args, **options):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the signal is handled by now")

    monkeypatch.setattr(evaluate, "total_nats", interrupt)
    monkeypatch.setattr(plot, "read_metrics", interrupt)
    monkeypatch.setattr(generate, "load_model", interrupt)
    monkeypatch.setattr(train, "open_corpus", interrupt)
    config = ["--config", whole.parent / "tiny.yaml", "--run_dir", whole.parent / "interrupted"]
    prompt = [whole, "--prompt=a"]
    for program, arguments in [(evaluate, [whole]), (plot, [whole]), (generate, prompt), (train, config)]:
        assert run(program, arguments) == (130, b"", b"")
    assert not (whole.parent / "interrupted").exists()


def test_a_reader_that_goes_away_does_not_stop_training(workplace):
    """`| head` takes the first line, and the run still saves everything."""
    run_dir = workplace / "headless"
    line = ["bash", "-c", 'set -o pipefail; "$@" | head -n 1', "bash", sys.executable, "train.py"]
    line += ["--config", str(workplace / "tiny.yaml"), f"--run_dir={run_dir}", "--train.validate_every=1"]
    done = subprocess.run(line, cwd=ROOT, env=os.environ | NO_GPU, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("device ") and done.stdout.count("\n") == 1
    assert done.stderr == "warning: the output cannot be written any more (Broken pipe); the program goes on\n"
    assert len(losses(run_dir)) == 12 and (run_dir / "checkpoints" / "step-00000012").is_dir()


def test_a_reader_that_goes_away_ends_a_score_silently(whole):
    line = ["bash", "-c", 'set -o pipefail; "$@" | head -n 2', "bash", sys.executable, "generate.py"]
    line += [str(whole), "--score", str(whole.parent / "text.txt")]
    done = subprocess.run(line, cwd=ROOT, env=os.environ | NO_GPU, capture_output=True, text=True)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (141, "", 2)


def test_a_compiler_that_fails_is_one_line_before_training(workplace, command, tmp_path):
    compiler = tmp_path / "g++"
    answer = 'test "$1" = --version && echo "g++ 12" && exit'
    compiler.write_text(f'#!/bin/sh\n{answer}\necho "main.cpp: error: no luck \x1b[31m" >&2\nexit 1\n')
    compiler.chmod(0o755)
    run_dir = tmp_path / "run"
    options = ["--config", workplace / "tiny.yaml", "--run_dir", run_dir, "--train.compile=true"]
    done = command("train.py", *options, CXX=str(compiler), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert (done.returncode, done.stdout, run_dir.exists()) == (2, "", False)
    needs = "error: train.compile needs a C++ compiler (g++, clang++ or $CXX) that works: "
    assert done.stderr == f"{needs}main.cpp: error: no luck ·[31m\n"
