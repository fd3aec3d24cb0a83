"""Count the floating-point operations (FLOPs) of a training step, for the whole model or for each of its modules.

Matrix products and convolutions count as they are computed, forward and backward. Fused attention counts the pairs of
query and key that its mask allows: half of n² if it is causal, the window if there is one. Its backward pass counts
twice as much as its forward pass. Attention that another library computes with plain products counts in full, masked
pairs included.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders import Contender, random_ids


def count_flops(contender: Contender, seq_len: int) -> float:
    """FLOPs per byte of a training step at this length.

    They are counted while a step runs on the CPU, so the contender must be there.
    """
    ids = random_ids(1, seq_len, "cpu")
    with flop_counter() as counter:
        contender.loss(ids).backward()
    contender.zero_grad()
    return counter.get_total_flops() / seq_len


def flops_by_module(contender: Contender, seq_len: int) -> dict[str, float]:
    """The same for each module by its name in the model; the name "" is the whole model.

    Only the forward pass is counted, times three.
    """
    ids = random_ids(1, seq_len, "cpu")
    with flop_counter() as counter, torch.no_grad():
        contender.loss(ids)

    # The counter's names begin with the class of the model, as in "HierarchicalTransformer.levels.0".
    root = type(contender.model).__name__
    flops = {}
    for name, counts in counter.get_flop_counts().items():
        if name.startswith(root):
            own_name = name.removeprefix(root).removeprefix(".")
            flops[own_name] = 3 * sum(counts.values()) / seq_len
    return flops


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, extended by the fused attention of the CPU, which it does not know."""
    operations = torch.ops.aten
    formulas = {
        operations._scaled_dot_product_flash_attention_for_cpu: attention_flops,
        operations._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def attention_flops(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    out_val: object = None,
) -> int:
    """FLOPs of both products over the visible pairs of queries (b h i d) and keys (b h j d)."""
    b, h, i, d = q.shape
    j = k.shape[-2]
    if attn_mask is not None:
        # The mask is boolean, or it is added to the scores.
        visible = attn_mask if attn_mask.dtype == torch.bool else attn_mask > -torch.inf
        pairs = int(visible.expand(b, h, i, j).sum())
    elif is_causal:
        pairs = b * h * (i * (i + 1) // 2 + i * (j - i))
    else:
        pairs = b * h * i * j
    return 2 * pairs * (d + v.shape[-1])


def attention_backward_flops(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    out_val: object = None,
) -> int:
    """Twice the forward pass. Scores that the kernel computes a second time do not count."""
    return 2 * attention_flops(q, k, v, dropout_p, is_causal, attn_mask=attn_mask)


# This attribute makes the counter pass tensors instead of shapes. A mask has to be read to be counted.
for formula in (attention_flops, attention_backward_flops):
    setattr(formula, "_get_raw", True)  # noqa: B010, since a function has no such attribute for type checkers
