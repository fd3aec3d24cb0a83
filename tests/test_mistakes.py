"""Mistakes on a command line or in a config file: one line each, exit code 2, no traceback."""

import os
import subprocess

import pytest
import yaml

import evaluate
import generate
import plot
import train
from tests.conftest import ROOT
from tests.runs import LAUNCH
from training.config import load_config

CONFIG = ["--config", str(ROOT / "configs" / "quickstart.yaml")]
MISTAKES = [
    (
        train,
        [*CONFIG, "--model.widnow_sizes=[64,null]"],
        "model.widnow_sizes: no such setting; the nearest is model.win",
    ),
    (train, [*CONFIG, "--lr", "3e-4"], "lr: no such setting; the nearest is train.learning_rate"),
    (train, [*CONFIG, "--train.max_steps=many"], "train.max_steps: got many, allowed: a whole number"),
    (
        train,
        [*CONFIG, "--train.mixed_precision=half"],
        "train.mixed_precision: got half, allowed: auto, no, bf16 or fp16",
    ),
    (
        train,
        [*CONFIG, "--model.dim", "128", "256"],
        "model.dim: got 128 256, allowed: a whole number or a list of them",
    ),
    (
        train,
        [*CONFIG, "--model.heads=[1,2,3]"],
        "model.heads: got [1, 2, 3], allowed: at least 1, below 2^31; one for",
    ),
    (
        train,
        ["--config", "nowhere.yaml"],
        "config: nowhere.yaml cannot be read (No such file or directory)",
    ),
    (
        generate,
        ["runs/a", "--prompt", "a", "--length", "long"],
        "length: got long, allowed: a whole number, 0 or above",
    ),
    (evaluate, ["runs/a", "--split", "dev"], "split: got dev, allowed: train, valid or test"),
    (plot, ["runs/a", "--by", "epoch"], "by: got epoch, allowed: step, time"),
    (train, CONFIG[1:], f"{CONFIG[1]}: belongs to no flag; allowed: --NAME=VALUE, see --help"),
    (train, [*CONFIG, "--train.max_steps=0"], "train.max_steps: got 0, allowed: 1 or above"),
    (train, [*CONFIG, "--train.learning_rate=.nan"], "train.learning_rate: got nan, allowed: above 0"),
    (train, [*CONFIG, "--train.seed=4294967296"], "train.seed: got 4294967296, allowed: 0 to 4294967295"),
    (
        train,
        [*CONFIG, "--train.learning_rate=1e-4"],
        "train.min_learning_rate: got 0.000285, allowed: 0 to learning_rate = 0.0001",
    ),
    (train, [*CONFIG, "--model.num_tokens=128"], "model.num_tokens: got 128, allowed: 256, because a corpus is bytes"),
    (generate, ["runs/a", "--prompt", "a", "--stop", "é"], "--stop takes ASCII characters only: é is two bytes"),
    (train, [*CONFIG, "--train.compile"], "train.compile: got nothing, allowed: true or false"),
    (train, [*CONFIG, "--train.seed=null"], "train.seed: got null, allowed: a whole number"),
    (train, [*CONFIG, "--train.betas=[0.9]"], "train.betas: got [0.9], allowed: a list of 2, each a number"),
    (train, [*CONFIG, "--resume=yes"], "--resume takes no value"),
    (train, [*CONFIG, "--data.name=files"], "data.path: got null, allowed: a file, folder or glob"),
    (
        train,
        [*CONFIG, "--model.hierarchies=[1,0]"],
        "model.hierarchies: got [1, 0], allowed: one or more distinct whole",
    ),
    (
        train,
        [*CONFIG, "--model.window_sizes=[16384,null]"],
        "model.window_sizes: got [16384, null], allowed: null, or 0 to",
    ),
    (
        train,
        [*CONFIG, "--model.hierarchical_stride=[1,6]"],
        "model.hierarchical_stride: got [1, 6], allowed: divisors of",
    ),
    (generate, [], "run_dir: got nothing, allowed: a run directory"),
    (
        generate,
        ["runs/a", "--prompt", "a", "--num_sample", "2"],
        "num_sample: no such setting; the nearest is num_samples",
    ),
    (evaluate, ["runs/a", "runs/b"], "runs/b: belongs to no flag"),
    (plot, ["nowhere"], "run: got nowhere, which is no file, allowed: a run directory"),
]


