"""Run the programs with drawn command lines, config files and run directories, most of them wrong.

    python -m tests.stress.fuzz_command_line --minutes 5 --seed 0
    python -m tests.stress.fuzz_command_line --seed 0 --case 1234     # one case again; its files are kept

A case is a command line of train.py, evaluate.py, generate.py or plot.py, and the files that it names:
- flags are dropped, doubled, misspelled and mixed up, with values that YAML, a terminal or a file system misread;
- a config file is changed in one place, or is none at all;
- a file of a run directory is damaged, of another kind, or holds another value.
It runs in a process of its own, as `python PROGRAM.py` does. Runs that would train for long are not started.

What must hold: exit code 0, or 2 with only lines that begin with `error:` on stderr (warnings aside), or 1 with one
such line; no traceback; no control or invisible characters in the output; an end within 30 seconds and 1 GiB of memory.
"""

import copy
import io
import json
import os
import random
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unicodedata import category

import yaml

from tests.conftest import ROOT, TEXT, TINY
from tests.stress.programs import is_warning, tiny_config
from tests.stress.report import Fault, Report, case_numbers, fuzzing_parser
from tests.stress.worker import MAX_MEMORY, Worker
from utils.files import sha256

SECONDS = 30
LARGEST = {
    "max_steps": 3,
    "batch_size": 64,
    "gradient_accumulation_steps": 4,
    "sample_length": 64,
    "validate_bytes": 10**5,
}
PROGRAMS = ["train.py"] * 5 + ["generate.py"] * 3 + ["evaluate.py"] * 2 + ["plot.py"] * 2

