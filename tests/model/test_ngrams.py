import torch
from hypothesis import given
from hypothesis import strategies as st

from model.ngrams import ngram_buckets


def test_equal_n_grams_share_a_row_and_others_do_not():
    ids = torch.tensor([[1, 2, 3, 4, 9, 2, 3, 4], [7, 7, 3, 4, 5, 6, 3, 4]])
    two, three = ngram_buckets(ids, (2, 3), 1 << 20, last=8).unbind(dim=-1)
    assert two.shape == three.shape == ids.shape
    assert two[0, 3] == two[0, 7] == two[1, 3] == two[1, 7]  # 3 4
    assert three[0, 3] == three[0, 7] and three[0, 3] != three[1, 3]  # 2 3 4, and 7 3 4
    assert two[0, 3] != two[0, 2]


def test_bytes_before_the_first_count_as_zeros():
    ids = torch.randint(0, 256, (2, 9))
    padded = torch.nn.functional.pad(ids, (4, 0))
    for last in (1, 5, 9):
        alone, behind = (ngram_buckets(one, (2, 4), 999, last) for one in (ids, padded))
        assert torch.equal(alone, behind) and alone.shape == (2, last, 2)


def test_n_grams_are_spread_over_the_table():
    """4,096 pairs in 4,096 rows: by chance about 1 - 1/e = 63 % of the rows are used."""
    letters = torch.arange(64)
    pairs = torch.cartesian_prod(letters, letters)
    rows = ngram_buckets(pairs, (2,), 4096, last=2)[..., 0]
    assert rows.min() >= 0 and rows.max() < 4096
    assert 0.58 < len(rows[:, 1].unique()) / 4096 <= 1


def test_without_orders_there_are_no_rows():
    assert ngram_buckets(torch.zeros(1, 3, dtype=torch.long), (), 8, last=3).shape == (1, 3, 0)


@given(
    ids=st.lists(st.integers(0, 255), min_size=1, max_size=20),
    orders=st.sets(st.integers(2, 12), min_size=1).map(sorted),
    buckets=st.integers(1, 1 << 20),
)
def test_rows_are_those_of_a_loop_over_the_bytes(ids, orders, buckets):
    rows = ngram_buckets(torch.tensor([ids]), tuple(orders), buckets, last=len(ids))[0]
    for t in range(len(ids)):
        hashed = ids[t]
        for order in range(2, orders[-1] + 1):
            earlier = ids[t - order + 1] if t - order + 1 >= 0 else 0
            hashed = hashed * 1_000_003 + earlier + order
            if order in orders:
                low = hashed & 0x7FFFFFFF
                mixed = ((low ^ low >> 15) * 0x9E3779B1) & 0x7FFFFFFF
                assert rows[t, orders.index(order)] == (mixed ^ mixed >> 16) % buckets