@pytest.fixture(autouse=True)
def fail_instead_of_training(monkeypatch):
    monkeypatch.setattr(train, "open_run_dir", lambda *arguments: pytest.fail("nothing was wrong"))


def mistakes_of(program, arguments: list[str], capsys) -> list[str]:
    """Run a program that ends with exit code 2, and return the lines that it writes to stderr, without "error: "."""
    with pytest.raises(SystemExit) as end:
        program.main(arguments)
    output = capsys.readouterr()
    assert end.value.code == 2 and output.out == ""
    assert all(line.startswith("error: ") for line in output.err.splitlines()), output.err
    return [line.removeprefix("error: ") for line in output.err.splitlines()]


def test_a_flag_without_a_value_does_not_take_a_word_from_before_it(workplace, capsys):
    (line,) = mistakes_of(train, [str(workplace / "tiny.yaml"), "--train.max_steps=1", "--config"], capsys)
    assert line.startswith("config: got nothing, allowed: ")


@pytest.mark.parametrize("name", ["run_dir", "init_from"])
def test_an_unset_variable_of_the_shell_is_no_path(capsys, name):
    lines = mistakes_of(train, [f"--{name}="], capsys)
    assert lines == [f"{name}: got an empty text, allowed: null, or a path"]


def words_of(arguments) -> str:
    return " ".join(arguments)[-40:] if isinstance(arguments, list) else ""


