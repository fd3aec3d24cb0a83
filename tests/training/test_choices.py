"""What a run measures decides how it computes, and a resume computes as before, whatever it would measure now."""

import json
import shutil

import pytest
import torch

from tests.runs import LAUNCH_TWO, checkpoints, losses, same, weights
from training import choices, measuring
from training.choices import Choice, fastest, read_choices
from training.config import load_config
from utils.errors import UserError
from utils.threads import use_threads

FASTER = {"no": {"no": 20.0, "bf16": 40.0}, "bf16": {"no": 40.0, "bf16": 20.0}}  # milliseconds, by the faster precision
AUTO = ("--train.mixed_precision=auto", "--train.optimizer=muon")


@pytest.fixture
def measured(monkeypatch):
    """Have all measurements say that a precision is faster."""

    def pretend(precision: str) -> None:
        monkeypatch.setattr(choices, "time_precisions", lambda *_: FASTER[precision])
        monkeypatch.setattr(choices, "time_muon", lambda *_: FASTER[precision])

    return pretend


@pytest.mark.parametrize(
    ("milliseconds", "option"),
    [
        ({"no": 20.0, "bf16": 10.0}, "bf16"),
        ({"no": 10.0, "bf16": 20.0}, "no"),
        ({"no": 20.0, "bf16": 18.5}, "no"),  # not clearly faster
        ({"no": 0.8, "bf16": 0.1}, "no"),  # by less than it takes to notice
        ({"4": 30.0, "2": 20.0, "1": 25.0}, "2"),
    ],
)
def test_the_usual_option_is_left_for_one_that_is_clearly_faster(milliseconds, option):
    assert fastest(milliseconds).option == option


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_faster_precision_trains_and_the_header_says_why(precision, measured, train_here, workplace):
    measured(precision)
    name = f"measured-{precision}"
    printed = train_here(name, *AUTO)
    said = "float32" if precision == "no" else "bf16"
    figures = "(measured: {no:.3g} ms with float32, {bf16:.3g} ms with bf16)".format(**FASTER[precision])
    assert f"precision   {said} {figures}" in printed
    assert f"muon        {said} {figures}" in printed
    kept = read_choices(workplace / name)
    assert kept is not None and kept.precision == kept.muon == Choice(precision, FASTER[precision])

    measured({"no": "bf16", "bf16": "no"}[precision])
    forced = (f"--train.mixed_precision={precision}", f"--train.muon_precision={precision}")
    printed = train_here(f"forced-{precision}", *AUTO, *forced)
    assert f"precision   {said}" in printed and f"muon        {said}" in printed
    assert losses(workplace / name) == losses(workplace / f"forced-{precision}")


def test_the_two_precisions_train_differently(measured, train_here, workplace):
    curves = []
    for precision in ("no", "bf16"):
        measured(precision)
        train_here(f"differs-{precision}", *AUTO, "--train.max_steps=5")
        curves.append(losses(workplace / f"differs-{precision}"))
    assert curves[0] != curves[1]


def test_a_resume_computes_as_before_even_if_a_new_measurement_would_choose_otherwise(measured, train_here, workplace):
    measured("bf16")
    train_here("one-go", *AUTO)
    shutil.copytree(workplace / "one-go", workplace / "two-goes")
    newest = checkpoints(workplace / "two-goes")[-1]
    shutil.rmtree(newest)

    measured("no")
    printed = train_here("two-goes", "--resume")
    assert f"resuming from {checkpoints(workplace / 'two-goes')[0]}" in printed
    assert "precision   bf16 (measured: 40 ms with float32, 20 ms with bf16)" in printed
    assert same(weights(workplace / "one-go"), weights(workplace / "two-goes"))
    assert losses(workplace / "one-go") == losses(workplace / "two-goes")


def test_a_resume_on_another_device_chooses_anew(measured, train_here, workplace):
    measured("bf16")
    train_here("elsewhere", *AUTO, "--train.max_steps=5")
    path = workplace / "elsewhere" / "machine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"device": "NVIDIA H200"}))
    measured("no")
    printed = train_here("elsewhere", "--resume", "--train.max_steps=6")
    assert "precision   float32 (measured: 20 ms with float32, 40 ms with bf16)" in printed
    kept = read_choices(workplace / "elsewhere")
    assert kept is not None and kept.device == "cpu"


def test_a_resume_may_force_another_precision(measured, train_here, workplace):
    measured("bf16")
    train_here("to-float32", *AUTO, "--train.max_steps=5")
    printed = train_here("to-float32", "--resume", "--train.max_steps=6", "--train.mixed_precision=no")
    assert "precision   float32" in printed
    assert "changed     train.mixed_precision: auto -> no" in printed


def test_what_was_kept_is_refused_if_it_is_damaged(measured, train_here, workplace, capsys):
    measured("no")
    train_here("damaged-choices", *AUTO, "--train.max_steps=5")
    path = workplace / "damaged-choices" / "machine.json"
    whole = json.loads(path.read_text())
    for text in ("", "[]", "{", json.dumps(whole | {"precision": 1}), json.dumps(whole | {"more": {}}), "[" * 100_000):
        path.write_text(text)
        with pytest.raises(UserError, match=r"machine\.json cannot be read"):
            read_choices(path.parent)
    with pytest.raises(SystemExit) as end:
        train_here("damaged-choices", "--resume")
    assert end.value.code == 2
    assert "machine.json cannot be read" in capsys.readouterr().err


def test_a_run_from_before_choices_were_kept_measures_now(measured, train_here, workplace):
    measured("no")
    train_here("older", *AUTO, "--train.max_steps=5")
    (workplace / "older" / "machine.json").unlink()
    measured("bf16")
    printed = train_here("older", "--resume", "--train.max_steps=6")
    assert "precision   bf16 (measured: 40 ms with float32, 20 ms with bf16)" in printed


def test_all_processes_compute_as_the_main_process_chose(train, workplace):
    run_dir, done = train("two-measured", *AUTO, "--train.max_steps=2", launcher=LAUNCH_TWO, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert "2 process(es), 1 threads" in done.stdout
    kept = read_choices(run_dir)
    assert kept is not None and kept.precision.milliseconds.keys() == kept.muon.milliseconds.keys() == {"no", "bf16"}


def test_threads_are_measured_where_nobody_gave_a_number(monkeypatch, workplace):
    monkeypatch.setattr(choices, "are_threads_given", lambda: False)
    config = load_config(["--config", str(workplace / "tiny.yaml"), "--run_dir", str(workplace / "none")])
    device = torch.device("cpu")
    with use_threads(4):
        choice = choices.choose_threads(config, device, "no", None)
        assert list(choice.milliseconds) == ["4", "2", "1"] and torch.get_num_threads() == 4

        # A resume takes those from before, if it could have as many now.
        some = Choice("2", {"4": 3.0, "2": 1.0})
        before = choices.Choices(Choice("no"), Choice("no"), some, most_threads=4, device="cpu")
        assert choices.choose_threads(config, device, "no", before) == some
    with use_threads(2):
        assert list(choices.choose_threads(config, device, "no", before).milliseconds) == ["2", "1"]


def test_measurements_compute_each_level_at_its_own_shape(workplace):
    config = load_config(["--config", str(workplace / "tiny.yaml")])
    for times in (
        measuring.time_precisions(config.model, config.train, torch.device("cpu")),
        measuring.time_muon(config.model),
    ):
        assert times.keys() == {"no", "bf16"} and all(0 < time < 1000 for time in times.values())