VALUES = ["", " ", "~", "null", "None", "#", "# a comment", "&a", "*a", "{", "[", "]", "{}", "[]", "[[1]]"]
VALUES += ["{a: 1}", "- 1", "|", ">", "!!python/object/apply:os.getcwd []", "!!binary aGk=", "? a", "a: b", "'"]
VALUES += ['"', "\\", "%", "@", "`", "yes", "true", "off", "nan", ".nan", "inf", "-.inf", "1e999", "1e400", "-1"]
VALUES += ["-0", "0", "1", "2", "0.5", "1e-39", "1e-400", "0x10", "0b1", "1_000", "1:30", "2026-11-27", "1,2"]
VALUES += ["[1, 4]", "[1, null]", "1/2", "1.", "१", "½", "\udcff", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07"]
VALUES += ["\u202egnp.exe", "\u200b", "a\nb", "\r", "\t", "🙂", "é", "x" * 5000, "/dev/null", "/dev/full"]
VALUES += ["/dev/zero", "/proc/self/mem", "folder", "pipe", "nowhere", "nowhere/below", "text.txt", "run", "./run"]
VALUES += ["tiny.yaml", "run/config.yaml", "*", "run/*", "text[1].txt", "--", "-", "--seed", "auto", "cpu", "cuda"]
VALUES += ["cuda:99", "meta", "mps"]
HUGE = ["4294967296", "99999999999999999999", "-99999999999999999999"]  # not for what would take for ever
# Flags with a value that fits; None for those that take none.
SCORING = {"split": "valid", "file": "text.txt", "limit": "100", "context": "16", "stride": "4", "batch_size": "2"}
SAMPLING = {"length": "5", "temperature": "0.5", "top_k": "3", "top_p": "0.9", "min_p": "0.1", "seed": "7"}
READING = {"prompt": "# a", "score": "text.txt", "heatmap": "map.html", "prompt_file": "text.txt"}
FLAGS: dict[str, dict[str, str | None]] = {
    "evaluate.py": SCORING | {"verify": None, "device": "cpu"},
    "generate.py": SAMPLING
    | READING
    | {"stop": "e", "repetition_penalty": "2", "num_samples": "2", "no_cache": None, "json": None},
    "plot.py": {"output": "a.png", "by": "bytes"},
}
ENDLESS = {"length", "num_samples", "max_steps"}

# Config files, besides those that are a changed config.
FILES = [b"", b"\n", b"# nothing\n", b"null\n", b"[]\n", b"- 1\n", b"text\n", b"\x00\x01\x02", b"\xff\xfe\xfd"]
FILES += [b"\xef\xbb\xbftrain: {seed: 1}\n", "train: {seed: 1}\n".encode("utf-16")]
FILES += [b"train: {seed: 1}\ntrain: {seed: 2}\n", b"train: {seed: 1, seed: 2}\n", b"a: &a [1]\nb: *a\n"]
FILES += [b"train: &t {seed: 1}\nmodel: *t\n", b"train: {<<: {seed: 1}}\n", b"a: *b\n", b"x: &x [*x]\n"]
FILES += [b"[" * 5000, b"{a: " * 3000 + b"1" + b"}" * 3000, b"a: " * 50, b"\ttrain: 1\n", b"train:\n\tseed: 1\n"]
FILES += [b"%YAML 9.9\n---\na: 1\n", b"--- \na: 1\n--- \nb: 2\n", b"!!python/object/apply:os.system [ls]\n"]
FILES += [b"1: 2\n", b"null: 1\n", b"[a]: 1\n", b"? {a: 1}\n: 2\n", b"\x1b[31m: 1\n"]
FILES += ["\u202etrain: 1\n".encode(), "tr\u200bain: {seed: 1}\n".encode(), b"train: 2026-11-27\n"]
FILES += [b"train: !!set {a, b}\n"]
# Each line is ten times as long as the one before: "a billion laughs"
LAUGHS = "a0: &a0 [ha]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
FILES += [LAUGHS.encode(), (LAUGHS + "train: *a9\n").encode(), (LAUGHS + "train: {seed: *a9}\n").encode()]


@dataclass
class Case:
    """A command line, and the folder to run it in."""

    program: str
    argv: list[str]
    folder: Path
    changes: list[str]
    """what was done to files, in words"""


# -- the process that runs the programs


def prepare() -> None:
    import matplotlib.figure  # noqa: F401

    import evaluate  # noqa: F401
    import generate  # noqa: F401
    import train  # noqa: F401


def run_in_worker(job: tuple[str, list[str], Path]) -> dict[str, Any]:
    """Run a program as `python PROGRAM.py ARGV` would in a folder. Returns its exit code and output."""
    from accelerate.state import AcceleratorState

    program, argv, folder = job
    os.chdir(folder)
    os.environ["HOME"] = os.environ["XDG_CACHE_HOME"] = str(folder)
    if program == "train.py" and is_too_large(argv):
        return {"code": None, "stdout": b"", "stderr": b""}

    before = sys.argv, sys.stdout, sys.stderr
    stdout, stderr = io.BytesIO(), io.BytesIO()
    streams = [
        io.TextIOWrapper(stdout, encoding="utf-8", errors="strict", write_through=True),
        io.TextIOWrapper(stderr, encoding="utf-8", errors="backslashreplace", write_through=True),
    ]
    sys.argv, (sys.stdout, sys.stderr) = [program, *argv], streams
    code: Any = 0
    try:
        runpy.run_path(str(ROOT / program), run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv, sys.stdout, sys.stderr = before
        AcceleratorState._reset_state(reset_partial_state=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
    return {"code": code, "stdout": stdout.getvalue(), "stderr": stderr.getvalue()}


def is_too_large(argv: list[str]) -> bool:
    """Whether a command line of train.py is right, and would train for long, compile, or ask the network."""
    from contextlib import redirect_stderr, redirect_stdout

    from training.config import load_config

    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            config = load_config(argv)
    except BaseException:  # the program itself will show it
        return False
    model, train = config.model.to_dict(), config.train
    buckets = model.pop("ngram_buckets")
    sizes = [value for value in yaml_leaves(model) if isinstance(value, int | float)]
    return (
        max(sizes) > 256  # as many as num_tokens
        or buckets > 1 << 14
        or any(getattr(train, name) > largest for name, largest in LARGEST.items())
        or train.compile
        or config.wandb.mode != "disabled"
        or "trackio" in train.trackers
        or config.data.name not in ("files", "hub")
    )


def yaml_leaves(value: Any) -> Iterator[Any]:
    """All values in lists and dicts."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from yaml_leaves(each)
    else:
        yield value


# -- cases


def draw_case(folder: Path, trained: Path, chance: random.Random) -> Case:
    """Draw a program, make its files in a folder, and draw its command line."""
    shutil.copytree(trained, folder)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    program = chance.choice(PROGRAMS)
    changes = []
    if program == "train.py" and chance.random() < 0.75:
        argv = ["--config", "tiny.yaml", "--run_dir", chance.choice(["new", "new", "run"]), "--train.max_steps=1"]
        if chance.random() < 0.5:
            changes.append(change_config(folder / "tiny.yaml", chance))
    else:
        argv = {
            "train.py": ["--run_dir", "run", "--resume", "--train.max_steps=3"],
            "generate.py": ["run", *chance.choice([["--prompt", "a"], ["--score", "text.txt"], []])],
            "evaluate.py": ["run", "--limit", "500"],
            "plot.py": chance.choice([["run"], ["run", "run/metrics.jsonl"], ["run", "folder"]]),
        }[program]
        if chance.random() < 0.6:
            changes.append(break_run(folder / "run", program, chance))
    count = chance.choice([0, 0, 0, 1, 2]) if changes else chance.choice([1, 1, 1, 2, 3, 5])
    for _ in range(count):
        argv = change_arguments(argv, program, chance)
    return Case(program, argv, folder, changes)


def change_arguments(argv: list[str], program: str, chance: random.Random) -> list[str]:
    """Change a command line at one place."""
    position = chance.randrange(len(argv) + 1)
    how = chance.choice(["flag", "flag", "flag", "flag", "flag", "drop", "double", "swap", "word", "value"])
    if how == "flag" or not argv:
        return argv[:position] + draw_flag(program, chance) + argv[position:]
    if how == "word":
        return [*argv[:position], chance.choice(VALUES), *argv[position:]]
    index = position % len(argv)
    if how == "drop":
        return argv[:index] + argv[index + 1 :]
    if how == "double":
        return argv[:index] + [argv[index]] * 2 + argv[index + 1 :]
    if how == "value":
        return [*argv[:index], chance.choice(VALUES), *argv[index + 1 :]]
    swapped = list(argv)
    swapped[index], swapped[0] = swapped[0], swapped[index]
    return swapped


def draw_flag(program: str, chance: random.Random) -> list[str]:
    """A flag of a program with a value, either of them perhaps written wrongly."""
    name, value = chance.choice(list(flags_of(program).items()))
    is_right = chance.random() < 0.4
    if is_right and chance.random() < 0.5:
        name = name.replace("_", "-")
    if is_right:
        return [f"--{name}"] if value is None else [f"--{name}={value}"]

    values = VALUES if name.rpartition(".")[2] in ENDLESS else VALUES + HUGE
    value = chance.choice(values)
    if chance.random() < 0.15:
        name = misspelled(name, chance)
    if chance.random() < 0.3:
        name = name.replace("_", "-")
    dashes = chance.choice(["--"] * 12 + ["-", "---", "", "--no_"])
    return chance.choice([[f"{dashes}{name}={value}"], [f"{dashes}{name}", value], [f"{dashes}{name}"]])


@cache
def flags_of(program: str) -> dict[str, str | None]:
    """The flags of a program, without dashes, with a value that fits."""
    if program != "train.py":
        return FLAGS[program]
    from training.config import Config

    flags: dict[str, str | None] = {"help": None, "resume": None, "print_config": None}
    flags |= {"config": "tiny.yaml", "run_dir": "other", "model": "{}"}
    tiny = yaml.safe_load(TINY)
    for section, values in Config().to_dict().items():
        if isinstance(values, dict):
            settings = values | tiny.get(section, {})
            flags |= {f"{section}.{name}": yaml_text(value) for name, value in settings.items()}
    return flags


def yaml_text(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def misspelled(name: str, chance: random.Random) -> str:
    index = chance.randrange(len(name))
    options = [
        name[:index] + name[index + 1 :],
        name[:index] + name[index] + name[index:],
        name.upper(),
        name[: index + 1],
    ]
    return chance.choice([*options, f"{name}\x1b[31m", f"\u202e{name}", f"{name}é"])


def change_config(path: Path, chance: random.Random) -> str:
    """Change a config file, or replace it. Returns what was done."""
    if chance.random() < 0.5:
        content = chance.choice(FILES)
        path.write_bytes(content)
        return f"{path.name} is {content[:80]!r}"
    text = path.read_text()
    how = chance.choice(["value", "value", "value", "character", "line", "twice"])
    if how == "value":
        settings = yaml.safe_load(text)
        done = change_leaf(settings, chance)
        path.write_text(yaml.safe_dump(settings, allow_unicode=True), errors="surrogateescape")
        return f"in {path.name}, {done}"
    lines = text.splitlines(keepends=True)
    index = chance.randrange(len(lines))
    if how == "character":
        at = chance.randrange(len(text))
        text = (
            text[:at]
            + chance.choice(["\t", "\x00", "\x1b", "{", "}", "[", ":", "#", "&", "*", "é", "\u2028"])
            + text[at + 1 :]
        )
    elif how == "line":
        text = "".join(lines[:index] + lines[index + 1 :])
    else:
        text = "".join([*lines, lines[index]])
    path.write_text(text)
    return f"{path.name} has another {how}, at line {index + 1}"


def change_leaf(tree: Any, chance: random.Random) -> str:
    """Change a value or a name somewhere in nested dicts and lists. Returns what was done."""
    while isinstance(inner := tree[key := pick_key(tree, chance)], dict | list) and inner and chance.random() < 0.85:
        tree = inner
    how = chance.choice(["value", "value", "value", "deleted", "renamed"])
    if how == "value":
        odd: list[Any] = [
            None,
            [],
            {},
            "",
            -1,
            0,
            10**6,
            10**30,
            1e300,
            float("nan"),
            float("inf"),
            True,
            [[1]],
            {"a": {}},
        ]
        tree[key] = chance.choice([*odd, chance.choice(VALUES)])
        return f"{key!r} has the value {str(tree[key])[:80]!r}"
    value = tree.pop(key)
    if how == "renamed" and isinstance(tree, dict):
        name = misspelled(str(key), chance)
        tree[name] = value
        return f"{key!r} is named {name!r}"
    return f"{key!r} is missing"


def pick_key(tree: Any, chance: random.Random) -> Any:
    return chance.choice(list(tree)) if isinstance(tree, dict) else chance.randrange(len(tree))


def break_run(run: Path, program: str, chance: random.Random) -> str:
    """Break a file of a run directory that a program reads. Returns what was done."""
    checkpoint = max((run / "checkpoints").iterdir())
    files = {
        "train.py": [run / "config.yaml", run / "metrics.jsonl", *sorted(checkpoint.iterdir())],
        "generate.py": [run / "model" / "config.json", run / "model" / "model.safetensors"],
        "evaluate.py": [run / "config.yaml", run / "model" / "config.json", run / "model" / "model.safetensors"],
        "plot.py": [run / "metrics.jsonl"],
    }[program]
    path = chance.choice(files)
    done = break_file(path, chance)
    is_of_checkpoint = path.parent == checkpoint and path.name != "manifest.json"
    if is_of_checkpoint and path.is_file() and chance.random() < 0.5:  # so that the damage is not noticed
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest["sha256"][path.name] = sha256(path)
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
        done += ", with a checksum that fits"
    return f"{path.relative_to(run)} {done}"


def break_file(path: Path, chance: random.Random) -> str:
    """Break a file. Returns what was done."""
    content = path.read_bytes()
    hows = ["deleted", "a folder", "a pipe", "a link to itself", "cut", "flipped", "other content"]
    is_text = path.suffix in (".json", ".jsonl", ".yaml")
    how = chance.choice([*hows, *(["a leaf"] * 12 if is_text else [])])
    if how == "a leaf":
        return change_structured(path, chance)
    if how == "cut":
        path.write_bytes(content[: chance.randrange(len(content))])
    elif how == "flipped":
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
    elif how == "other content":
        texts = [
            b"null",
            b"[]",
            b"{}",
            b'"text"',
            b"1",
            b"NaN",
            b'{"sha256": []}',
            b"[" * 100_000,
            b"\xff\xfe",
            b"{",
            b"\x00" * 100,
        ]
        other = chance.choice([*texts, *FILES])
        path.write_bytes(other)
        return f"is {other[:80]!r}"
    else:
        path.unlink()
        if how == "a folder":
            path.mkdir()
        elif how == "a pipe":
            os.mkfifo(path)
        elif how == "a link to itself":
            path.symlink_to(path.name)
    return f"was {how}" if how in ("cut", "flipped", "deleted") else f"is {how}"


def change_structured(path: Path, chance: random.Random) -> str:
    """Change a value in a file of JSON, of JSON lines or of YAML."""
    text = path.read_text()
    if path.suffix == ".yaml":
        settings = yaml.safe_load(text)
        done = change_leaf(settings, chance)
        path.write_text(yaml.safe_dump(settings), errors="surrogateescape")
        return f"is changed: {done}"
    if path.suffix == ".json":
        values = json.loads(text)
        done = change_leaf(values, chance)
        path.write_text(json.dumps(values))
        return f"is changed: {done}"
    lines = text.splitlines()
    index = chance.randrange(len(lines))
    line = json.loads(lines[index])
    before = copy.deepcopy(line)
    done = change_leaf(line, chance)
    lines[index] = chance.choice(
        [json.dumps(line), json.dumps(line), chance.choice(["null", "[]", "1", "{}", "", "x"])]
    )
    path.write_text("\n".join(lines) + "\n")
    return f"is changed in line {index + 1}: {done if line != before else 'other content'}"


# -- checks


def check(result: dict[str, Any]) -> str:
    """The outcome in words. Raises a Fault if the program did not end as it must."""
    code = result["code"]
    if code is None:
        return "not run"
    stdout, stderr = result["stdout"].decode("utf-8"), result["stderr"].decode("utf-8")
    if "Traceback (most recent call last)" in stdout + stderr:
        raise Fault("a traceback")
    for name, text in (("stdout", stdout), ("stderr", stderr)):
        bad = [c for c in text if category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n\t\u200c\u200d"]
        if name == "stderr" and bad == ["\r"] * len(bad):  # of a progress bar
            continue
        if bad:
            raise Fault(f"{name} has the characters {sorted(set(map(ascii, bad)))}")
    lines = [line for line in stderr.splitlines() if line.strip() and not is_warning(line)]
    errors = [line for line in lines if line.startswith("error: ")]
    if code == 0:
        if errors:
            raise Fault("an error with exit code 0")
        return "done"
    if code not in (1, 2):
        raise Fault(f"exit code {code!r}")
    if not errors or lines != errors or (code == 1 and len(errors) > 1):
        raise Fault(f"exit code {code}, and stderr has other lines than `error:`")
    if any(len(line) > 20_000 for line in errors):
        raise Fault("a line of more than 20,000 characters")
    return "refused" if code == 2 else "failed in a line"


# -- the program


def train_once(folder: Path, worker: Worker) -> None:
    """Train a tiny run in a folder, for the cases to copy."""
    for name in ("text.txt", "text[1].txt"):
        (folder / name).write_text(TEXT)
    tiny_config(folder, folder / "text.txt")
    argv = ["--config", "tiny.yaml", "--run_dir", "run", "--train.max_steps=2", "--train.checkpoint_every=1"]
    answer = worker.call(("train.py", argv, folder), 4 * SECONDS)
    if answer.traceback or answer.result["code"] != 0:
        raise Fault(f"the run to copy was not trained: {answer}")


def run_case(case: Case, worker: Worker) -> str:
    """Run a case. Returns the outcome; raises a Fault that shows the output."""
    answer = worker.call((case.program, case.argv, case.folder), SECONDS)
    if answer.traceback is not None:
        raise Fault(answer.traceback)
    try:
        if answer.peak_bytes > MAX_MEMORY:
            raise Fault(f"{answer.peak_bytes >> 20} MiB of memory")
        return check(answer.result)
    except (Fault, UnicodeDecodeError) as problem:
        result = answer.result
        shown = [f"{problem}", f"exit code {result['code']!r}"]
        shown += [f"{name}: {result[name][-1500:].decode(errors='replace')!a}" for name in ("stdout", "stderr")]
        raise Fault("\n".join(shown)) from None


def main(argv: list[str] | None = None) -> int:
    args = fuzzing_parser(__doc__).parse_args(argv)

    report = Report("fuzz_command_line", args.seed)
    folder = Path(tempfile.mkdtemp(prefix="command-line-"))
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}
    worker = Worker(run_in_worker, prepare)
    trained = folder / "trained"
    trained.mkdir()
    train_once(trained, worker)

    for number in case_numbers(args, report):
        case = draw_case(folder / str(number), trained, random.Random(f"{args.seed}-{number}"))
        title = f"case {number}, {case.program}"
        try:
            report.passed(title, run_case(case, worker), show=args.case is not None)
        except Fault as fault:
            line = ascii(shlex.join([case.program, *case.argv]))
            report.failed(title, f"{fault}\ncommand: {line}\nchanged: {'; '.join(case.changes) or 'nothing'}")
        if args.case is not None:
            print(f"command: {shlex.join([case.program, *case.argv])!a}, changed: {case.changes}, in {case.folder}")
        else:
            shutil.rmtree(case.folder)
    worker.stop()
    if args.case is None:
        shutil.rmtree(folder)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
