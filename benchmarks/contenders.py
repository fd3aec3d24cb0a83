"""What trains side by side: our model and its peers, behind one face, with their training steps and their work counted.

Peers come from `benchmarks/requirements.txt`.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model import HierarchicalTransformer, Losses
from training.config import TrainConfig
from training.dropout import draw_dropout_in_bulk
from training.step import Trainer, train_step


class Contender(nn.Module):
    """A causal model over bytes: ids (b n) -> logits (b n num_tokens), or the loss and `Losses` of ids (b n+1).

    Args:
        model: maps ids to logits.
        has_loss: whether `model(ids, return_loss=True)` gives the loss first; otherwise cross-entropy is taken here.
    """

    def __init__(self, model: nn.Module, has_loss: bool = True):
        super().__init__()
        self.model, self.has_loss = model, has_loss
        draw_dropout_in_bulk(self)  # as training does

    def forward(self, ids: Tensor, return_loss: bool = False) -> Tensor | tuple[Tensor, Losses]:
        if not return_loss:
            return self.model(ids)
        if self.has_loss:
            return self.model(ids, return_loss=True)
        logits, labels = self.model(ids[:, :-1]), ids[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return loss, Losses(loss.detach())

    def loss(self, ids: Tensor) -> Tensor:
        """The scalar that training minimises."""
        loss, _ = self(ids, return_loss=True)
        return loss


class InBfloat16(nn.Module):
    """A contender whose forward pass runs under autocast. The contender itself stays in float32, for scoring."""

    def __init__(self, contender: Contender):
        super().__init__()
        self.contender = contender

    def forward(self, ids: Tensor, return_loss: bool = False) -> Tensor | tuple[Tensor, Losses]:
        with torch.autocast(ids.device.type, torch.bfloat16):
            return self.contender(ids, return_loss)


def preset(name: str) -> dict:
    """The model of `configs/`, so that what is raced is what is shipped."""
    return tuples(yaml.safe_load((Path(__file__).parents[1] / "configs" / f"{name}.yaml").read_text())["model"])


def tuples(model: dict) -> dict:
    """A model's arguments with tuples for the lists that YAML, JSON and flags have in their place."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in model.items()}


def ours(**config) -> Contender:
    """`HierarchicalTransformer`."""
    return Contender(HierarchicalTransformer(**config))


def reference(**config) -> Contender | None:
    """The `HierarchicalTransformer` of simple-hierarchical-transformer 0.4.0, without the losses that it has beside
    cross-entropy, which itself is taken here, because its own leaves out byte 0; None, and a word about it, where it is
    not installed."""
    try:
        from simple_hierarchical_transformer import HierarchicalTransformer as Reference
    except ImportError:
        return missing("simple-hierarchical-transformer")
    model = Reference(**config, recon_loss_weight=0.0, next_latent_loss_weight=0.0)
    model.chunk_summarizers = model.latent_dynamics = nn.ModuleList()  # of a loss that is off; nothing trains them
    return Contender(model, has_loss=False)


def decoder(
    num_tokens: int, dim: int, depth: int, heads: int, dim_head: int, seq_len: int, **options
) -> Contender | None:
    """The decoder of x-transformers with SDPA and rotary positions, and with options of its layers; None, and a word,
    where it is not installed."""
    try:
        from x_transformers import Decoder, TransformerWrapper
    except ImportError:
        return missing("x-transformers")
    options = {"attn_flash": True, "rotary_pos_emb": True, "ff_mult": 4} | options
    layers = Decoder(dim=dim, depth=depth, heads=heads, attn_dim_head=dim_head, **options)
    model = TransformerWrapper(num_tokens=num_tokens, max_seq_len=seq_len, use_abs_pos_emb=False, attn_layers=layers)
    return Contender(model, has_loss=False)


def hourglass(seq_len: int, **config) -> Contender | None:
    """The `HourglassTransformerLM` of hourglass-transformer-pytorch, for whole multiples of its shorten_factor: padding
    to one stops in a name that it does not import. None, and a word, where it is not installed."""
    try:
        from hourglass_transformer_pytorch import HourglassTransformerLM
    except ImportError:
        return missing("hourglass-transformer-pytorch")
    return Contender(HourglassTransformerLM(max_seq_len=seq_len, **config), has_loss=False)


