"""What `train.py` and the programs beside it call, module by module."""

__all__ = [
    "ablation",
    "checkpoints",
    "coding",
    "config",
    "evaluation",
    "files",
    "heatmap",
    "loading",
    "monitor",
    "optimizer",
    "parallel",
    "run_dir",
    "speed",
    "summary",
    "trackers",
]
