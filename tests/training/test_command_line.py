"""Command lines and config files become the values that were meant."""

from typing import Literal

import pytest
from jsonargparse.typing import PositiveInt

import evaluate
import generate
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
        "error: pass either --prompt or --score",
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
