"""Small models for tests. Noise on all weights makes every part of them matter, as in a trained model."""

import torch

from benchmarks.quality.causality_check import add_noise_to_weights
from model import HierarchicalTransformer


def build(depth: int, **shape) -> HierarchicalTransformer:
    """Two heads of 8, 32 bytes of context, noise on all weights, the same every time."""
    torch.manual_seed(0)
    return add_noise_to_weights(HierarchicalTransformer(depth=depth, seq_len=32, dim_head=8, heads=2, **shape).eval())
