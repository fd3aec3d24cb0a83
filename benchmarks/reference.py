"""Weights of the reference, simple-hierarchical-transformer 0.4.0, under our names.

The same function comes out of `HierarchicalTransformer` with the reference's arguments and `**EXPRESSED`, for levels
without a window: its windows belong to another library and let a query see one key more.
"""

from einops import rearrange
from torch import Tensor

# What the reference has built in. Its default stride of 1 must be given, too: ours is the compression.
EXPRESSED = {"compress_mult": 4.0, "rotary_xpos": True}


def translate(weights: dict[str, Tensor], levels: int, heads: tuple[int, ...]) -> dict[str, Tensor]:
    """A state dict of the reference as one of ours; weights of losses that ours does not have are left out."""
    ours = {"token_emb.weight": weights["token_emb.weight"], "to_logits.weight": weights["to_logits.weight"]}
    names = {
        "attn.norm.gamma": "attn.norm.weight",
        "attn.to_out.weight": "attn.to_out.weight",
        "ff.net.0.gamma": "ff.norm.weight",
        "ff.net.1.weight": "ff.to_hidden.weight",
        "ff.net.3.weight": "ff.to_out.weight",
    }
    merges = {"0.gamma": "norm.weight", "1": "to_hidden", "3": "to_out"}
    for name, value in weights.items():
        part, *rest = name.split(".")
        tail = ".".join(rest)
        if part == "layers":
            layer, level, tail = rest[0], rest[1], ".".join(rest[2:])
            to = f"levels.{level}.blocks.{layer}."
            if tail == "attn.to_qkv.weight":
                ours[to + tail] = _halves(value, heads[int(level)])
            elif tail in names:
                ours[to + names[tail]] = value
        elif part == "hierarchical_merges":
            layer, tail = rest[0], ".".join(rest[2:])
            for theirs, own in merges.items():
                if tail.startswith(theirs):
                    ours[f"merges.{layer}.{tail.replace(theirs, own, 1)}"] = value
        elif part == "post_token_emb_norms":
            ours[f"levels.{rest[0]}.norm_in.{rest[1]}"] = value
        elif part == "norms":
            ours[name] = value
        elif part == "compressors" and rest[1] == "compress_fn":
            to, tail = f"levels.{rest[0]}.compress.net.", ".".join(rest[2:])
            if tail == "weight":
                ours[to + "weight"] = value
            elif tail == "1.conv.weight":
                ours[to + "0.weight"] = rearrange(value, "o d c -> o (c d)")
            elif tail == "1.conv.bias":
                ours[to + "0.bias"] = value
            elif tail == "3.weight":
                ours[to + "2.weight"] = rearrange(value, "o i 1 -> o i")
            elif tail == "3.bias":
                ours[to + "2.bias"] = value
    return ours


def _halves(qkv: Tensor, heads: int) -> Tensor:
    """Rotary pairs of channels from neighbours, (2i, 2i+1), to halves, (i, i + d/2), in queries and keys."""
    q, k, v = qkv.chunk(3)
    q, k = (rearrange(t, "(h i r) d -> (h r i) d", h=heads, r=2) for t in (q, k))
    return rearrange([q, k, v], "three o d -> (three o) d")
