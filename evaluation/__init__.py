"""What a trained model is worth: bits per byte, an entropy coder that proves them, and what each level adds."""

__all__ = ["bits_per_byte", "entropy_coding", "heatmap", "level_ablation"]
