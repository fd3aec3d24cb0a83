"""The documents agree with the code: links, paths, flags and settings that they name exist, and examples compile."""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import textwrap
import tomllib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from math import prod
from pathlib import Path
from typing import get_type_hints

import pytest
from accelerate.commands.launch import launch_command_parser

from model.generation.load import weight_shapes
from tests.conftest import ROOT
from training.config import Config, load_config

PROGRAMS = {"train.py", "evaluate.py", "generate.py", "plot.py"}
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"""(?:\]\(|(?:src|href)=")([^)"\s]+)""")
INLINE_CODE = re.compile(r"`([^`\n]+)`")
FOLDERS = ("benchmarks", "configs", "data", "docs", "evaluation", "examples", "model", "tests", "training", "utils")
# Paths in inline code: those with a folder of ours, and the files next to README.md.
PATH = re.compile(rf"(?:(?:{'|'.join(FOLDERS)})(?:/[\w.-]+)+/?|\.ci/run|(?:train|evaluate|generate|plot)\.py)")
ADDED = ("max", "float64", "sgd")  # values that CONTRIBUTING.md shows how to add
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def blocks(document: Path, language: str) -> list[str]:
    """The code blocks of a language, without the indentation of a list."""
    found = BLOCK.findall(document.read_text(encoding="utf-8"))
    return [textwrap.dedent(code) for _, name, code in found if name == language]


def commands(document: Path) -> list[list[str]]:
    """The words of every command in the shell blocks, without comments, variables and options of the shell."""
    found = []
    for block in blocks(document, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                found.append(words[: words.index("&&")])
                words = words[words.index("&&") + 1 :]
            found.append(words)
    return [words for words in found if words]


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def settings(config: type, prefix: str = "") -> set[str]:
    """All settings of a config, by their dotted names."""
    hints = get_type_hints(config)
    names = set()
    for field in fields(config):
        names.add(prefix + field.name)
        if is_dataclass(hints[field.name]):
            names |= settings(hints[field.name], f"{prefix}{field.name}.")
    return names


def flags_in_code(files: Iterable[Path]) -> set[str]:
    """Every string in some files that looks like a flag."""
    flags = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                flags |= set(re.findall(r"--[\w-]+", node.value))
    return flags


def known_flags(program: str) -> set[str]:
    """The flags of one of our programs, or of a module of `benchmarks`."""
    of_settings = {f"--{name}" for name in settings(Config)}
    if program == "train.py":
        return of_settings | {"--help", "--config", "--print_completion"}
    if program == "plot.py":
        return flags_in_code([ROOT / program])
    if program in PROGRAMS:  # dashes and underscores are alike
        names = settings(importlib.import_module(Path(program).stem).Arguments)
        return {f"--{name}" for name in names} | {f"--{name.replace('_', '-')}" for name in names}
    folder = ROOT / Path(*program.split(".")).parent
    return flags_in_code(folder.glob("*.py")) | of_settings


def test_the_readme_counts_the_parameters_of_presets():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    counted = re.findall(
        r"`([\w-]+)\.yaml`, ([\d.]+) M\b(?: parameters)?(?:, ([\d.]+) M of them outside tables)?", text
    )
    assert len(counted) >= 6
    for name, total, outside in counted:
        config = load_config(["--config", str(ROOT / "configs" / f"{name}.yaml")])
        counts = {weight: prod(shape) for weight, shape in weight_shapes(config.model).items()}
        assert is_rounded(sum(counts.values()), total), name
        in_tables = sum(count for weight, count in counts.items() if weight.startswith("embedding."))
        assert not outside or is_rounded(sum(counts.values()) - in_tables, outside), name


def is_rounded(count: int, millions: str) -> bool:
    """Whether a number of millions, as it is written, is this count."""
    digits = len(millions.partition(".")[2])
    return f"{count / 1e6:.{digits}f}" == millions


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(document):
    for link in LINK.findall(document.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = document.parent / path if path else document
        assert target.exists(), f"{document.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{document.name} links to {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_in_the_text_exist(document):
    text = BLOCK.sub("", document.read_text(encoding="utf-8"))
    named = [path for code in INLINE_CODE.findall(text) for path in PATH.findall(code) if "NAME" not in path]
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_files_flags_and_settings_that_exist(document):
    flags_of_launcher = set(launch_command_parser()._option_string_actions)
    for words in commands(document):
        paths = [word for word in words if re.fullmatch(r"(?:configs|tests)/[\w./-]+", word)]
        assert [path for path in paths if not (ROOT / path).exists()] == [], words

        position = next((i for i, word in enumerate(words) if word in PROGRAMS or word.startswith("benchmarks.")), None)
        if position is None:
            continue  # not a program of ours
        flags = {word.partition("=")[0] for word in words[position + 1 :] if word.startswith("--")}
        assert flags <= known_flags(words[position]), words
        if words[:2] == ["accelerate", "launch"]:
            assert {word for word in words[2:position] if word.startswith("--")} <= flags_of_launcher, words


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_settings_in_commands_fit_the_config_that_they_change(document):
    for words in commands(document):
        if "train.py" not in words:
            continue
        arguments = words[words.index("train.py") + 1 :]
        options = [word for word in arguments if word.startswith(("--model.", "--train."))]
        if "--config" in arguments and not any(word.partition("=")[2] in ADDED for word in options):
            config = arguments[arguments.index("--config") + 1]
            load_config(["--config", str(ROOT / config), *options])  # exits on a mistake


def test_the_examples_of_the_readme_compile():
    examples = blocks(ROOT / "README.md", "python")
    assert examples
    for example in examples:
        compile(example, "README.md", "exec")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_examples_import_names_that_exist(document):
    for example in blocks(document, "python"):
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in FOLDERS:
                module = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert missing == [], f"{document.name} imports {missing} from {node.module}"


def test_make_and_ci_use_the_python_versions_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    low, high = map(int, re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups())
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"(3, {low}) <= sys.version_info[:2] <= (3, {high - 1})" in makefile
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.findall(r'"3\.(\d+)"', workflow) == [str(minor) for minor in range(low, high)]


@needs_make
def test_make_prints_its_targets():
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"quickstart", "test", "lint", "bench"} <= set(re.findall(r"make (\w+)", done.stdout))


@needs_make
def test_make_installs_once_and_again_when_the_requirements_change(tmp_path):
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    log = tmp_path / "log.txt"
    environment = tmp_path / "an environment"
    (environment / "bin").mkdir(parents=True)
    for name in ("python", "accelerate"):  # programs that only write down how they were called
        program = environment / "bin" / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> "{log}"\n')
        program.chmod(0o755)

    def quickstart() -> list[str]:
        """What `make quickstart` calls."""
        log.unlink(missing_ok=True)
        variables = os.environ | {"VIRTUAL_ENV": str(environment)}
        subprocess.run(["make", "quickstart"], cwd=tmp_path, env=variables, capture_output=True, check=True)
        return [line for line in log.read_text().splitlines() if not line.startswith("python -c")]

    install = "python -m pip install -r requirements.txt"
    train = "accelerate launch train.py --config configs/quickstart.yaml"
    sample = "python generate.py runs/quickstart --prompt def  --top-p 0.95"
    assert quickstart() == ["python -m pip --version", install, train, sample]
    assert quickstart() == [train, sample]

    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "runs" / "quickstart" / "config.yaml").touch()
    resume = "accelerate launch train.py --run_dir runs/quickstart --resume"
    assert quickstart() == [resume, sample]

    (tmp_path / "requirements.txt").write_text("torch\n")
    assert install in quickstart()
