"""The options that every section of the throughput benchmark gets."""

from dataclasses import dataclass

import torch

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """How to measure."""

    device: str
    """cpu or cuda"""
    threads: int
    """threads of PyTorch on a CPU"""
    rounds: int
    """timed steps of each contender"""
    precisions: list[str]
    """keys of PRECISIONS"""
    batch: int
    """sequences in a step of enwik8-base"""
    large: bool
    """in section step: the model that the reference's own training script trains"""
    compile: bool
    """in sections step and share: also time our model compiled"""
    quick: bool
    """fewer lengths"""
