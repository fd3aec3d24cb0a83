"""The loop of `LoopedSum`, compiled by Numba."""

from utils.loops import compiled


@compiled
def add_gradients(table_grad, rows, grad):
    """Add the gradient of each sum, `grad` (m d), to those of the rows (m k) that were summed."""
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            row = rows[i, j]
            for c in range(grad.shape[1]):
                table_grad[row, c] += grad[i, c]
