"""What will run, counted before it runs."""

from math import ceil

import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model import Attend, HierarchicalTransformer, ModelConfig
from training.config import Config


def count_parameters(model: HierarchicalTransformer) -> dict[str, int]:
    """Parameters of each part: the embedding, each level by its compression, merges and heads."""

    def size(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    parts = {"embedding": size(model.token_emb)}
    for level, module in zip(model.config.levels, model.levels, strict=True):
        parts[f"level {level.compression}x"] = size(module)
    parts["merge"] = size(model.merges)
    parts["output"] = size(model.norms) + size(model.to_logits) + size(model.losses)
    return parts


def flops_per_byte(config: ModelConfig) -> float:
    """Floating-point operations of one forward pass at full length, a byte; a training step takes three times as many.

    Counts matrix products and attention as the plain path would do them, on a model without storage.
    """
    with torch.device("meta"):
        model = HierarchicalTransformer(**config.to_dict())
        ids = torch.zeros(1, config.seq_len, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids)
    return counter.get_total_flops() / config.seq_len


def attention_kernels(config: ModelConfig, device: str) -> str:
    """What computes the attention of each level at full length on a type of device, in a line."""
    kernels = []
    for level in config.levels:
        attend = Attend(causal=True, use_flash_attn=config.use_flash_attn, window_size=level.window or None)
        keys = ceil(config.seq_len / level.compression)
        kernel = attend.kernel(keys, keys, level.dim_head, device) if level.window else "none"
        kernels.append(f"{level.compression}x {kernel}, {min(level.window, keys)} of {keys} keys")
    return "; ".join(kernels)


def model_card(config: Config, source: str, step: int, score: float) -> str:
    """A README for the weights of a step, with their validation score in bits per byte and how to make them again."""
    return f"""---
license: mit
library_name: hierarchical-byte-transformer
tags: [byte-level, hierarchical-transformer]
---

# A hierarchical byte transformer

Levels {list(config.model.per_level("hierarchies"))} of {config.model.seq_len} bytes, trained on `{config.data.name}`.

| | |
|---|---|
| data | {config.data.name}: {source} |
| split | validation, {config.train.validate_bytes:,} bytes at most, each scored once within {config.model.seq_len} |
| bits per byte | {score:.4f}, after step {step:,} of {config.train.max_steps:,} |
| command | `accelerate launch train.py --config config.yaml` |

`config.yaml`:

```yaml
{yaml.safe_dump(config.to_dict(), sort_keys=False).strip()}
```
"""


def human(number: float) -> str:
    """1234567 as 1.23 M."""
    for unit in ("", " k", " M", " G"):
        if abs(number) < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"
