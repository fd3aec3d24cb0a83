"""The recipes of CONTRIBUTING.md work: a copy of the repository that follows all of them passes their tests."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.runs import NO_GPU, metrics
from tests.test_documents import FOLDERS, blocks

GUIDE = ROOT / "CONTRIBUTING.md"


@dataclass(frozen=True)
class Insertion:
    """Code of CONTRIBUTING.md that goes into a file, above a line and as far indented."""

    file: str
    before: str
    """how that line begins; empty for the end of the file, which may be a new one"""
    code: str
    """how a block of Python in CONTRIBUTING.md begins, or a whole line of code in its text"""


@dataclass(frozen=True)
class Replacement:
    """What CONTRIBUTING.md says in words, such as "add the name": `old`, which a file has once, becomes `new`."""

    file: str
    old: str
    new: str


INSERTIONS = [
    # Add a way to compress
    Insertion("model/compress.py", 'if level.compress_type == "attention"', 'if level.compress_type == "max":'),
    Insertion("model/compress.py", "return self.net(rearrange(", 'if self.compress_type == "max":'),
    # Add a loss
    Insertion("model/losses.py", "BUILDERS: ", "class Bag(AuxiliaryLoss):"),
    Insertion("model/losses.py", "by_level: ", "bag: Tensor | None = None"),
    Insertion("model/losses.py", '"quantizer": ', '"bag": Bag,'),
    Insertion("model/config.py", '"quantizer": ', '"bag": "bag_loss_weight",'),
    Insertion("model/config.py", "quantizer_loss_weight: ", "bag_loss_weight: "),
    Insertion("training/resume.py", '"model.quantizer_loss_weight": ', '"model.bag_loss_weight": LOSSES,'),
    Insertion(
        "tests/model/strategies.py",
        '"quantizer_loss_weight": ',
        '"bag_loss_weight": draw(st.sampled_from([0.0, 0.5])),',
    ),
    Insertion("tests/model/test_transformer.py", '"quantizer": ', '"bag": "bag_loss_weight",'),
    Insertion("tests/training/test_resume.py", '"quantizer_loss_weight": ', '"bag_loss_weight": 0.2,'),
    Insertion("tests/model/test_losses.py", "", "@given(**SHAPES)\ndef test_bag_"),
    # Add a corpus
    Insertion("data/corpora.py", "READERS = {", "LICENCES = "),
    Insertion("data/corpora.py", '"python": ', '"licences": _licences,'),
    Insertion("tests/data/test_corpora.py", "", "def test_licences_"),
    # Add an attention backend
    Insertion("model/attend.py", "BACKENDS: ", "def float64_attention("),
    Insertion("model/attend.py", '"flex": ', '"float64": float64_attention,'),
    # Add a tracker
    Insertion("training/trackers/scores.py", "", '"""RUN_DIR/scores.csv: '),
    Insertion("training/trackers/__init__.py", '"trackio": ', '"scores": ScoresTracker,'),
    Insertion("tests/training/test_trackers.py", "", "def test_scores_"),
    # Add an optimizer or a schedule
    Insertion("training/optimizer.py", "OPTIMIZERS: ", "def sgd("),
    Insertion("training/schedules.py", "SCHEDULES: ", "def smooth("),
]
REPLACEMENTS = [
    # Add a way to compress
    Replacement("model/config.py", '"attention", "last"))', '"attention", "last", "max"))'),
    Replacement("tests/model/strategies.py", '"attention", "last"]', '"attention", "last", "max"]'),
    Replacement("tests/model/test_config.py", "conv, mean, attention or last", "conv, mean, attention, last or max"),
    Replacement("tests/model/test_compress.py", '"attention", "last"])\n)', '"attention", "last", "max"])\n)'),
    Replacement(
        "tests/model/test_compress.py",
        "            expected = compress.net(chunk[-1])\n",
        "            expected = compress.net(chunk[-1])\n"
        '        elif kind == "max":\n'
        "            expected = compress.net(chunk.amax(0))\n",
    ),
    # Add a loss
    Replacement("tests/model/test_losses.py", "import ByteLoss", "import Bag, ByteLoss"),
    # Add a corpus
    Replacement("data/config.py", '"hub", "python"]', '"hub", "python", "licences"]'),
    Replacement("tests/test_mistakes.py", "hub or python", "hub, python or licences"),
    # Add a tracker
    Replacement(
        "training/trackers/__init__.py",
        "from training.trackers.trackio",
        "from training.trackers.scores import ScoresTracker\nfrom training.trackers.trackio",
    ),
    # Add an optimizer or a schedule
    Replacement("training/optimizer.py", '"muon": muon}', '"muon": muon, "sgd": sgd}'),
    Replacement("training/config.py", '["adamw", "muon"]', '["adamw", "muon", "sgd"]'),
    Replacement("tests/test_mistakes.py", "adamw or muon", "adamw, muon or sgd"),
    Replacement("training/schedules.py", '"linear": linear}', '"linear": linear, "smooth": smooth}'),
    Replacement("training/config.py", '["cosine", "linear"]', '["cosine", "linear", "smooth"]'),
]

