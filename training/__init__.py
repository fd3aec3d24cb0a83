"""What `train.py` calls: configuration, optimizer, evaluation, checkpoints and trackers."""
