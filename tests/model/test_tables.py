import pytest
import torch
import torch.nn.functional as F

from model.tables import Tables


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_sum_of_rows_and_its_gradient_are_those_of_single_embeddings(sparse, weighted, dtype):
    torch.manual_seed(0)
    tables = Tables(3, 7, 4).to(dtype)
    tables.sparse = sparse
    rows, weights = torch.randint(0, 7, (2, 30, 3)), torch.rand(2, 30, 3, dtype=dtype)
    grad = torch.randn(2, 4, 30, dtype=dtype).mT  # not contiguous

    single = tables.weight.detach().clone().requires_grad_()
    expected = torch.zeros(2, 30, 4, dtype=dtype)
    for i, table in enumerate(single.split(7)):
        expected = expected + F.embedding(rows[..., i], table) * (weights[..., i : i + 1] if weighted else 1)
    expected.backward(grad)

    sums = tables.sum_of_rows(rows, weights if weighted else None)
    sums.backward(grad)
    tolerance = {"rtol": 0.03, "atol": 0.1} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(sums, expected, **tolerance)
    torch.testing.assert_close(tables.weight.grad.to_dense(), single.grad, **tolerance)
    assert tables.weight.grad.is_sparse == sparse


def test_a_sparse_gradient_names_each_row_that_was_read_once():
    tables = Tables(2, 10, 4)
    tables.sparse = True
    tables.sum_of_rows(torch.tensor([[[1, 2], [1, 3], [0, 2]]])).sum().backward()
    assert tables.weight.grad._indices().tolist() == [[0, 1, 12, 13]]