# The tests that run in the copy.
TESTS = [
    "tests/model/test_compress.py::test_mean_and_attention_are_computed_within_each_chunk",
    "tests/model/test_config.py::test_an_illegal_argument_is_reported_with_its_value[compress_type]",
    "tests/model/test_config.py::test_a_config_survives_json",
    "tests/model/test_losses.py::test_bag_predicts_the_bytes_ahead_in_any_order",
    "tests/model/test_transformer.py::test_a_loss_of_weight_0_builds_nothing_and_costs_nothing",
    "tests/training/test_resume.py::TestSettings::test_the_table_has_every_setting",
    "tests/training/test_resume.py::TestSettings::test_settings_that_are_said_to_shape_no_weights_shape_none",
    "tests/data/test_corpora.py::test_licences_are_read_in_the_order_of_packages",
    "tests/data/test_corpora.py::test_every_corpus_that_the_config_allows_has_a_reader",
    "tests/test_mistakes.py::test_all_mistakes_are_reported_at_once",
    "tests/model/test_attend.py::test_every_backend_agrees_in_values_and_gradients[True-5-300-300-blind-float64]",
    "tests/model/test_attend.py::test_a_forced_backend_computes_every_shape_that_it_can[float64]",
    "tests/training/test_optimizer.py::test_every_optimizer_has_its_name_in_the_config_and_lowers_a_loss[sgd]",
    "tests/training/test_schedules.py::test_a_schedule_warms_up_to_the_peak_and_ends_at_the_minimum[smooth]",
    "tests/training/test_schedules.py::test_the_config_knows_every_schedule_and_no_other",
    "tests/training/test_trackers.py::test_scores_are_written_once_for_each_validation",
]

# The settings of a run in the copy.
SETTINGS = [
    "--model.compress_type=max",
    "--model.bag_loss_weight=0.1",
    "--model.attention=float64",
    "--train.trackers=[scores]",
    "--train.optimizer=sgd",
    "--train.schedule=smooth",
    "--train.max_steps=2",
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository in which all recipes have been followed."""
    folder = tmp_path_factory.mktemp("copy")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(file, folder)
    for insertion in INSERTIONS:
        insert(folder, insertion)
    for replacement in REPLACEMENTS:
        replace(folder, replacement)
    return folder


def insert(folder: Path, insertion: Insertion) -> None:
    file = folder / insertion.file
    code = find_code(insertion.code)
    if not insertion.before:
        with file.open("a", encoding="utf-8") as end:
            end.write(f"\n\n{code}")
        return

    text = file.read_text(encoding="utf-8")
    found = re.findall(rf"^ *{re.escape(insertion.before)}", text, re.MULTILINE)
    assert len(found) == 1, f"{insertion.file} has {len(found)} lines that begin with {insertion.before}"
    indentation = found[0].removesuffix(insertion.before)
    file.write_text(text.replace(found[0], textwrap.indent(code, indentation) + found[0]), encoding="utf-8")


def replace(folder: Path, replacement: Replacement) -> None:
    file = folder / replacement.file
    text = file.read_text(encoding="utf-8")
    times = text.count(replacement.old)
    assert times == 1, f"{replacement.file} has {replacement.old!r} {times} times"
    file.write_text(text.replace(replacement.old, replacement.new), encoding="utf-8")


def find_code(begins: str) -> str:
    """The block of CONTRIBUTING.md that begins so, or this line itself, which must then be in its text."""
    found = [block for block in blocks(GUIDE, "python") if block.startswith(begins)]
    if not found:
        assert f"`{begins}`" in GUIDE.read_text(encoding="utf-8"), f"CONTRIBUTING.md lacks {begins}"
        return f"{begins}\n"
    assert len(found) == 1, f"CONTRIBUTING.md has {len(found)} blocks that begin with {begins}"
    return found[0]


def run_python(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess:
    """Run Python in a folder, as a user without a GPU would."""
    line = [sys.executable, *map(str, arguments)]
    return subprocess.run(line, cwd=folder, env=os.environ | NO_GPU, capture_output=True, text=True)


def test_all_code_of_the_guide_is_put_into_the_copy():
    used = {find_code(insertion.code) for insertion in INSERTIONS}
    assert [block for block in blocks(GUIDE, "python") if block not in used] == []


def test_the_recipes_pass_their_tests(copy, tmp_path):
    done = run_python(copy, "-m", "pytest", "-n", "0", "--basetemp", tmp_path / "tests", *TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_trains_with_what_the_recipes_add(copy, workplace, tmp_path):
    run_dir = tmp_path / "run"
    done = run_python(copy, "train.py", "--config", workplace / "tiny.yaml", "--run_dir", run_dir, *SETTINGS)
    assert done.returncode == 0, done.stderr
    assert "train/bag" in metrics(run_dir)[-1]
    assert (run_dir / "scores.csv").read_text(encoding="utf-8").startswith("2,")
