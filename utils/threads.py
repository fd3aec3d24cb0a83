"""How many threads PyTorch computes with on a CPU."""

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def use_threads(count: int) -> Generator[None]:
    """PyTorch computes with `count` threads within."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
