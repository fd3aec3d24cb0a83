"""Learning rate schedules: warm-up, peak, the way down, and the end."""

from itertools import pairwise
from typing import get_args, get_type_hints

import pytest

from training.config import TrainConfig
from training.schedules import SCHEDULES, learning_rate


def rates(schedule: str, **changes) -> list[float]:
    settings = {"max_steps": 110, "warmup_steps": 10, "learning_rate": 1.0, "min_learning_rate": 0.1}
    config = TrainConfig(schedule=schedule, **settings | changes)
    return [learning_rate(step, config) for step in range(config.max_steps + 1)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_warms_up_to_the_peak_and_ends_at_the_minimum(schedule):
    curve = rates(schedule)
    assert curve[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert curve[10] == 1.0 and curve[110] == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_cosine_and_linear_fall_at_each_step(schedule):
    curve = rates(schedule)
    assert all(earlier > later for earlier, later in pairwise(curve[10:]))
    assert curve[60] == pytest.approx(0.55)  # halfway down at half time


def test_linear_falls_by_the_same_amount_at_each_step():
    curve = rates("linear")
    assert [earlier - later for earlier, later in pairwise(curve[10:])] == pytest.approx([0.9 / 100] * 100)


def test_cosine_falls_slowly_at_both_ends():
    curve = rates("cosine")
    falls = [earlier - later for earlier, later in pairwise(curve[10:])]
    assert max(falls[0], falls[-1]) < 0.1 * max(falls)
    assert falls.index(max(falls)) in (49, 50)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_may_end_within_its_warm_up_or_continue_past_its_end(schedule):
    assert rates(schedule, max_steps=5) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    config = TrainConfig(schedule=schedule, max_steps=10, warmup_steps=0)
    assert learning_rate(99, config) == pytest.approx(config.min_learning_rate)


def test_the_config_knows_every_schedule_and_no_other():
    assert get_args(get_type_hints(TrainConfig)["schedule"]) == tuple(SCHEDULES)
