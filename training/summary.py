"""What a run says of itself: what will run, counted before it runs, how it ended, and the best model's card."""

import json
import shlex
import sys
from datetime import timedelta
from math import ceil, inf

import torch
import yaml
from accelerate import Accelerator
from torch import nn

from data import Corpus
from model import Attend, HierarchicalTransformer, ModelConfig
from training.checkpoints import RunState
from training.command_line import coloured
from training.config import Config


def introduce(
    config: Config, accelerator: Accelerator, model: HierarchicalTransformer, corpus: Corpus, flops: float
) -> None:
    """Say what will run; `flops` are those of a forward pass, a byte."""
    parts = count_parameters(model)
    train, threads = config.train, torch.get_num_threads()
    sequences = train.batch_size * train.gradient_accumulation_steps * accelerator.num_processes
    sizes = ", ".join(f"{name} {size:,}" for name, size in corpus.sizes.items())
    dtype = torch.float32 if accelerator.mixed_precision == "no" else torch.bfloat16  # or the other of 16 bits
    print(f"device      {accelerator.device}, {accelerator.num_processes} process(es), {threads} threads")
    print(f"precision   {'float32' if accelerator.mixed_precision == 'no' else accelerator.mixed_precision}")
    print(f"corpus      {corpus.name}: {sizes} bytes, from {corpus.source}")
    print(f"parameters  {sum(parts.values()):,}: " + ", ".join(f"{name} {size:,}" for name, size in parts.items()))
    print(f"attention   {attention_kernels(config.model, accelerator.device.type, dtype)}")
    print(f"compute     {human(3 * flops)}FLOPs to train on a byte ({human(flops)}FLOPs forward)")
    print(f"run         {train.max_steps:,} steps of {sequences} × {config.model.seq_len} bytes, in {config.run_dir}")


def conclude(config: Config, state: RunState, bytes_per_step: int, dashboard: str | None = None) -> None:
    """Say how the run ended, over all of its lives, where its dashboard is, and what to type next."""
    run_dir, place = config.folder, shlex.quote(str(config.folder))
    step, trained = state.step, state.step * bytes_per_step
    with (run_dir / "metrics.jsonl").open(encoding="utf-8") as file:
        validated = [json.loads(line) for line in file if "validation/bits_per_byte" in line]
    scores = {line["step"]: line["validation/bits_per_byte"] or inf for line in validated}  # null was not finite
    if scores:
        best = min(scores, key=lambda step: scores[step])
        score = coloured(f"{scores[best]:.4f} bits per byte", 32, sys.stdout)
        print(f"best        {score} of the validation split, at step {best:,}")
    print(f"trained     {step:,} of {config.train.max_steps:,} steps, {trained:,} bytes")
    print(f"time        {timedelta(seconds=round(state.seconds))}, {trained / state.seconds:,.0f} bytes/s")
    if dashboard:
        print(f"dashboard   {dashboard}")
    if (run_dir / "model").is_dir():
        print(f"model       {run_dir / 'model'}")
        print(f'sample with python generate.py {place} --prompt "The "')
        print(f"score with  python evaluate.py {place} --split test")
    if step < config.train.max_steps:
        print(f"go on with  accelerate launch train.py --run_dir {place} --resume")


def count_parameters(model: HierarchicalTransformer) -> dict[str, int]:
    """Parameters of each part: the embedding, each level by its compression, merges and heads."""

    def size(module: nn.Module | None) -> int:
        return 0 if module is None else sum(p.numel() for p in module.parameters())

    parts = {"embedding": size(model.token_emb) + size(model.ngram_embs) + size(model.match_emb)}
    for level, module in zip(model.config.levels, model.levels, strict=True):
        parts[f"level {level.compression}x"] = size(module)
    parts["merge"] = size(model.merges)
    parts["output"] = size(model.norms) + size(model.to_logits) + size(model.losses)
    return parts


def attention_kernels(config: ModelConfig, device: str, dtype: torch.dtype) -> str:
    """What computes the attention of each level at full length on a type of device, in a line."""
    kernels = []
    for level in config.levels:
        attend = Attend(causal=True, use_flash_attn=config.use_flash_attn, window_size=level.window or None)
        keys = ceil(config.seq_len / level.compression)
        kernel = attend.kernel(keys, keys, level.dim_head, device, dtype) if level.window else "none"
        some = f" in {len(level.attending)} of {level.depth} layers" if 0 < len(level.attending) < level.depth else ""
        kernels.append(f"{level.compression}x {kernel}, {min(level.window, keys)} of {keys} keys{some}")
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
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"
