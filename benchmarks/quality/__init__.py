"""Benchmarks of quality at equal training time: `python -m benchmarks.quality.race`, `.ablations` and `.regimes`."""
