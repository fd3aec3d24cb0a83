"""The hierarchical byte transformer: `HierarchicalTransformer`, its settings, its attention, and generation."""

from model.attend import Attend
from model.config import ModelConfig
from model.generation.cache import Cache
from model.losses import Losses
from model.transformer import HierarchicalTransformer

__all__ = ["Attend", "Cache", "HierarchicalTransformer", "Losses", "ModelConfig", "generation"]
