"""What `train.py` and the programs beside it call, module by module."""

__all__ = [
    "checkpoints",
    "command_line",
    "config",
    "dropout",
    "monitor",
    "optimizer",
    "parallel",
    "progress",
    "reading",
    "run_dir",
    "speed",
    "step",
    "stop_signal",
    "summary",
    "trackers",
]
