"""evaluate.py as users run it: on several processes, on a file, with --verify, and with mistakes."""

import hashlib
import json

import pytest
import torch
from accelerate.state import AcceleratorState

from evaluate import main
from tests.runs import LAUNCH_TWO


def test_two_processes_give_the_score_of_one(whole, command):
    results = []
    for how in ({}, {"launcher": LAUNCH_TWO, "ACCELERATE_USE_CPU": "true"}):
        done = command("evaluate.py", whole, "--context", "64", "--stride", "24", "--batch-size", "5", **how)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1
        results.append(json.loads(done.stdout))
    one, two = results
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["bits_per_byte"] == pytest.approx(one["bits_per_byte"], rel=1e-9)
    for key in ("bytes", "split", "corpus", "sha256", "parameters"):
        assert one[key] == two[key]
    assert [two[key] for key in ("seq_len", "context", "stride", "overlap")] == [32, 64, 24, 40]


def test_a_carried_context_gives_one_score_on_any_number_of_processes(whole, command):
    results = []
    for how in ({}, {"launcher": LAUNCH_TWO, "ACCELERATE_USE_CPU": "true"}):
        done = command("evaluate.py", whole, "--carry", "--context", "32", "--batch-size", "3", **how)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout.splitlines()[-1]))
    one, two = results
    assert two["bits_per_byte"] == pytest.approx(one["bits_per_byte"], rel=1e-9)
    assert one["streams"] == two["streams"] == 3 and "stride" not in one
    windows = json.loads(command("evaluate.py", whole).stdout.splitlines()[-1])
    assert one["bits_per_byte"] == pytest.approx(windows["bits_per_byte"], rel=0.02)


def test_a_model_that_adapts_is_reported_beside_the_one_that_does_not_and_proved(whole, command):
    done = command("evaluate.py", whole, "--adapt", "--adapt-rate", "3e-3", "--limit", "1300", "--verify")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["verified"] is True and result["adapt_rate"] == 3e-3
    assert result["adapted_bits_per_byte"] < result["bits_per_byte"]
    assert result["predicted_bits_per_byte"] == pytest.approx(result["adapted_bits_per_byte"], abs=1e-3)
    assert result["coded_bits_per_byte"] == pytest.approx(result["adapted_bits_per_byte"], rel=0.01)


def test_verify_codes_a_file_and_writes_nothing(whole, command, tmp_path):
    text = bytes(range(256)) + "17 times 17 is 289, and that is a fact worth repeating. Ω\n".encode() * 20
    (tmp_path / "text").write_bytes(text)
    before = sorted(whole.rglob("*"))
    done = command("evaluate.py", whole, "--file", tmp_path / "text", "--limit", "1200", "--verify")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["verified"] is True
    assert (result["bytes"], result["file"]) == (1200, str(tmp_path / "text"))
    assert result["sha256"] == hashlib.sha256(text[:1200]).hexdigest()
    assert result["coded_bits_per_byte"] == round(8 * result["coded_bytes"] / 1200, 5)
    assert 8 * result["coded_bytes"] == pytest.approx(1200 * result["predicted_bits_per_byte"], rel=0.005, abs=64)
    assert result["bits_per_byte"] == pytest.approx(result["coded_bits_per_byte"], rel=0.25)  # streams have no context
    assert sorted(whole.rglob("*")) == before and list(tmp_path.iterdir()) == [tmp_path / "text"]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_it_says_whether_the_split_is_that_of_training(workplace, train_here, capsys, split):
    text, run_dir = workplace / f"scored-{split}.txt", workplace / f"scored-{split}"
    text.write_bytes((workplace / "text.txt").read_bytes())
    train_here(run_dir.name, f"--data.path={text}", "--train.max_steps=1")

    def evaluate(*flags) -> tuple[dict, str]:
        main([str(run_dir), "--limit=100", *flags])
        AcceleratorState._reset_state(reset_partial_state=True)
        said = capsys.readouterr()
        return json.loads(said.out.splitlines()[-1]), said.err

    result, warned = evaluate("--split", split)
    assert result["same_as_training"] is True and "warning" not in warned
    content = bytearray(text.read_bytes())
    content[{"train": 0, "valid": 21400, "test": -1}[split]] ^= 1
    text.write_bytes(content)
    for each in ("train", "valid", "test"):
        result, warned = evaluate("--split", each)
        assert result["same_as_training"] is (each != split)
        assert (f"warning: the {each} split of files had other bytes when {run_dir}" in warned) == (each == split)

    result, warned = evaluate("--file", str(text))
    assert "same_as_training" not in result and "warning" not in warned
    (run_dir / "corpus.json").unlink()
    result, warned = evaluate("--split", split)
    assert result["same_as_training"] is None and warned.count("\n") == 1 and "is not known" in warned


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--file", "nowhere.txt"], "nowhere.txt"),
        (["--file", "EMPTY"], "file: got 0 bytes, allowed: at least 2"),
        (["--split", "valid", "--file", "EMPTY"], "pass either --split or --file"),
        (["--split", "valid", "--limit", "1"], "split: got 1 bytes, allowed: at least 2"),
        (["--limit", "0"], "limit"),
        (["--context", "-1"], "context"),
        (["--context", "64", "--stride", "65"], "stride: got 65, allowed: 1 to"),
        (["--device", "abacus"], "device: got abacus"),
        (["--file", "."], ". cannot be read (Is a directory)"),
        (["--file", "/dev/zero"], "/dev/zero is no regular file"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_a_mistake_is_one_line(whole, tmp_path, capsys, arguments, message):
    (tmp_path / "EMPTY").touch()
    arguments = [str(tmp_path / word) if word == "EMPTY" else word for word in arguments]
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit) as stopped:
            main([str(whole), *arguments])
    finally:
        torch.set_num_threads(threads)
        AcceleratorState._reset_state(reset_partial_state=True)
    output = capsys.readouterr()
    assert stopped.value.code == 2 and not output.out
    assert len(output.err.splitlines()) == 1 and output.err.startswith("error: ") and message in output.err
