"""Using a trained model: load it, prepare it for generation, and draw bytes from it."""

__all__ = ["load", "prepare", "replay", "sampling"]
