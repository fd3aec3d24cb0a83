"""What `train.py` and the programs beside it call, module by module."""

__all__ = [
    "ablation",
    "checkpoints",
    "coding",
    "command_line",
    "config",
    "decoding",
    "dropout",
    "evaluation",
    "files",
    "heatmap",
    "loading",
    "monitor",
    "optimizer",
    "parallel",
    "progress",
    "run_dir",
    "speed",
    "summary",
    "trackers",
]
