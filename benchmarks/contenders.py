"""Our model and the models it is compared with, with one interface, and the training step of `train.py`.

The other models come from PyPI; `benchmarks/requirements.txt` lists them. A benchmark leaves out those that are not
installed.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from torch import Tensor, nn

from model import HierarchicalTransformer, Losses
from training.config import TrainConfig
from training.dropout import draw_dropout_in_bulk
from training.optimizer import build_optimizer
from training.parallel import make_gradients_of_tables_sparse
from training.step import Trainer, train_step

CONFIGS = Path(__file__).parents[1] / "configs"


class Contender(nn.Module):
    """A causal model over bytes: logits (b n num_tokens) for ids (b n), or the loss and its parts for ids (b n+1).

    Args:
        model: maps ids (b n) to logits (b n num_tokens).
        has_loss: whether `model(ids, return_loss=True)` returns its loss first. If not, the loss is the cross-entropy
            of its logits.
    """

    def __init__(self, model: nn.Module, has_loss: bool = True):
        super().__init__()
        self.model = model
        self.has_loss = has_loss
        draw_dropout_in_bulk(self)  # as training does

    def forward(self, ids: Tensor, return_loss: bool = False) -> Tensor | tuple[Tensor, Losses]:
        return self.loss_and_losses(ids) if return_loss else self.model(ids)

    def loss(self, ids: Tensor) -> Tensor:
        """The scalar that training minimises, for ids (b n+1)."""
        loss, _ = self.loss_and_losses(ids)
        return loss

    def loss_and_losses(self, ids: Tensor) -> tuple[Tensor, Losses]:
        """The scalar that training minimises, and its parts, for ids (b n+1)."""
        if self.has_loss:
            return self.model(ids, return_loss=True)

        inputs, targets = ids[:, :-1], ids[:, 1:]
        logits = self.model(inputs).float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return loss, Losses(loss.detach())


class InBfloat16(nn.Module):
    """A contender whose forward pass runs under autocast. The contender itself stays in float32, for scoring."""

    def __init__(self, contender: Contender):
        super().__init__()
        self.contender = contender

    def forward(self, ids: Tensor, return_loss: bool = False) -> Tensor | tuple[Tensor, Losses]:
        with torch.autocast(ids.device.type, torch.bfloat16):
            return self.contender(ids, return_loss)


def preset(name: str) -> dict[str, Any]:
    """The model's arguments in `configs/NAME.yaml`, so that benchmarks measure the presets that users train."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return lists_to_tuples(config["model"])


def lists_to_tuples(arguments: dict[str, Any]) -> dict[str, Any]:
    """A model's arguments with tuples instead of the lists that YAML, JSON and flags give."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}


def ours(**config) -> Contender:
    """`HierarchicalTransformer`."""
    return Contender(HierarchicalTransformer(**config))


def reference(**config) -> Contender | None:
    """The `HierarchicalTransformer` of simple-hierarchical-transformer 0.4.0, trained on cross-entropy alone.

    Its own cross-entropy ignores byte 0, so the loss is computed from its logits. Prints a line and returns None if the
    package is not installed.
    """
    try:
        from simple_hierarchical_transformer import HierarchicalTransformer as Reference
    except ImportError:
        return report_missing("simple-hierarchical-transformer")
    model = Reference(**config, recon_loss_weight=0.0, next_latent_loss_weight=0.0)

    # These modules belong to a loss that is off, so they would have no gradients.
    model.chunk_summarizers = nn.ModuleList()
    model.latent_dynamics = nn.ModuleList()
    return Contender(model, has_loss=False)


def decoder(
    num_tokens: int, dim: int, depth: int, heads: int, dim_head: int, seq_len: int, **options
) -> Contender | None:
    """The decoder of x-transformers with SDPA and rotary positions.

    Prints a line and returns None if the package is not installed.

    Args:
        options: further arguments of its `Decoder`.
    """
    try:
        from x_transformers import Decoder, TransformerWrapper
    except ImportError:
        return report_missing("x-transformers")
    defaults = {"attn_flash": True, "rotary_pos_emb": True, "ff_mult": 4}
    layers = Decoder(dim=dim, depth=depth, heads=heads, attn_dim_head=dim_head, **defaults | options)
    model = TransformerWrapper(num_tokens=num_tokens, max_seq_len=seq_len, use_abs_pos_emb=False, attn_layers=layers)
    return Contender(model, has_loss=False)


def hourglass(seq_len: int, **config) -> Contender | None:
    """The `HourglassTransformerLM` of hourglass-transformer-pytorch.

    The length of ids must be a multiple of `shorten_factor`: the library's padding fails, since it uses a name that it
    does not import. Prints a line and returns None if the package is not installed.
    """
    try:
        from hourglass_transformer_pytorch import HourglassTransformerLM
    except ImportError:
        return report_missing("hourglass-transformer-pytorch")
    model = HourglassTransformerLM(max_seq_len=seq_len, **config)
    return Contender(model, has_loss=False)


def megabyte(seq_len: int, patch: int, **config) -> Contender | None:
    """The model of MEGABYTE-pytorch with two stages, SDPA and rotary positions.

    It prepends a start token to each patch and returns logits without those of the first start token, so the logits at
    t predict byte t + 1. Its own loss ignores byte 0, so the loss is computed from its logits. Prints a line and
    returns None if the package is not installed.

    Args:
        patch: bytes in a token of the coarse stage.
        config: further arguments; `dim` and `depth` hold the coarse stage's value and then the fine stage's.
    """
    try:
        from MEGABYTE_pytorch import MEGABYTE
    except ImportError:
        return report_missing("MEGABYTE-pytorch")
    stage_lengths = (seq_len // patch, patch)
    model = MEGABYTE(max_seq_len=stage_lengths, rel_pos=True, flash_attn=True, **config)
    return Contender(model, has_loss=False)


def report_missing(package: str) -> None:
    """Print that a package is not installed and how to install it."""
    print(f"{package} is not installed and is left out: pip install -r benchmarks/requirements.txt")


def random_ids(batch: int, seq_len: int, device: str | torch.device) -> Tensor:
    """Random bytes to train on: (batch seq_len+1)."""
    return torch.randint(0, 256, (batch, seq_len + 1), device=device)


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
    if device.type == "cpu":
        make_gradients_of_tables_sparse(contender)  # as training does
    model = InBfloat16(contender) if bf16 else contender
    return Trainer(accelerator, model, optimizer, config, data, seq_len)


@cache
def accelerator_for(device_type: str) -> Accelerator:
    """One process on a device, in float32."""
    return Accelerator(mixed_precision="no", cpu=device_type == "cpu")


def training_step(contender: Contender, ids: Tensor, bf16: bool) -> Callable[[], None]:
    """`take_step` with an optimizer of its own, AdamW."""
    optimizer = build_optimizer(contender.model, TrainConfig(optimizer="adamw"))
    return lambda: take_step(contender, optimizer, ids, bf16)


def take_step(contender: Contender, optimizer: torch.optim.Optimizer, ids: Tensor, bf16: bool) -> None:
    """`train.py`'s training step on as many sequences as ids (b n+1) has, cut from its bytes, at a rate of 1e-4."""
    config = TrainConfig(batch_size=len(ids), learning_rate=1e-4, min_learning_rate=1e-4, warmup_steps=0)
    data = ids.flatten().to("cpu", torch.uint8).numpy()
    train_step(build_trainer(contender, optimizer, config, data, ids.shape[1] - 1, bf16), step=0)


def count_parameters(contender: nn.Module) -> int:
    """Number of all trained weights."""
    return sum(p.numel() for p in contender.parameters())
