"""Measurements of speed and of quality, side by side with other models. Each is one command.

- `speed/`: how fast models train and generate, and what memory they take.
- `quality/`: how well models predict after equal training time.
- `contenders.py`: our model and the others, with one interface.
- `LOG.md`: what was measured, what was kept, and what was dropped.
"""
