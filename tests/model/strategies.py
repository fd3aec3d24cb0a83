"""Drawn configurations of the model: small ones of every legal kind."""

import torch
from hypothesis import strategies as st

from model import ModelConfig
from model.attend import BACKENDS

COMPRESSIONS = [1, 2, 3, 4, 6, 8]
NARROW_BACKENDS = [name for name in BACKENDS if name != "flex"]  # flex needs wider heads

WORDS = torch.tensor(list(b"ab Z9.\n\xc3"))  # letters, a digit, gaps, and half of a letter in UTF-8


def alphabet(config: dict) -> torch.Tensor:
    """The ids that texts of a drawn configuration are made of."""
    return WORDS if config["num_tokens"] == 256 else torch.arange(config["num_tokens"])


def random_ids(config: dict, *shape: int) -> torch.Tensor:
    """A text for a drawn configuration."""
    letters = alphabet(config)
    return letters[torch.randint(0, len(letters), shape)]


def other_ids(config: dict, ids: torch.Tensor) -> torch.Tensor:
    """Another id of the alphabet for each of ids."""
    letters = alphabet(config)
    place = (ids[..., None] == letters).int().argmax(dim=-1)
    return letters[(place + 1) % len(letters)]


@st.composite
def model_configs(draw, max_levels: int = 4, **fixed) -> dict:
    """Keyword arguments of `HierarchicalTransformer` with 1 to `max_levels` levels of any legal shape."""
    compressions = draw(st.lists(st.sampled_from(COMPRESSIONS), min_size=1, max_size=max_levels, unique=True))
    strides = [draw(st.sampled_from([s for s in range(1, c + 1) if c % s == 0])) for c in compressions]
    predict_all = draw(st.booleans())
    predicting = draw(st.sampled_from(compressions))
    if predict_all:
        strides[draw(st.integers(0, len(strides) - 1))] = 1
    else:
        strides[compressions.index(predicting)] = 1
    seq_len = draw(st.integers(max(compressions), 24))
    windows = [draw(st.none() | st.integers(0, seq_len // c)) for c in compressions]
    each = len(compressions)
    depths = [draw(st.integers(1, 3) | st.sets(st.integers(0, 3), min_size=1).map(sorted)) for _ in compressions]
    layers = [len(depth) if isinstance(depth, list) else depth for depth in depths]
    compress_from = draw(st.sampled_from(["embeddings", "states"])) if 1 in compressions else "embeddings"

    # Units may end at words where the stride is the compression.
    words = [draw(st.booleans()) and stride == c > 1 for stride, c in zip(strides, compressions, strict=True)]

    # Levels can meet once one that is merged into has begun, and another one.
    last = max(depth[-1] + 1 if isinstance(depth, list) else depth for depth in depths) - 1
    meeting = draw(st.none() | st.sets(st.integers(0, last)).map(lambda chosen: sorted({*chosen, last})))
    config = {
        "num_tokens": 256 if any(words) else 11,
        "embed_dim": draw(st.sampled_from([None, 4, 10])),
        "ngrams": draw(st.sampled_from([(), (2,), (2, 3), (3, 5)])),
        "ngram_buckets": draw(st.sampled_from([7, 64])),
        "matches": draw(st.sampled_from([(), (2,), (2, 4)])),
        "word_matches": draw(st.sampled_from([(), (0,), (0, 2)])),
        "matches_per_context": draw(st.integers(1, 3)),
        "dim": [draw(st.sampled_from([6, 8, 12])) for _ in range(each)],
        "depth": depths,
        "attn_depth": [draw(st.none() | st.integers(1, count)) for count in layers],
        "seq_len": seq_len,
        "dim_head": [draw(st.sampled_from([2, 4])) for _ in range(each)],
        "heads": [draw(st.sampled_from([2, 4])) for _ in range(each)],
        "kv_heads": [draw(st.sampled_from([None, 1, 2])) for _ in range(each)],
        "qk_norm": draw(st.booleans()),
        "ff_mult": draw(st.sampled_from([1, 2.5])),
        "compress_mult": draw(st.sampled_from([1, 2])),
        "compress_type": [draw(st.sampled_from(["conv", "mean", "attention", "last"])) for _ in range(each)],
        "compress_from": compress_from,
        "hierarchies": compressions,
        "hierarchical_stride": strides,
        "boundaries": ["words" if each else "stride" for each in words],
        "window_sizes": windows,
        "merge_type": draw(st.sampled_from(["network", "linear"])),
        "hierarchy_merge_all": draw(st.booleans()),
        "predict_hierarchy": predicting,
        "predict_use_all_hierarchy": predict_all,
        "recon_loss_weight": draw(st.sampled_from([0.0, 0.5])),
        "prophet_loss_weight": draw(st.sampled_from([0.0, 0.25])),
        "next_latent_loss_weight": [draw(st.sampled_from([0.0, 0.5, 2.0])) for _ in range(each)],
        "num_rollouts": draw(st.integers(1, 2)),
        "quantizer_loss_weight": draw(st.sampled_from([0.0, 0.5])),
        "rotary_xpos": draw(st.booleans()),
        "attention": draw(st.sampled_from(["auto", *NARROW_BACKENDS])),
    }
    config |= fixed
    if meeting is not None and len(config["hierarchies"]) > 1:
        levels = ModelConfig(**config)
        config["merge_layers"] = [layer for layer in meeting if levels.can_meet_after(layer)]
    return config
