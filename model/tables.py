"""Tables of embeddings: sums of rows, and gradients of the rows that were read."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Tables(nn.EmbeddingBag):
    """Several tables of as many rows in one weight, one after another."""

    starts: Tensor
    """the first row of each"""

    def __init__(self, count: int, rows: int, dim: int):
        super().__init__(count * rows, dim, mode="sum")
        self.rows = rows
        self.register_buffer("starts", torch.arange(count) * rows, persistent=False)

    def sum_of_rows(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """The sum of one row of each table: (b n tables) -> (b n d).

        Args:
            rows: the row of each table, counted from its first.
            weights: what each of them is multiplied by (b n tables), or None for 1.
        """
        all_rows = (rows + self.starts).flatten(0, 1)
        if weights is not None:
            weights = weights.flatten(0, 1)
        if self.sparse:
            sums = SparseSum.apply(self.weight, all_rows, weights)
        elif weights is None and self.is_trained_on_a_cpu():
            sums = LoopedSum.apply(self.weight, all_rows)
        else:
            sums = self(all_rows, per_sample_weights=weights)
        return sums.unflatten(0, rows.shape[:2])

    def is_trained_on_a_cpu(self) -> bool:
        """Whether a gradient is computed, and NumPy has the type of the weights."""
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        return learns and self.weight.device.type == "cpu" and self.weight.dtype in (torch.float32, torch.float64)


class HashTables(Tables):
    """Tables with few frequent rows and many rare ones, such as those of n-grams."""


class SparseSum(torch.autograd.Function):
    """`F.embedding_bag(rows, table, mode="sum", sparse=True)`, whose gradient names each row once.

    PyTorch's names a row as often as it was read, with a copy of the output's gradient each time. Here those of equal
    rows are summed first, which is a sum of rows again: of the output's gradient (benchmarks/LOG.md).
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor | None) -> Tensor:
        """Sums (m d) of rows (m k), each times its weight (m k)."""
        ctx.save_for_backward(rows, weights)
        ctx.table_shape = table.shape
        return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # ty: ignore[incompatible-method-override]
        rows, weights = ctx.saved_tensors
        # Bring reads of the same row together.
        in_order, place = rows.flatten().sort()
        touched, counts = torch.unique_consecutive(in_order, return_counts=True)
        first = counts.cumsum(0) - counts  # where the reads of each row begin

        # Sum the gradients of their outputs.
        if weights is not None:
            weights = weights.flatten()[place]
        sums = F.embedding_bag(place // rows.shape[1], grad, first, mode="sum", per_sample_weights=weights)
        table_grad = torch.sparse_coo_tensor(touched[None], sums, ctx.table_shape, check_invariants=False)
        return table_grad, None, None


class LoopedSum(torch.autograd.Function):
    """`F.embedding_bag(rows, table, mode="sum")` on a CPU, whose gradient takes a tenth of the time.

    PyTorch sorts all reads by their row. A loop over them adds a gradient to each row as it comes (benchmarks/LOG.md).
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        """Sums (m d) of rows (m k)."""
        ctx.save_for_backward(rows)
        ctx.table_shape = table.shape
        return F.embedding_bag(rows, table, mode="sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # ty: ignore[incompatible-method-override]
        from model.table_loops import add_gradients  # compiled when it is first needed

        (rows,) = ctx.saved_tensors
        table_grad = grad.new_zeros(ctx.table_shape)
        add_gradients(table_grad.numpy(), rows.numpy(), grad.contiguous().numpy())
        return table_grad, None
