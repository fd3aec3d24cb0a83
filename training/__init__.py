"""What `train.py` calls, module by module."""

__all__ = [
    "checkpoints",
    "code_version",
    "command_line",
    "completion",
    "config",
    "dropout",
    "monitor",
    "optimizer",
    "parallel",
    "progress",
    "reading",
    "run",
    "run_dir",
    "schedules",
    "speed",
    "step",
    "stop_signal",
    "summary",
    "trackers",
    "yaml_text",
]
