"""Convert weights of the reference, simple-hierarchical-transformer 0.4.0, to our names.

`HierarchicalTransformer` with the reference's arguments and `reference_settings` then computes the same function. This
holds for levels without a window: the reference's windows come from another library and let a query see one key more.
"""

from einops import rearrange
from torch import Tensor


def reference_settings(dim: tuple[int, ...]) -> dict:
    """What the reference has built in: embeddings as wide as the widest level, compressions 4 times as wide, xPos.

    Its default stride of 1 must also be given, since ours defaults to the compression.
    """
    widest = max(dim)
    return {"embed_dim": widest, "compress_mult": tuple(4 * widest / each for each in dim), "rotary_xpos": True}


# The reference's names, and ours.
OUTSIDE_LEVELS = {"token_emb.weight": "embedding.byte_emb.weight", "to_logits.weight": "to_logits.weight"}
BLOCK = {
    "attn.norm.gamma": "attn.norm.weight",
    "attn.to_out.weight": "attn.to_out.weight",
    "ff.net.0.gamma": "ff.norm.weight",
    "ff.net.1.weight": "ff.to_hidden.weight",
    "ff.net.3.weight": "ff.to_out.weight",
}
MERGE = {
    "0.gamma": "norm.weight",
    "1.weight": "to_hidden.weight",
    "1.bias": "to_hidden.bias",
    "3.weight": "to_out.weight",
    "3.bias": "to_out.bias",
}
# For each weight of a compression also a pattern, since the reference keeps linear maps as convolutions.
COMPRESS = {
    "weight": ("weight", None),
    "1.conv.weight": ("0.weight", "o d c -> o (c d)"),
    "1.conv.bias": ("0.bias", None),
    "3.weight": ("2.weight", "o i 1 -> o i"),
    "3.bias": ("2.bias", None),
}


def convert_weights(weights: dict[str, Tensor], heads: tuple[int, ...]) -> dict[str, Tensor]:
    """Convert a state dict of the reference to one of ours. Weights of losses that ours does not have are left out.

    Args:
        weights: the reference's state dict.
        heads: attention heads of each level.
    """
    ours = {}
    for name, value in weights.items():
        match name.split("."):
            case ["layers", layer, level, "attn", "to_qkv", "weight"]:
                new_name = f"levels.{level}.blocks.{layer}.attn.to_qkv.weight"
                ours[new_name] = split_rotary_pairs(value, heads[int(level)])
            case ["layers", layer, level, *rest] if ".".join(rest) in BLOCK:
                ours[f"levels.{level}.blocks.{layer}.{BLOCK['.'.join(rest)]}"] = value
            case ["hierarchical_merges", layer, _, *rest] if ".".join(rest) in MERGE:
                ours[f"merges.{layer}.{MERGE['.'.join(rest)]}"] = value
            case ["post_token_emb_norms", level, parameter]:
                ours[f"levels.{level}.norm_in.{parameter}"] = value
            case ["compressors", level, "compress_fn", *rest] if ".".join(rest) in COMPRESS:
                new_name, pattern = COMPRESS[".".join(rest)]
                ours[f"levels.{level}.compress.net.{new_name}"] = rearrange(value, pattern) if pattern else value
            case ["norms", *_]:
                ours[name] = value
            case _ if name in OUTSIDE_LEVELS:
                ours[OUTSIDE_LEVELS[name]] = value
    return ours


def split_rotary_pairs(qkv: Tensor, heads: int) -> Tensor:
    """Reorder the channels of queries and keys for our rotary positions.

    The reference rotates pairs of neighbours (2i, 2i+1), ours rotates pairs (i, i + d/2) of the two halves.
    """
    q, k, v = qkv.chunk(3)
    q = rearrange(q, "(h i pair) d -> (h pair i) d", h=heads, pair=2)
    k = rearrange(k, "(h i pair) d -> (h pair i) d", h=heads, pair=2)
    return rearrange([q, k, v], "three o d -> (three o) d")
