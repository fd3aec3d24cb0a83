"""The type checker means something: a misspelled attribute is reported where it is."""

import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

CHECKED = ["data", "evaluation", "model", "training", "utils"]
MISSPELLINGS = [
    ("model/block.py", "self.to_hidden(", "self.to_hiddn("),  # of a module
    ("model/merge.py", "self.to_hidden.bias", "self.to_hiddn.bias"),
    ("model/transformer.py", "level.segments", "level.segmentss"),  # of a level's module
    ("model/compress.py", "level.compression", "level.compresion"),  # of a level's settings
    ("model/kv_ring.py", "self.kv.shape", "self.vk.shape"),  # of the state of generation
    ("training/parallel.py", "config.train.mixed_precision", "config.train.mixed_precison"),
    ("training/checkpoints.py", "state.step", "state.stepp"),
]


@pytest.fixture(scope="module")
def complaints(tmp_path_factory) -> str:
    """The type checker's report on a copy of the code with every misspelling in it."""
    folder = tmp_path_factory.mktemp("misspelled")
    for package in CHECKED:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for file, right, wrong in MISSPELLINGS:
        text = (folder / file).read_text(encoding="utf-8")
        assert right in text, f"{file} has no {right} any more"
        (folder / file).write_text(text.replace(right, wrong, 1), encoding="utf-8")
    command = ["ty", "check", "--output-format", "concise", "--python", sys.prefix, *CHECKED]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize(("file", "right", "wrong"), MISSPELLINGS, ids=[wrong for _, _, wrong in MISSPELLINGS])
def test_a_misspelled_attribute_is_reported(file, right, wrong, complaints):
    before, _, _ = (ROOT / file).read_text(encoding="utf-8").partition(right)
    line = before.count("\n") + 1
    assert f"{file}:{line}:" in complaints, complaints
