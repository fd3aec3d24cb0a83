"""What a run keeps about itself: its settings, the corpora and weights that it used, and what was changed when."""

import json
import os
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from data import Corpus, DataConfig
from training.checkpoints import RunState
from training.code_version import code_version
from training.config import Config
from training.init_from import Source
from training.reading import load_settings
from utils.checks import is_number
from utils.errors import UserError, as_typed
from utils.files import naming, read_json, write_text


@dataclass(frozen=True)
class UsedCorpus:
    """An entry of RUN_DIR/corpus.json: the corpus of a run from a step on."""

    from_step: int
    """finished steps when the run began to use it"""
    name: str
    source: str
    sizes: dict[str, int]
    """bytes of each split"""
    sha256: dict[str, str]
    """checksum of each split, in hex"""
    report: dict[str, Any] = field(default_factory=dict)
    """what was read of it and what was left out, as in `CorpusReport`"""

    def __post_init__(self):
        if not isinstance(self.sha256, dict):
            raise TypeError("sha256 is no dict")


@dataclass(frozen=True)
class Change:
    """An entry of RUN_DIR/changes.json: a setting that a resume changed."""

    step: int
    """finished steps when it changed"""
    setting: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.setting}: {as_typed(self.old)} -> {as_typed(self.new)}"


def load_data_config(run_dir: Path) -> DataConfig:
    """The corpus that a run was trained on.

    Raises:
        UserError: if the run directory has no config.yaml that names a corpus.
    """
    path = run_dir / "config.yaml"
    settings = load_settings(path, "run_dir").get("data")
    if not isinstance(settings, dict):
        raise UserError(f"run_dir: {path} has no section data, which names the corpus")
    probe = ArgumentParser(exit_on_error=False)
    probe.add_class_arguments(DataConfig)
    try:
        return DataConfig(**vars(probe.parse_object(settings)))
    except (ArgumentError, TypeError) as error:
        raise UserError(f"run_dir: the section data of {path} does not fit ({error})") from error


def read_corpora(run_dir: Path) -> list[UsedCorpus]:
    """The corpora that a run used, the latest last; none if it is not known.

    Raises:
        UserError: if corpus.json is damaged.
    """
    return read_entries(run_dir / "corpus.json", UsedCorpus)


def read_changes(run_dir: Path) -> list[Change]:
    """All changes that resumes of a run made, in their order.

    Raises:
        UserError: if changes.json is damaged.
    """
    return read_entries(run_dir / "changes.json", Change)


def read_entries(path: Path, kind: type) -> list:
    """The objects of a dataclass in a JSON file; none if there is no file. Raises a UserError if it has others."""
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, list):
            raise TypeError("it is no list")
        objects = [kind(**entry) for entry in entries]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete the file to go on without it") from error
    return objects


def write_entries(path: Path, entries: list) -> None:
    """Write objects of a dataclass as JSON, one a paragraph."""
    write_text(path, json.dumps([asdict(entry) for entry in entries], indent=2) + "\n")


def changed_splits(run_dir: Path, corpus: Corpus) -> list[str]:
    """Splits of a corpus that are not those that a run used last; none if that is not known."""
    corpora = read_corpora(run_dir)
    if not corpora:
        return []
    return [split for split, checksum in corpus.sha256.items() if corpora[-1].sha256.get(split) != checksum]


def last_change_of_split(run_dir: Path, split: str) -> int:
    """Finished steps of a run when a split of its corpus was last replaced by another; -1 if it never was."""
    step = -1
    for before, used in pairwise(read_corpora(run_dir)):
        if used.sha256.get(split) != before.sha256.get(split):
            step = used.from_step
    return step


def corpus_changes(run_dir: Path, corpus: Corpus, step: int) -> list[Change]:
    """A change for each split that is not the one that a run used last, with the beginnings of the checksums."""
    changes = []
    for split in changed_splits(run_dir, corpus):
        old = read_corpora(run_dir)[-1].sha256.get(split, "none")
        new = corpus.sha256[split]
        changes.append(Change(step, f"corpus.{split}", f"sha256 {old[:12]}", f"sha256 {new[:12]}"))
    return changes


def set_metrics_aside(run_dir: Path, step: int) -> int:
    """Move the metrics of later steps, which a changed run does not repeat as they were, to metrics-replaced.jsonl.

    Returns their number.

    Raises:
        OSError: if the files cannot be written.
    """
    path, replaced = run_dir / "metrics.jsonl", run_dir / "metrics-replaced.jsonl"
    if not path.is_file():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    kept = next((i for i, line in enumerate(lines) if step_of_line(line) > step), len(lines))
    if kept < len(lines):
        with naming(replaced), replaced.open("ab") as file:
            file.writelines(lines[kept:])
            file.flush()
            os.fsync(file.fileno())
        os.truncate(path, sum(map(len, lines[:kept])))
    return len(lines) - kept


def step_of_line(line: bytes) -> int:
    """The step of a line of metrics.jsonl; -1 for a damaged line."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return -1
    return step if is_number(step, 0, int) else -1


def best_score(run_dir: Path, state: RunState) -> float:
    """The lowest validation in bits per byte that a resumed run has to beat.

    It is that of the checkpoint. But if something has changed since, the best model may come from later steps, which
    will not be repeated as they were. Scores of another validation split do not compare.
    """
    if last_change_of_split(run_dir, "valid") >= state.step:
        return inf
    changes = read_changes(run_dir)
    if not changes or changes[-1].step < state.step:
        return state.best_bits_per_byte
    best = best_model(run_dir)
    return state.best_bits_per_byte if best is None else min(state.best_bits_per_byte, best[0])


def best_model(run_dir: Path) -> tuple[float, int] | None:
    """Validation in bits per byte of the model in RUN_DIR/model, and its step.

    None if there is no such model, its record is damaged, or it was scored on another validation split.
    """
    try:
        record = dict(read_json(run_dir / "model" / "training.json"))
        score, step = record["validation_bits_per_byte"], record["step"]
    except (UserError, ValueError, TypeError, KeyError):
        return None
    counts = is_number(score, 0) and is_number(step, last_change_of_split(run_dir, "valid") + 1, int)
    return (score, step) if counts else None


def write_record(config: Config, corpus: Corpus, source: Source | None, changes: list[Change], step: int) -> None:
    """Write what the run uses from a step on. config.yaml comes last: the next resume is compared with it.

    Args:
        source: the model that the run begins from, if it begins from one now.
        changes: what this resume changes.

    Raises:
        OSError: if it cannot be written.
    """
    run_dir = config.folder

    corpora = read_corpora(run_dir) if config.resume else []
    if not corpora or changed_splits(run_dir, corpus):
        write_entries(run_dir / "corpus.json", [*corpora, UsedCorpus(step, **corpus.to_dict())])

    if changes:
        write_entries(run_dir / "changes.json", [*read_changes(run_dir), *changes])
    if source is not None:
        write_text(run_dir / "init_from.json", json.dumps(source.to_dict(), indent=2) + "\n")

    settings = yaml.safe_dump(config.to_dict(), sort_keys=False)
    write_text(run_dir / "config.yaml", f"# code version {code_version()}\n{settings}")
