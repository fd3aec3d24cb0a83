"""Benchmarks of speed, each run as `python -m benchmarks.speed.NAME`."""
