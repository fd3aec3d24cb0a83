"""Command lines and config files become the values that were meant."""

from typing import Literal

import pytest
from jsonargparse.typing import PositiveInt

import evaluate
import generate
import plot
import train
from training.command_line import Parser, parse_as, user_errors
from training.config import load_config
from training.reading import in_words
from utils.errors import UserError

AWKWARD = ["# a comment", "null", "~", "&a", "[1", "no", "1e3", "- a list", "--- a/file", "a: b", " ", "#", "Ω\n"]


@pytest.mark.parametrize("text", [*AWKWARD, ""])
@pytest.mark.parametrize("flag", ["prompt", "score"])
def test_text_is_taken_as_it_is_typed(flag, text):
    for words in ([f"--{flag}", text], [f"--{flag}={text}"]):
        assert getattr(parse_as(generate.Arguments, ["run", *words], "generate.py", ""), flag) == text


@pytest.mark.parametrize("text", ["#", "~", "null", "\n", "'", "[", "- "])
def test_stop_characters_are_taken_as_they_are_typed(text):
    args = parse_as(generate.Arguments, ["run", "--prompt", "a", "--stop", text], "generate.py", "")
    assert args.stop == text


def test_paths_are_taken_as_they_are_typed():
    assert load_config(["--run_dir=#1"]).run_dir == "#1"
    for text in ("2026-01-01", "null", "~", "- a", "1"):
        assert load_config(["--run_dir", text]).run_dir == text
    assert load_config(["--data.name=files", "--data.path", "[a]*.txt"]).data.path == "[a]*.txt"
    assert parse_as(evaluate.Arguments, ["~", "--file", "null"], "evaluate.py", "").file == "null"


def test_null_in_a_file_unsets_a_text(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("wandb: {name: trial}")
    second.write_text("wandb: {name: null}")
    assert load_config(["--config", str(first)]).wandb.name == "trial"
    assert load_config(["--config", str(first), "--config", str(second)]).wandb.name is None


@pytest.mark.parametrize(
    ("text", "setting", "value"),
    [
        ("train: {mixed_precision: no}", "train.mixed_precision", "no"),
        ("train: {mixed_precision: off}", None, None),
        ("wandb: {name: no}", "wandb.name", "no"),
        ("wandb: {name: 2026-11-27}", "wandb.name", "2026-11-27"),
        ("wandb: {name: 1:30}", "wandb.name", "1:30"),
        ("wandb: {name: '1e-3'}", "wandb.name", "1e-3"),
        ("wandb: {name: 'a: b'}", "wandb.name", "a: b"),
        ("run_dir: 2026-11-27", "run_dir", "2026-11-27"),
        ("run_dir: '~'", "run_dir", "~"),
        ("train: {learning_rate: 1e-3}", "train.learning_rate", 1e-3),
        ("train: {learning_rate: 1.e-3}", "train.learning_rate", 1e-3),
        ("train: {grad_clip: 1e3}", "train.grad_clip", 1000.0),
        ("train: {grad_clip: .5}", "train.grad_clip", 0.5),
        ("train: {max_steps: 08}", "train.max_steps", 8),
        ("train: {max_steps: 017}", "train.max_steps", 17),
        ("train: {max_steps: 1_000}", "train.max_steps", 1000),
        ("train: {max_steps: +5}", "train.max_steps", 5),
        ("train: {tf32: True}", "train.tf32", True),
        ("train:\n  <<: {seed: 3, max_steps: 9}\n  seed: 4", "train.seed", 4),
        ("x: &x 5\ntrain: {seed: *x}", None, None),
        ("\ufefftrain: {seed: 5}", "train.seed", 5),
        ('{"train": {"betas": [0.5, 0.6]}}', "train.betas", (0.5, 0.6)),
        ("train: {max_steps: 9}\r\nrun_dir: a\r\n", "run_dir", "a"),
    ],
)
def test_a_file_is_read_as_it_is_meant(text, setting, value, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    line = ["--config", str(tmp_path / "mine.yaml")]
    if setting is None:
        with pytest.raises(SystemExit):
            load_config(line)
        return
    config = load_config(line)
    for name in setting.split("."):
        config = getattr(config, name)
    assert config == value and type(config) is type(value)


def test_a_section_may_be_in_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.yaml").write_text("{seed: 7, max_steps: 9}")
    (tmp_path / "all.yaml").write_text("train: train.yaml\nrun_dir: a")
    assert load_config(["--train", "train.yaml", "--train.seed=8"]).train.max_steps == 9
    assert load_config(["--config", "all.yaml"]).train.seed == 7
    assert load_config(["--train={seed: 7}", "--train.max_steps=9"]).train.seed == 7
    too_long_for_a_path = f"--config={{data: {{name: files, path: {'a' * 5000}}}}}"
    assert load_config([too_long_for_a_path]).data.path == "a" * 5000


def test_a_run_is_named_after_its_last_config_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "one.yaml").write_text("train: {seed: 1, max_steps: 5}")
    (tmp_path / "two.yaml").write_text("train: {seed: 2}")
    config = load_config(["--config", str(tmp_path / "one.yaml"), "--config=~/two.yaml"])
    assert (config.run_dir, config.train.seed, config.train.max_steps) == ("runs/two", 2, 5)
    assert load_config(["--config={train: {seed: 3}}"]).run_dir == "runs/default"


def test_dashes_and_underscores_in_names_are_the_same():
    for name in ("--top-k", "--top_k"):
        assert parse_as(generate.Arguments, ["run", "--prompt=a", name, "5"], "generate.py", "").top_k == 5
    assert parse_as(evaluate.Arguments, ["run", "--batch_size=3"], "evaluate.py", "").batch_size == 3
    assert load_config(["--train.max-steps=7", "--run-dir", "a"]).train.max_steps == 7


def test_positional_arguments_may_come_anywhere():
    for argv in (["run", "--limit", "5", "--verify"], ["--limit", "5", "--verify", "run"]):
        args = parse_as(evaluate.Arguments, argv, "evaluate.py", "")
        assert (args.run_dir, args.limit, args.verify) == ("run", 5, True)


def test_the_choice_no_is_a_word():
    assert load_config(["--train.mixed_precision=no"]).train.mixed_precision == "no"


def test_help_is_in_words(capsys):
    for program in (train, evaluate, generate, plot):
        with pytest.raises(SystemExit):
            program.main(["--help"])
        out = capsys.readouterr().out
        assert out.replace("\n", "").isprintable()
        said = " ".join(out.split())
        for name in ("NonNegativeInt", "PositiveInt", "Literal", "tuple[", "type:", "required", "False"):
            assert name not in said, name
        assert ("left out (text, default: null)" not in said and "left out (text)" in said) or program is train
    with pytest.raises(SystemExit):
        generate.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "number of samples of each prompt (a whole number, 1 or above, default: 1)" in said


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (PositiveInt, "a whole number, 1 or above"),
        (bool, "true or false"),
        (int | tuple[int, ...] | None, "a whole number, a list of them or null"),
        (tuple[int, ...], "a list, each a whole number"),
        (tuple[float, float], "a list of 2, each a number"),
        (Literal["a", "b", "c"], "a, b or c"),
    ],
)
def test_a_type_in_words(kind, words):
    assert in_words(kind) == words