def megabyte(seq_len: int, patch: int, **config) -> Contender | None:
    """MEGABYTE-pytorch's model of two stages, `patch` bytes to a token of the first, with SDPA and rotary positions;
    None, and a word, where it is not installed. Its `dim` and `depth` are of the coarse stage and the fine one.

    It puts a start token before each patch, and gives logits without those of the first: at t, of the byte t + 1. Its
    own loss leaves out byte 0.
    """
    try:
        from MEGABYTE_pytorch import MEGABYTE
    except ImportError:
        return missing("MEGABYTE-pytorch")
    model = MEGABYTE(max_seq_len=(seq_len // patch, patch), rel_pos=True, flash_attn=True, **config)
    return Contender(model, has_loss=False)


def missing(peer: str) -> None:
    """Say that a peer is not installed."""
    print(f"{peer} is not installed, and is left out: pip install -r benchmarks/requirements.txt")


def random_ids(batch: int, n: int, device: str | torch.device) -> Tensor:
    """Bytes to train on: (b n+1)."""
    return torch.randint(0, 256, (batch, n + 1), device=device)


def build_trainer(
    contender: Contender,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    data: np.ndarray,
    seq_len: int,
    bf16: bool,
) -> Trainer:
    """The contender in `train.py`'s training step, on one process and the device that the contender is on.

    Args:
        data: bytes to train on (n), uint8.
        bf16: autocast to bfloat16. Not by the Accelerator, whose precision is the same for a whole process, and
            benchmarks time both in turn.
    """
    device = next(contender.parameters()).device
    accelerator = accelerator_for(device.type)
    model = InBfloat16(contender) if bf16 else contender
    return Trainer(accelerator, model, optimizer, config, data, seq_len)


@cache
def accelerator_for(device_type: str) -> Accelerator:
    """One process on a device, in float32."""
    return Accelerator(mixed_precision="no", cpu=device_type == "cpu")


def training_step(contender: Contender, ids: Tensor, bf16: bool) -> Callable[[], None]:
    """`take_step` with fused AdamW of its own."""
    optimizer = torch.optim.AdamW(contender.parameters(), lr=1e-4, fused=True)
    return lambda: take_step(contender, optimizer, ids, bf16)


def take_step(contender: Contender, optimizer: torch.optim.Optimizer, ids: Tensor, bf16: bool) -> None:
    """`train.py`'s training step on as many sequences as ids (b n+1) has, cut from its bytes, at a rate of 1e-4."""
    config = TrainConfig(batch_size=len(ids), learning_rate=1e-4, min_learning_rate=1e-4, warmup_steps=0)
    data = ids.flatten().to("cpu", torch.uint8).numpy()
    train_step(build_trainer(contender, optimizer, config, data, ids.shape[1] - 1, bf16), step=0)


def count_parameters(contender: nn.Module) -> int:
    """All that are trained."""
    return sum(p.numel() for p in contender.parameters())


def count_flops(contender: Contender, n: int) -> float:
    """Floating-point operations of a training step at length n, a byte, counted on a step that really runs on the CPU,
    where the contender must be.

    Matrix products and convolutions count as they are done, forward and backward. Fused attention counts the pairs of
    query and key that its mask lets through, twice as much backward as forward: half of n² if causal, the window if
    there is one. A peer's attention out of plain products counts in full, what it masks away included.
    """
    ids = random_ids(1, n, "cpu")
    with counting() as counter:
        contender.loss(ids).backward()
    contender.zero_grad()
    return counter.get_total_flops() / n


def flops_by_module(contender: Contender, n: int) -> dict[str, float]:
    """Of `count_flops`, what each module takes, by its name in the model, and "" for the whole model."""
    ids = random_ids(1, n, "cpu")
    with counting() as counter, torch.no_grad():
        contender.loss(ids)
    root = type(contender.model).__name__
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items() if name.startswith(root)}
    return {name.removeprefix(root).removeprefix("."): 3 * flops / n for name, flops in counts.items()}


def counting() -> FlopCounterMode:
    """A counter that knows the fused attention of the CPU."""
    ops = torch.ops.aten
    formulas = {
        ops._scaled_dot_product_flash_attention_for_cpu: attention_flops,
        ops._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def attention_flops(q, k, v, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None, out_val=None) -> int:
    """Two products over the visible pairs of queries (b h i d) and keys (b h j d)."""
    b, h, i, d = q.shape
    j = k.shape[-2]
    if attn_mask is not None:  # boolean, or what is added to the scores
        seen = attn_mask if attn_mask.dtype == torch.bool else attn_mask > -torch.inf
        pairs = int(seen.expand(b, h, i, j).sum())
    else:
        pairs = b * h * (i * (i + 1) // 2 + i * (j - i) if is_causal else i * j)
    return 2 * pairs * (d + v.shape[-1])


def attention_backward_flops(
    grad_out, q, k, v, out, logsumexp, dropout_p, is_causal, *, attn_mask=None, scale=None, out_val=None
) -> int:
    """Twice the forward pass; what the kernel computes again does not count."""
    return 2 * attention_flops(q, k, v, dropout_p, is_causal, attn_mask=attn_mask)


for formula in (attention_flops, attention_backward_flops):
    setattr(formula, "_get_raw", True)  # noqa: B010, of a function: the counter hands over tensors, not shapes
