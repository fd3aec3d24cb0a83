"""The structure of the code: imports run one way, and packages use what other packages export."""

import ast
import importlib
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

# What each part may import of ours apart from itself.
MAY_IMPORT = {
    "utils": set(),
    "data": {"utils"},
    "model": {"utils"},
    "evaluation": {"data", "model", "utils"},
    "training": {"data", "evaluation", "model", "utils"},
    "docs": {"utils"},
    "programs": {"data", "evaluation", "model", "training", "utils"},  # train.py and its neighbours, not one another
    "benchmarks": {"data", "evaluation", "model", "training", "utils", "plot"},
}
FILES = {part: sorted((ROOT / part).rglob("*.py")) for part in MAY_IMPORT} | {"programs": sorted(ROOT.glob("*.py"))}
OURS = {*MAY_IMPORT, "tests", *(path.stem for path in FILES["programs"])}
# What others take from inside the model: classes to compile and shard, and the parts that level ablation replaces.
INNER = {
    ("model.block", "Block"),
    ("model.merge", "Merge"),
    ("model.merge", "LinearMerge"),
    ("model.segments", "align"),
    ("model.tables", "HashTables"),
}


class Import(NamedTuple):
    path: Path
    module: str  # as in `from module import name`
    name: str | None  # None in `import module`

    def __str__(self):
        return f"{self.path.relative_to(ROOT)}: {self.name or ''} from {self.module}"


def imports(path: Path) -> list[Import]:
    """Imports of our own code, anywhere in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [Import(path, alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full here"
            found += [Import(path, node.module, alias.name) for alias in node.names]
    return [each for each in found if each.module.partition(".")[0] in OURS]


def is_module(name: str) -> bool:
    return (ROOT / Path(*name.split("."))).with_suffix(".py").is_file()


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_run_one_way(part):
    found = [each for path in FILES[part] for each in imports(path)]
    assert found or part in ("docs", "programs")  # every package imports from itself, so this finds imports
    allowed = MAY_IMPORT[part] | {part}
    assert [str(each) for each in found if each.module.partition(".")[0] not in allowed] == []


def test_no_imports_run_in_a_circle():
    graph = {}
    for path in (path for files in FILES.values() for path in files):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        used = {f"{e.module}.{e.name}" if is_module(f"{e.module}.{e.name}") else e.module for e in imports(path)}
        graph[name] = used
    assert "training.config" in graph["training.optimizer"] and "model.flex" in graph["model.attend"]
    list(TopologicalSorter(graph).static_order())  # raises a CycleError that names the circle


@pytest.mark.parametrize("package", ["data", "evaluation", "model", "training", "utils"])
def test_packages_import_only_what_others_export(package):
    """A name from its `__init__`, the same name from where it is defined, or anything from a module that it lists."""
    face = importlib.import_module(package).__all__
    assert sorted(set(face)) == sorted(face)
    outside = [e for part, files in FILES.items() if part != package for path in files for e in imports(path)]
    outside = [e for e in outside if e.module.partition(".")[0] == package and (e.module, e.name) not in INNER]
    assert outside
    shown = {name if is_module(f"{package}.{name}") else f"{package}: {name}" for name in face}
    shown |= {name for name in face if (ROOT / package / name).is_dir()}
    inside = {e: e.module.split(".")[1:2] for e in outside}  # the module or subpackage that is imported from
    hidden = [e for e in outside if not set(inside[e]) & shown and f"{package}: {e.name}" not in shown]
    assert list(map(str, hidden)) == []