@pytest.mark.parametrize("value", ["true", "1.0", "[1]", "null", "x"])
def test_a_whole_number_is_nothing_else(value, capsys):
    with pytest.raises(SystemExit):
        load_config([f"--train.seed={value}"])
    assert capsys.readouterr().err.startswith(f"error: train.seed: got {value}, allowed: a whole number")


def test_a_list_takes_several_words(capsys):
    parser = Parser(prog="program")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0], help="rates")
    parser.add_argument("--only-some", action="store_true", help="some")
    args = parser.parse_args(["--rates", "2", "3.5", "--only_some"])
    assert args.rates == [2.0, 3.5] and args.only_some
    with pytest.raises(SystemExit):
        parser.parse_args(["--rates", "2", "x"])
    assert capsys.readouterr().err == "error: rates: got x, allowed: a number\n"


def test_a_program_reports_all_mistakes_of_its_own_too(capsys):
    with pytest.raises(SystemExit):
        parse_as(generate.Arguments, ["run", "--length=x", "--heatmap=a.html", "--stop=é"], "generate.py", "")
    assert capsys.readouterr().err.splitlines() == [
        "error: length: got x, allowed: a whole number, 0 or above",
        "error: pass one of --prompt, --prompt-file, --prompts and --score",
        "error: --heatmap needs --score FILE",
        "error: --stop takes ASCII characters only: é is two bytes",
    ]


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("a bug"), KeyError("a bug")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)), user_errors():
        raise error


def test_a_mistake_of_the_user_is_one_line(capsys):
    with pytest.raises(SystemExit) as end, user_errors():
        raise UserError("one thing\nis wrong", "another is, too")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: one thing is wrong\nerror: another is, too\n"
