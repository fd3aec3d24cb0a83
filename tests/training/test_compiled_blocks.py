"""Blocks that are compiled for training (training/parallel.py)."""

from functools import partial

import torch
from torch._dynamo.testing import CompileCounter

from model import HierarchicalTransformer
from training.parallel import wrap_blocks


def test_every_kind_of_block_is_compiled(monkeypatch):
    # Five widths, each with and without attention: ten kinds. PyTorch's own limit is eight.
    counter = CompileCounter()
    monkeypatch.setattr(torch.compiler.config, "recompile_limit", 8)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    torch.compiler.reset()

    model = HierarchicalTransformer(
        dim=(8, 16, 24, 32, 40), depth=2, attn_depth=1, seq_len=16, dim_head=8, heads=1, hierarchies=(1, 2, 4, 8, 16)
    ).train()
    wrap_blocks(model, compiling=True)
    for _ in range(2):
        model(torch.randint(0, 256, (1, 17)), return_loss=True)

    merges = 1  # both are of a kind
    assert counter.frame_count == 10 + merges
