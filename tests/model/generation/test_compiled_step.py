"""Compiled steps on the disk. Their logits are those of a full pass in test_replay.py."""

import inspect
import json
import os
import shutil
import time

import pytest
import torch

from model.generation import compiled_step
from model.generation.cache import Cache
from model.generation.prepare import prepare_for_generation
from tests.model.generation.test_cache import in_pieces
from tests.model.test_transformer import build
from utils.compiler import recursion_limit
from utils.threads import use_threads

TINY = {"dim": 8, "heads": 1, "dim_head": 4, "depth": 1, "seq_len": 8}


def check_logits(seed):
    """Compiled steps of a model with weights of this seed give the logits of a full pass."""
    torch.manual_seed(seed)
    model = build(TINY)
    ids = torch.randint(0, 256, (1, 12))
    with torch.no_grad():
        full = model(ids)
    prepare_for_generation(model, compiled=True)
    torch.testing.assert_close(in_pieces(model, ids, 5), full, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """The cache after a step was compiled."""
    cache = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        check_logits(0)
    return cache / "compiled-steps"


@pytest.fixture
def cache(compiled_once, tmp_path, monkeypatch):
    """A copy of it in use."""
    shutil.copytree(compiled_once, tmp_path / "compiled-steps")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "compiled-steps"


@pytest.fixture
def compiled_again(compiled_once, monkeypatch):
    """What was compiled since. The compiler would write the same again."""
    (step,) = compiled_once.iterdir()
    folders = []

    def compile_step(step_to_compile, inputs, folder):
        folders.append(folder)
        shutil.copytree(step, folder, dirs_exist_ok=True)

    monkeypatch.setattr(compiled_step, "compile_step", compile_step)
    return folders


def test_other_weights_use_the_same_library(cache, compiled_again):
    check_logits(1)
    assert compiled_again == [] and len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damaged", ["step.so", "step.json"])
def test_a_damaged_step_is_compiled_again(cache, compiled_again, damaged, capsys):
    (step,) = cache.iterdir()
    content = (step / damaged).read_bytes()
    (step / damaged).write_bytes(content[: len(content) // 2])
    check_logits(2)
    assert len(compiled_again) == 1 and "so this step is compiled again" in capsys.readouterr().err
    check_logits(3)
    assert len(compiled_again) == 1 and (step / damaged).read_bytes() == content


def test_without_a_cache_steps_are_compiled_each_time(tmp_path, compiled_again, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made there
    check_logits(4)
    assert len(compiled_again) == 1 and "not kept for the next time" in capsys.readouterr().err


class Compiles(Exception):
    pass


@pytest.fixture
def no_compiler(monkeypatch):
    """Raise `Compiles` where a step would be compiled."""

    def compile_step(*args):
        raise Compiles

    monkeypatch.setattr(compiled_step, "compile_step", compile_step)


@pytest.mark.parametrize(
    ("config", "rows", "options"),
    [({"window_sizes": 3}, 1, {}), ({}, 2, {}), ({}, 1, {"inplace_buffers": True})],
    ids=["config", "rows", "options"],
)
def test_what_a_step_depends_on_is_compiled_anew(config, rows, options, cache, no_compiler, monkeypatch):
    monkeypatch.setattr(compiled_step, "COMPILER", compiled_step.COMPILER | options)
    model = build(TINY | config)
    prepare_for_generation(model, compiled=True)
    with pytest.raises(Compiles):
        in_pieces(model, torch.zeros(rows, 12, dtype=torch.long), 5)


@pytest.mark.parametrize("change", [torch.nn.Module.bfloat16, torch.nn.Module.train], ids=["dtype", "training"])
def test_a_model_that_changed_does_not_use_the_steps_of_before(change, cache, no_compiler):
    model = build(TINY)
    prepare_for_generation(model, compiled=True)
    ids = torch.zeros(1, 12, dtype=torch.long)
    in_pieces(model, ids, 5)
    in_pieces(model, ids, 5)
    change(model)
    with pytest.raises(Compiles):
        in_pieces(model, ids, 5)


def test_steps_that_nobody_used_for_a_month_are_deleted(cache, compiled_again):
    (used,) = cache.iterdir()
    unused = cache / "unused"
    new = cache / "new"
    half_written = cache / ".writing-killed"
    for folder in (unused, new, half_written):
        shutil.copytree(used, folder)
    long_ago = time.time() - compiled_step.UNUSED - 60
    for folder in (unused, used, half_written):
        os.utime(folder, (long_ago, long_ago))

    check_logits(7)  # loads a step
    compiled_step.keep(used, cache / "next")
    assert set(cache.iterdir()) == {used, new, cache / "next"}


def threads_of_steps(cache):
    """With how many threads each library computes."""
    return sorted(json.loads((step / "step.json").read_text())["threads"] for step in cache.iterdir())


def test_a_small_step_uses_one_thread(cache, compiled_again):
    with use_threads(2):
        check_logits(5)
        assert torch.get_num_threads() == 2
    assert compiled_again == [] and threads_of_steps(cache) == [1]


def test_a_large_step_uses_all_threads_and_as_many_calls_within_calls_as_it_needs(cache, monkeypatch):
    """With four layers of two levels it needed more than the 1,000 that Python allows."""
    monkeypatch.setattr(compiled_step, "FEW_WEIGHTS", 0)
    with use_threads(2), recursion_limit(len(inspect.stack()) + 100):
        check_logits(6)
    assert threads_of_steps(cache) == [1, 2]


def test_a_batch_may_be_too_large_for_one_thread(monkeypatch):
    monkeypatch.setattr(compiled_step, "FEW_PRODUCTS", 10_000)
    model = build(TINY)
    step = compiled_step.StepModule(model, model.forward, Cache())
    with use_threads(2):
        assert [step.threads(rows) for rows in (1, 1000)] == [1, 2]
