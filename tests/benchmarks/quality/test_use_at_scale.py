"""What large models cost to use: which are compared, and a run of miniatures."""

import json
import sys

from benchmarks.quality import use_at_scale
from benchmarks.quality.entries import FLAT_KINDS


def test_flat_models_that_cost_as_much_to_train_are_compared():
    kinds = list(FLAT_KINDS)
    seconds = {"words": 2.0}
    for kind, step in zip(kinds, (0.6, 1.0), strict=True):
        seconds |= {f"{kind}, {depth} layers": depth * step for depth in (1, 2, 3, 4)}
    assert use_at_scale.closest_flat_models(seconds) == [f"{kinds[0]}, 3 layers", f"{kinds[1]}, 2 layers"]


def test_miniatures_are_trained_and_used(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["use_at_scale", "--quick", "--rounds=1", "--threads=1"])
    use_at_scale.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["use"]) == {"64", "256"}
    for context, models in result["use"].items():
        words, *flat = models
        assert words == "words" and [name.split(",")[0] for name in flat] == ["flat", "flat"]
        for cost in models.values():
            assert all(value > 0 for value in cost.values())
            assert ("bytes_per_second_16" in cost) == (context == "64")
