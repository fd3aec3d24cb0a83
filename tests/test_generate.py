"""generate.py as users run it: one prompt or many, from the command line, a file or standard input; mistakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from math import log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import generate
from model import HierarchicalTransformer
from model.generation.load import load_model
from model.generation.sampling import reach
from tests.conftest import ROOT

MODEL = {"dim": (16, 24), "depth": 1, "seq_len": 32, "dim_head": 8, "heads": 2, "hierarchies": (1, 4)}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run directory with an untrained model, whose weights are large enough that its samples depend on the prompt."""
    folder = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    model = HierarchicalTransformer(**MODEL, matches=(2,))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def run(run_dir, capfd):
    """Run generate.py in this process: run("--prompt", "a") -> its output."""

    def run(*arguments) -> str:
        generate.main([str(run_dir), *map(str, arguments)])
        return capfd.readouterr().out

    return run


@pytest.fixture
def mistakes(run_dir, capsys):
    """Run generate.py with mistakes: mistakes("--prompt", "") -> the lines that it prints, without "error: "."""

    def mistakes(*arguments) -> list[str]:
        with pytest.raises(SystemExit) as end:
            generate.main([str(run_dir), *map(str, arguments)])
        output = capsys.readouterr()
        assert end.value.code == 2 and output.out == ""
        return [line.removeprefix("error: ") for line in output.err.splitlines()]

    return mistakes


def samples(output: str) -> list[dict]:
    return [json.loads(line) for line in output.splitlines()]


# -- one prompt


def test_the_same_seed_gives_the_same_bytes(run_dir, run, command):
    first, second, other = (run("--prompt=The ", "--length=64", "--seed", seed) for seed in (1, 1, 2))
    assert first == second != other and first.startswith("The ")
    for way in ("--no-cache", "--compile", "--batch-size=1"):
        assert run("--prompt=The ", "--length=64", "--seed=1", way) == first
    (sample,) = samples(run("--prompt=The ", "--length=64", "--seed=1", "--json"))
    assert f"The {sample['text']}\n" == first
    assert command("generate.py", run_dir, "--prompt=The ", "--length=64", "--seed=1").stdout == first


def test_a_prompt_may_have_any_bytes(run, command, run_dir):
    done = command("generate.py", run_dir, "--prompt", b"7 \xff", "--length=3", "--json")
    (sample,) = samples(done.stdout)
    assert sample["prompt"] == "7 \ufffd" and bytes(sample["prompt_bytes"]) == b"7 \xff"
    assert run("--prompt", os.fsdecode(b"7 \xff"), "--length=3", "--json") == done.stdout
    assert run("--prompt", os.fsdecode(b"7 \xff"), "--length=0") == "7 \ufffd\n"
    (sample,) = samples(run("--prompt", "Ω\ufffd\x1b", "--length=3", "--json"))
    assert sample["prompt"] == "Ω\ufffd\x1b" and "prompt_bytes" not in sample


def test_a_prompt_file_counts_with_all_its_bytes(run, tmp_path):
    for content in (b"a\n", b"a", b"a\r\n", b"\n", b"- \xff\x00\n\n"):
        (tmp_path / "prompt").write_bytes(content)
        from_file = run("--prompt_file", tmp_path / "prompt", "--length=9", "--json")
        assert from_file == run("--prompt", os.fsdecode(content), "--length=9", "--json")


