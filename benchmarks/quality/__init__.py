"""Benchmarks of quality, each run as `python -m benchmarks.quality.NAME`."""