@pytest.mark.parametrize(("program", "arguments", "message"), MISTAKES, ids=words_of)
def test_one_mistake_is_one_line(program, arguments, message, capsys):
    (line,) = mistakes_of(program, arguments, capsys)
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model:\n  dimm: 8\n", "model.dimm: no such setting; the nearest is model.dim"),
        ("modle:\n  dim: 8\n", "modle: no such setting; the nearest is model"),
        ("train: {seed: one}\n", "train.seed: got one, allowed: a whole number"),
        ("train:\n", "train: got null, allowed: settings by name, or a YAML file of them"),
        ("- 1\n", "config: FILE holds no settings by name"),
        (
            "a: [1,\nb: 2\n",
            "config: FILE is not YAML (line 3, column 1: expected ',' or ']', but got '<stream end>')",
        ),
    ],
)
def test_a_mistake_in_a_file(text, line, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    (line_reported,) = mistakes_of(train, ["--config", str(file)], capsys)
    assert line_reported.startswith(line.replace("FILE", str(file)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {max_steps: 3}\nmodel: {dim: 8}\ntrain: {seed: 4}\n", "has train twice, in lines 1 and 3"),
        ("train:\n  seed: 3\n  max_steps: 5\n  seed: 4\n", "has train.seed twice, in lines 2 and 4"),
        ("train.seed: 3\ntrain: {seed: 4}\n", "has train.seed twice, in lines 1 and 2"),
        ("train: {max-steps: 3, max_steps: 4}\n", "has train.max_steps twice, in line 1"),
        ('{"train": {"seed": 3}, "train": {"seed": 4}}', "has train twice, in line 1"),  # JSON
        (
            "a0: &a0 x\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 10}]\n" for i in range(1, 12)),
            "has more than 10,000",
        ),
        ("train: &a\n  betas: *a\n", "is nested too deeply"),
        ("train: " + "[" * 50, "is not YAML (line 1, column 58: expected the node content, but found '<stream end>')"),
        ("train: " + "[" * 50 + "]" * 50, "is nested too deeply"),
        ("train: " + "[" * 500 + "]" * 500, "is nested too deeply"),
        (
            "train: {seed: !!python/object:os.system 3}\n",
            "has the tag tag:yaml.org,2002:python/object:os.system in line",
        ),
        ('run_dir: "a\\0b"\n', "has a null character in line 1"),
        ("train: {seed: 3}\n---\ntrain: {seed: 4}\n", "is not YAML (line 2, column 1: found another document)"),
        ("", "holds no settings by name"),
        (b"run_dir: caf\xe9\n", "is no UTF-8 text (byte 12)"),
        ("train: {seed: 3}".encode("utf-16"), "is no UTF-8 text (byte 0)"),
        (b"train: {seed: 3}\0\n", "is not YAML (unacceptable character #x0000"),
        (b"#" * 100_001, "has 100,001 bytes, allowed: at most 100,000"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("other", [[], ["--train.batch_size=0"]], ids=["alone", "with another"])
def test_a_file_that_cannot_be_settings(text, message, other, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    first, *rest = mistakes_of(train, ["--config", str(file), *other], capsys)
    assert first.startswith(f"config: {file} {message}")
    assert rest == ["train.batch_size: got 0, allowed: 1 or above"][: len(other)]
    first, *rest = mistakes_of(train, ["--model", str(file), *other], capsys)
    assert first.startswith(f"model: {file} {message}")


def test_a_file_that_is_no_file(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    for path, message in [
        (tmp_path, "cannot be read (Is a directory)"),
        (tmp_path / "pipe", "is no regular file"),
        ("/dev/zero", "is no regular file"),
        ("-", "cannot be read (No such file or directory)"),
    ]:
        assert mistakes_of(train, ["--config", str(path)], capsys) == [f"config: {path} {message}"]
        assert mistakes_of(train, ["--train", str(path)], capsys) == [f"train: {path} {message}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {max_steps: 1:30}", "train.max_steps: got 1:30, allowed: a whole number"),
        ("train: {max_steps: 0x10}", "train.max_steps: got 0x10, allowed: a whole number"),
        ("train: {max_steps: 1e3}", "train.max_steps: got 1000.0, allowed: a whole number"),
        (f"train: {{max_steps: {'9' * 5000}}}", f"train.max_steps: got {'9' * 5000}, allowed: a whole number"),
        ("train: {tf32: yes}", "train.tf32: got yes, allowed: true or false"),
        ("wandb: {project: 123}", "wandb.project: got 123, allowed: text, in quotes"),
        ("wandb: {name: true}", "wandb.name: got true, allowed: text, in quotes"),
        ("wandb: {project: ~}", "wandb.project: got null, allowed: text"),
        ("data: {name: files, path: ~}", "data.path: got null, allowed: a file, folder or glob"),
        ("train:", "train: got null, allowed: settings by name, or a YAML file of them"),
        ("train: nowhere.yaml", "train: nowhere.yaml cannot be read (No such file or directory)"),
    ],
    ids=lambda value: value[:30],
)
def test_values_that_yaml_would_turn_into_others(text, message, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(text)
    (line,) = mistakes_of(train, ["--config", str(tmp_path / "mine.yaml")], capsys)
    assert line.startswith(message)
    assert mistakes_of(train, [f"--config={{{text}}}" if "{" in text else f"--config={{{text} }}"], capsys) == [line]


def test_a_sexagesimal_number_on_the_command_line(capsys):
    assert mistakes_of(train, ["--train.max_steps=1:30"], capsys) == [
        "train.max_steps: got 1:30, allowed: a whole number"
    ]


def test_settings_on_the_command_line_do_not_hide_another_mistake(capsys):
    assert mistakes_of(train, ["--model={dim: 64}", "--train.seed=x"], capsys) == [
        "train.seed: got x, allowed: a whole number"
    ]
    assert mistakes_of(train, ["--model={dim: 64, dim: 65}"], capsys) == [
        "model: {dim: 64, dim: 65} has dim twice, in line 1"
    ]
    (line,) = mistakes_of(train, ["--model={dim: 64"], capsys)
    assert line.startswith("model: {dim: 64 is not YAML (line 1")


def test_all_mistakes_are_reported_at_once(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("""
model: {dim: [128, 256], hierarchies: [1, 4], windows: 8, dropout: lots, seq_len: 2}
data: {name: file, path: mine.txt}
train: {max_steps: 0, betas: [0.9, 1.0], optimizer: adam}
""")
    flags = ["--train.lr=3", "--train.seed=x", "--train.batch_size=0", "--wandb.mode=of"]
    assert mistakes_of(train, ["--config", str(tmp_path / "mine.yaml"), *flags], capsys) == [
        "model.windows: no such setting; the nearest is model.window_sizes",
        "model.dropout: got lots, allowed: a number",
        "data.name: got file, allowed: enwik8, text8, files, hub or python",
        "train.optimizer: got adam, allowed: adamw or muon",
        "train.lr: no such setting; the nearest is train.learning_rate",
        "train.seed: got x, allowed: a whole number",
        "wandb.mode: got of, allowed: auto, online, offline or disabled",
        "model.seq_len: got 2, allowed: at least the largest compression, 4",
        "train.max_steps: got 0, allowed: 1 or above",
        "train.batch_size: got 0, allowed: 1 or above",
        "train.betas: got [0.9, 1.0], allowed: two values from 0 to below 1",
    ]


def test_settings_that_depend_on_a_wrong_one_are_not_reported(capsys):
    rests = ["--model.hierarchies=[1,x]", "--model.dim=[128,256]", "--data.name=file", "--data.head=true"]
    assert [line.partition(":")[0] for line in mistakes_of(train, rests, capsys)] == ["model.hierarchies", "data.name"]
    misspelt = ["--model.hierachies=[1,4]", "--model.dim=[128,256]", "--train.seed=-1"]
    assert [line.partition(":")[0] for line in mistakes_of(train, misspelt, capsys)] == [
        "model.hierachies",
        "train.seed",
    ]


def test_a_mistake_does_not_hide_settings_with_longer_names(capsys):
    lines = mistakes_of(train, ["--model.dim=x", "--model.dim_head=7"], capsys)
    assert [line.partition(":")[0] for line in lines] == ["model.dim", "model.dim_head"]


def test_a_wrong_vocabulary_is_reported_along_with_other_mistakes(capsys):
    lines = mistakes_of(train, [*CONFIG, "--model.num_tokens=128", "--train.seed=x"], capsys)
    assert [line.partition(":")[0] for line in lines] == ["train.seed", "model.num_tokens"]


def test_flags_override_config_files_in_any_order():
    assert load_config(["--train.max_steps=3", *CONFIG, "--train.seed", "4"]).train.max_steps == 3
    assert load_config([*CONFIG]).train.max_steps == 1320


def test_a_printed_config_can_be_used(tmp_path, capsys):
    flags = [*CONFIG, "--run_dir=a", "--train.betas=[0.8,0.9]", "--model.window_sizes=[64,null]"]
    with pytest.raises(SystemExit) as end:
        load_config([*flags, "--print_config"])
    assert end.value.code == 0
    (tmp_path / "mine.yaml").write_text(printed := capsys.readouterr().out)
    assert yaml.safe_load(printed)["model"]["window_sizes"] == [64, None]
    assert load_config(["--config", str(tmp_path / "mine.yaml")]) == load_config(flags)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("train.py --model.hier", "--model.hierarchies --model.hierarchical_stride --model.hierarchy_merge_all"),
        ("accelerate launch --cpu train.py --config configs/qu", "configs/quickstart.yaml"),
        ("python ./train.py --train.seed = 1 --train.optimizer mu", "muon"),
        ("python3 train.py --train.mixed_precision =", "auto no bf16 fp16"),  # as bash cuts it
        ("python eval", ""),
    ],
)
def test_a_shell_completes_settings(words, completed, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        load_config(["--print_completion", "bash"])
    assert not end.value.code
    script = f"""{capsys.readouterr().out}
        COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        function=$(complete -p ${{COMP_WORDS[0]}} | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function; echo "${{COMPREPLY[*]}}"
    """
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == completed, done.stderr


def test_a_quiet_launcher_adds_no_traceback(command):
    done = command("train.py", *CONFIG, "--train.seed=-1", launcher=(*LAUNCH, "--quiet"))
    assert done.returncode == 1 and "Traceback" not in done.stderr  # the launcher's own exit code
    error, note = done.stderr.splitlines()[-2:]
    assert error == "error: train.seed: got -1, allowed: 0 to 4294967295"
    assert note == "a traceback that follows is the launcher's, and says nothing more"
