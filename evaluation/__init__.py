"""What a trained model is worth: bits per byte, an entropy coder that proves them, and what each level adds."""

__all__ = ["adaptation", "bits_per_byte", "carried", "entropy_coding", "heatmap", "level_ablation"]
