"""What train.py prints about a run: a header before it, a summary after it, and the best model's card."""

import re
import shlex
import sys
from datetime import timedelta

import torch
import yaml
from torch import nn

from data import Corpus
from model import Attend, HierarchicalTransformer, ModelConfig
from training.checkpoints import RunState
from training.choices import Choices, in_words
from training.config import Config
from training.init_from import Source, differences
from training.precisions import DTYPES
from training.record import Change, best_model, read_corpora
from training.step import Trainer
from utils.terminal import coloured, one_line, say


def print_header(config: Config, choices: Choices, trainer: Trainer, corpus: Corpus, flops: float) -> None:
    """Print what will run.

    Args:
        flops: floating-point operations of a forward pass, a byte.
    """
    accelerator = trainer.accelerator
    processes = accelerator.num_processes
    threads = torch.get_num_threads()
    sizes = ", ".join(f"{name} {size:,}" for name, size in corpus.sizes.items())
    checksums = ", ".join(f"{name} {checksum[:12]}" for name, checksum in corpus.sha256.items())
    parameters = count_parameters(accelerator.unwrap_model(trainer.model))
    parts = ", ".join(f"{name} {size:,}" for name, size in parameters.items())
    backends = attention_backends(config.model, accelerator.device.type, DTYPES[accelerator.mixed_precision])
    batch = f"{trainer.global_batch_size} × {config.model.seq_len} bytes"

    say(f"device      {accelerator.device}, {processes} process(es), {threads} threads{choices.threads.reason}")
    say(f"precision   {in_words(choices.precision.option)}{choices.precision.reason}")
    if config.train.optimizer == "muon":
        say(f"muon        {in_words(choices.muon.option)}{choices.muon.reason}")
    say(f"corpus      {corpus.name}: {sizes} bytes, from {corpus.source}")
    for line in (f"sha256 {checksums}", *corpus.report.lines()):
        say(f"            {line}")
    say(f"parameters  {sum(parameters.values()):,}: {parts}")
    say(f"attention   {backends}")
    say(f"compute     {human(3 * flops)}FLOPs to train on a byte ({human(flops)}FLOPs forward)")
    say(f"run         {config.train.max_steps:,} steps of {batch}, in {config.run_dir}")


def print_beginning(config: Config, source: Source | None, changes: list[Change], replaced: int) -> None:
    """Print where the weights come from, and what a resume changes.

    Args:
        source: the model that the run begins from, if it begins from one now.
        replaced: lines of metrics that were set aside because of the changes.
    """
    if source is not None:
        say(f"weights     those of {source.folder}")
        for difference in differences(source, config.model):
            say(f"changed     {difference}")

    for change in changes:
        say(f"changed     {change}")
    if replaced:
        say(f"metrics     of {replaced:,} later step(s) from before the changes are in metrics-replaced.jsonl now")
    if config.resume and not read_corpora(config.folder):
        say("corpus      it is not known whether it is the same as before: the run has no corpus.json")
    if any(change.setting == "corpus.valid" for change in changes):
        say("validation  has other bytes from here on, so earlier scores no longer count")


def print_summary(config: Config, state: RunState, bytes_per_step: int, dashboards: list[str] | None = None) -> None:
    """Print how the run ended, where its dashboards are, and which commands to type next."""
    run_dir = config.folder
    quoted_run_dir = shlex.quote(str(run_dir))
    trained_bytes = state.step * bytes_per_step

    best = best_model(run_dir)
    if best is not None:
        score = coloured(f"{best[0]:.4f} bits per byte", 32, sys.stdout)
        print(f"best        {score} of the validation split, at step {best[1]:,}")
    say(f"trained     {state.step:,} of {config.train.max_steps:,} steps, {trained_bytes:,} bytes")
    say(f"time        {timedelta(seconds=round(state.seconds))}, {trained_bytes / state.seconds:,.0f} bytes/s")
    for dashboard in dashboards or []:
        say(f"dashboard   {dashboard}")
    if (run_dir / "model").is_dir():
        say(f"model       {run_dir / 'model'}")
        say(f'sample with python generate.py {quoted_run_dir} --prompt "The "')
        say(f"score with  python evaluate.py {quoted_run_dir} --split test")
    if state.step < config.train.max_steps:
        say(f"resume with accelerate launch train.py --run_dir {quoted_run_dir} --resume")


def count_parameters(model: HierarchicalTransformer) -> dict[str, int]:
    """Number of parameters of each part: embedding, each level by its compression, merges, output."""

    def size(module: nn.Module | None) -> int:
        return 0 if module is None else sum(p.numel() for p in module.parameters())

    parts = {"embedding": size(model.embedding)}
    for level, module in zip(model.config.levels, model.levels, strict=True):
        parts[f"level {level.compression}x"] = size(module)
    parts["merge"] = size(model.merges)
    parts["output"] = size(model.norms) + size(model.to_logits) + size(model.losses)
    return parts


def attention_backends(config: ModelConfig, device: str, dtype: torch.dtype) -> str:
    """The backend that computes the attention of each level at full length on a type of device, in one line."""
    backends = []
    for level in config.levels:
        attend = Attend(causal=True, window_size=level.window or None, backend=config.attention)
        keys = level.tokens_in_chain(config.seq_len)
        backend = attend.backend_for(keys, keys, level.dim_head, device, dtype) if level.window else "none"
        attending, layers = len(level.attention_layers), len(level.layers)
        where = f" in {attending} of {layers} layers" if 0 < attending < layers else ""
        backends.append(f"{level.compression}x {backend}, {min(level.window, keys)} of {keys} keys{where}")
    return "; ".join(backends)


def model_card(config: Config, source: str, step: int, score: float) -> str:
    """A README for the weights of a step, with their validation score in bits per byte, and how to reproduce them."""
    settings = yaml.safe_dump(config.to_dict(), sort_keys=False).strip()
    longest = max((len(backticks) for backticks in re.findall("`+", settings)), default=0)
    fence = "`" * max(3, longest + 1)  # so that no setting ends the block
    return f"""---
library_name: hierarchical-byte-transformer
tags: [byte-level, hierarchical-transformer]
---

# A hierarchical byte transformer

Levels {list(config.model.per_level("hierarchies"))} of {config.model.seq_len} bytes, trained on `{config.data.name}`.

To load the weights from anywhere, give the path of a checkout of the repository, and that of the folder with this file:

```python
import torch

model = torch.hub.load("hierarchical-byte-transformer", "trained", ".", source="local")

new = model.generate(torch.tensor([list(b"The ")]), 256, top_p=0.95)
print(bytes(new[0].tolist()).decode(errors="replace"))
```

| | |
|---|---|
| data | {config.data.name}: {in_markdown(source)} |
| split | validation, at most {config.train.validate_bytes:,} bytes, in windows of {config.model.seq_len} |
| bits per byte | {score:.4f}, after step {step:,} of {config.train.max_steps:,} |
| command | `accelerate launch train.py --config config.yaml` |

`config.yaml`:

{fence}yaml
{settings}
{fence}
"""


def in_markdown(text: str) -> str:
    """A text of others on one line of Markdown, as it is: a backslash before each character with a meaning there."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|&$~@:])", r"\\\1", one_line(text))


def human(number: float) -> str:
    """1234567 as 1.23 M."""
    for unit in ("", " k", " M", " G"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"
