"""Dynamic evaluation: a model that learns from each piece of a text once it is scored (arXiv 1904.08378).

What it predicts of a byte then depends on all bytes before it, also on those that are out of reach of its attention. So
the score is still one of predictions, and an entropy coder whose decoder learns alike proves it. But it is another kind
of figure than that of a model whose weights stay, and is given beside that one.
"""

from copy import deepcopy

import torch
from torch import Tensor

from evaluation.bits_per_byte import nats_of_targets
from model import Cache, HierarchicalTransformer
from model.tables import HashTables

# Chosen on the validation split of the quickstart (benchmarks/LOG.md).
PIECE = 256  # bytes
RATE = 3e-4
TABLE_RATE = 0.024


class Adaptation:
    """Has a copy of a model take a step of gradient descent on each piece of a text.

    Steps are scaled by the size of earlier gradients: their running root mean square for most weights, and the root of
    the sum of their squares for tables of n-grams, whose rows are read now and then.
    """

    def __init__(self, model: HierarchicalTransformer, rate: float = RATE):
        self.model = deepcopy(model)
        self.piece = whole_pieces(PIECE, model)
        tables = [module for module in self.model.modules() if isinstance(module, HashTables)]
        in_tables = {table.weight for table in tables}
        others = [p for p in self.model.parameters() if p not in in_tables]
        is_on_cpu = model.to_logits.weight.device.type == "cpu"
        for table in tables:
            table.sparse = is_on_cpu
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(others, rate, betas=(0.0, 0.99), fused=True)]
        if tables:
            self.optimizers.append(torch.optim.Adagrad(list(in_tables), rate / RATE * TABLE_RATE))

    def read(self, ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Score a piece, then learn from it.

        Args:
            ids: the piece, after the byte before it, (b n+1).
            cache: what the model has read before it.

        Returns the nats of the piece (b n), and the cache after it.
        """
        with torch.enable_grad():
            nats = nats_of_targets(self.model, ids, cache)
            nats.mean().backward()
        with torch.sparse.check_sparse_tensor_invariants(enable=False):  # PyTorch warns until one chooses
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return nats.detach(), cache.detach()


def whole_pieces(size: int, model: HierarchicalTransformer) -> int:
    """The largest number of bytes up to `size` that a cache takes at once again and again, or the smallest at all."""
    period = model.config.period
    return max(period, size // period * period)
