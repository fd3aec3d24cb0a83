"""The hierarchical byte transformer: `HierarchicalTransformer`, what it is configured by, and its attention."""

from model.attend import Attend
from model.block import Cache
from model.config import ModelConfig
from model.losses import Losses
from model.transformer import HierarchicalTransformer

__all__ = ["Attend", "Cache", "HierarchicalTransformer", "Losses", "ModelConfig", "generation"]