def test_a_long_prompt_comes_from_standard_input(run_dir, run, tmp_path):
    prompt = np.random.default_rng(0).integers(256, size=200_000, dtype=np.uint8).tobytes()
    line = [sys.executable, ROOT / "generate.py", run_dir, "--prompt-file", "-", "--length=20", "--json"]
    done = subprocess.run(line, input=prompt, capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (sample,) = samples(done.stdout.decode())
    assert bytes(sample["prompt_bytes"]) == prompt

    model = load_model(run_dir, "cpu")
    (tmp_path / "end").write_bytes(prompt[-4 * reach(model.config) :])
    (of_end,) = samples(run("--prompt-file", tmp_path / "end", "--length=20", "--json"))
    assert of_end["bytes"] == sample["bytes"]


def test_a_sample_ends_at_a_stop_byte(run):
    options = ("--prompt", "7 times", "--length=300", "--stop", "\n", "--num-samples=2", "--repetition-penalty=1.1")
    both = samples(run(*options, "--json"))
    assert len(both) == 2
    for sample in both:
        *before, last = sample["bytes"]
        assert 10 not in before and (last == 10 or len(sample["bytes"]) == 300)


# -- several prompts


def test_prompts_of_a_file_get_what_each_gets_alone(run, run_dir, tmp_path):
    long = "a long line that is not the same all along " * 40
    prompts = ["one", "two", long, "x", long[7:], "one", "Ωmega", "one more"]
    (tmp_path / "prompts").write_text("\n".join(prompts))
    options = ("--length=12", "--num-samples=3", "--repetition-penalty=1.2", "--stop=e", "--json")
    alone = [samples(run("--prompt", prompt, *options)) for prompt in prompts]
    for batch_size in (64, 5, 2, 1):
        together = samples(run("--prompts", tmp_path / "prompts", *options, "--batch-size", batch_size))
        assert [(each["prompt_index"], each["sample_index"]) for each in together] == [
            (i, number) for i in range(len(prompts)) for number in range(3)
        ]
        expected = [sample | {"prompt_index": i} for i, of_prompt in enumerate(alone) for sample in of_prompt]
        assert together == expected
    assert len({tuple(each["bytes"]) for each in together}) > 10  # they depend on the prompt and on the sample


def test_each_sample_has_a_header(run, tmp_path):
    (tmp_path / "prompts").write_bytes(b"one\ntwo\n")
    assert run("--prompts", tmp_path / "prompts", "--length=0", "--num-samples=2") == (
        "--- prompt 1 of 2, sample 1 of 2 ---\none\n--- prompt 1 of 2, sample 2 of 2 ---\none\n"
        "--- prompt 2 of 2, sample 1 of 2 ---\ntwo\n--- prompt 2 of 2, sample 2 of 2 ---\ntwo\n"
    )
    assert run("--prompts", tmp_path / "prompts", "--length=0") == (
        "--- prompt 1 of 2 ---\none\n--- prompt 2 of 2 ---\ntwo\n"
    )
    assert run("--prompt", "one", "--length=0", "--num-samples=2", "--batch-size=1") == (
        "--- sample 1 of 2 ---\none\n--- sample 2 of 2 ---\none\n"
    )


def test_line_ends_of_windows_are_no_part_of_a_prompt_and_that_is_said(run_dir, capsys, tmp_path):
    said = []
    for end in (b"\n", b"\r\n"):
        (tmp_path / "prompts").write_bytes(b"one" + end + b" two\t" + end)
        generate.main([str(run_dir), "--prompts", str(tmp_path / "prompts"), "--length=5", "--json"])
        output = capsys.readouterr()
        said.append(output.err)
        assert [sample["prompt"] for sample in samples(output.out)] == ["one", " two\t"]
    path = tmp_path / "prompts"
    assert said == ["", f"prompts: {path} has the line ends of Windows, \\r\\n, which are left out\n"]


@given(lengths=st.lists(st.integers(1, 700), min_size=1, max_size=20), most_apart=st.integers(0, 300))
def test_a_group_takes_at_most_twice_the_steps_of_a_prompt(run_dir, lengths, most_apart):
    model = load_model(run_dir, "cpu")
    prompts = [b"a" * length for length in lengths]
    groups = list(generate.of_similar_length(model, prompts, range(len(prompts)), most_apart))
    assert sorted(i for group in groups for i in group) == list(range(len(prompts)))
    for group in groups:
        read = [min(lengths[i], reach(model.config) + 1) for i in group]
        assert max(read) - min(read) <= most_apart + 4  # prompts are cut at multiples of 4
    assert len(groups) == 1 or max(lengths) - min(lengths) > most_apart


def test_prompts_that_are_read_in_one_pass_are_few_enough(run_dir, monkeypatch):
    model = load_model(run_dir, "cpu")
    monkeypatch.setattr(generate, "MOST_PASS_BYTES", 100)
    groups = list(generate.of_similar_length(model, [b"a" * 30] * 7 + [b"a" * 120], range(8), 500))
    assert groups == [[0, 1, 2], [3, 4, 5], [6], [7]]


# -- Ctrl-C


def test_ctrl_c_leaves_what_was_printed(run_dir):
    line = [sys.executable, ROOT / "generate.py", run_dir, "--prompt", "from here on:", "--length=1000000"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        begun = process.stdout.read(40)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate()
    assert process.returncode == 130 and errors == b""
    assert begun.startswith(b"from here on:") and (begun + rest).endswith(b"\n")


def test_ctrl_c_prints_what_there_is_of_several_samples(run_dir, monkeypatch, capsys, tmp_path):
    (tmp_path / "prompts").write_bytes(b"one\ntwo\n" + b"long " * 30 + b"\nthree\n")
    model = load_model(run_dir, "cpu")
    passes = []

    def interrupt(*_):
        passes.append(None)
        if len(passes) == 8:
            signal.raise_signal(signal.SIGINT)

    model.register_forward_hook(interrupt)
    monkeypatch.setattr(generate, "load_model", lambda *_: model)
    with pytest.raises(KeyboardInterrupt):  # run_program makes it the exit code 130
        generate.main([str(run_dir), "--prompts", str(tmp_path / "prompts"), "--length=50", "--json"])
    printed = samples(capsys.readouterr().out)
    assert [(each["prompt"], len(each["bytes"])) for each in printed] == [("one", 7), ("two", 7), ("three", 5)]


# -- scores


def test_score_gives_the_cost_of_every_byte(run, run_dir, tmp_path):
    text = "12 times 12 is 144, and that is a fact worth repeating.\n" * 3
    (tmp_path / "text").write_text(text)
    lines = samples(run("--score", tmp_path / "text", "--json"))
    assert bytes(line["byte"] for line in lines[:-1]).decode() == text
    assert lines[0]["bits"] == 8 and lines[-1]["bytes"] == len(text)
    assert lines[-1]["bits_per_byte"] == pytest.approx(np.mean([line["bits"] for line in lines[:-1]]), abs=1e-3)
    ids = torch.tensor([list(text.encode())])[:, :33]
    nll = F.cross_entropy(load_model(run_dir, "cpu")(ids[:, :-1])[0], ids[0, 1:], reduction="none")
    assert [line["bits"] for line in lines[1:33]] == pytest.approx((nll / log(2)).tolist(), abs=2e-3)


# -- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "prompt: got an empty text, allowed: at least one byte"),
        (["--prompt-file", "EMPTY"], "prompt_file: got EMPTY, which is empty, allowed: at least one byte"),
        (["--prompt-file", "nowhere"], "prompt_file: nowhere cannot be read (No such file or directory)"),
        (["--prompt-file", "."], "prompt_file: . cannot be read (Is a directory)"),
        (["--prompt-file", "/dev/zero"], "prompt_file: got more than 100,000,000 bytes in /dev/zero, allowed: fewer"),
        (["--prompts", "EMPTY"], "prompts: got an empty line 1 in EMPTY, allowed: at least one byte in each line"),
        (["--prompts", "GAP"], "prompts: got an empty line 2 in GAP, allowed: at least one byte in each line"),
        (["--prompts", "~nosuchuser/a"], "prompts: ~nosuchuser/a cannot be read (No such file or directory)"),
        (["--prompts", "."], "prompts: . cannot be read (Is a directory)"),
        (["--score", "."], "score: . cannot be read (Is a directory)"),
        (["--score", "EMPTY"], "score: got 0 bytes, allowed: at least 2"),
        (["--score", "/dev/zero"], "score: /dev/zero is no regular file"),
        (["--score", "nowhere"], "score: nowhere cannot be read (No such file or directory)"),
        (["--score", "GAP", "--heatmap", "nowhere/page.html"], "heatmap: got nowhere/page.html, allowed:"),
        (["--score", "GAP", "--heatmap", "."], "heatmap: got ., allowed:"),
        (["--prompt", "a", "--device", "abacus"], "device: got abacus"),
        ([], "pass one of --prompt, --prompt-file, --prompts and --score"),
        (["--prompt", "a", "--prompts", "GAP"], "pass one of --prompt, --prompt-file, --prompts and --score"),
        (["--prompt", "a", "--score", "GAP"], "pass one of --prompt, --prompt-file, --prompts and --score"),
        (["--prompt", "a", "--batch-size", "0"], "batch-size: got 0, allowed: a whole number, 1 or above"),
        (["--prompt", "a", "--top-k=0"], "top_k: got 0, allowed: a whole number, 1 or above"),
        (["--prompt", "a", "--top-k=2.5"], "top-k: got 2.5, allowed: a whole number"),
        (["--prompt", "a", "--temperature=inf"], "temperature: got inf, allowed: a number"),
        (["--prompt", "a", "--temperature=.inf"], "temperature: got inf, allowed: 0 to 1e+30"),
        (["--prompt", "a", "--temperature=.nan"], "temperature: got nan, allowed: 0 to 1e+30"),
        (["--prompt", "a", "--repetition-penalty=1e-40"], "repetition_penalty: got 1e-40, allowed: 1e-30 to 1e+30"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_a_mistake_is_one_line(mistakes, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").touch()
    (tmp_path / "GAP").write_bytes(b"one\n\ntwo\n")
    (line,) = mistakes(*arguments)
    assert line.startswith(message)


def test_all_mistakes_of_sampling_are_told_before_a_model_is_loaded(capsys):
    options = ["--temperature=-1", "--top-k=-1", "--top-p=1.5", "--min-p=-0.1", "--repetition-penalty=0"]
    with pytest.raises(SystemExit):
        generate.main(["nowhere", *options])
    assert [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "error: pass one of --prompt",
        "error: temperature: got -1.0",
        "error: top_k: got -1",
        "error: top_p: got 1.5",
        "error: min_p: got -0.1",
        "error: repetition_penalty: got 0.0",
    ]


@pytest.mark.parametrize(
    "option", ["--temperature=1e-39", "--top-p=1e-300", "--top-k=1", "--temperature=0", "--min-p=1"]
)
def test_extreme_options_are_greedy(run, option):
    greedy = run("--prompt=a", "--length=20", "--temperature=0")
    assert run("--prompt=a", "--length=20", option) == greedy


def test_a_closed_standard_input_is_one_line(run_dir):
    line = f"{sys.executable} generate.py {run_dir} --prompts - <&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (2, "error: prompts: - cannot be read (Bad file descriptor)\n")


def test_compile_without_a_compiler(run_dir, command):
    done = command("generate.py", run_dir, "--prompt=a", "--compile", CXX="nowhere")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "C++ compiler" in done.stderr


def test_a_model_of_another_shape(run_dir, tmp_path, capsys):
    shutil.copytree(run_dir / "model", tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["to_logits.weight"] = torch.zeros(256, 8)
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(SystemExit):
        generate.main([str(tmp_path), "--prompt", "a"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "do not fit its config.json" in line
