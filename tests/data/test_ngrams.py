import torch
from hypothesis import given
from hypothesis import strategies as st

from data import ngram_matches, ngram_rows


def test_a_row_is_that_of_its_own_n_gram_wherever_it_stands():
    ids = torch.tensor([[1, 2, 3, 4, 9, 2, 3, 4], [7, 7, 3, 4, 5, 6, 3, 4]])
    two, three = ngram_rows(ids, (2, 3), 1 << 20, last=8)
    assert two.shape == three.shape == ids.shape
    assert two[0, 3] == two[0, 7] == two[1, 3] == two[1, 7]  # 3 4
    assert three[0, 3] == three[0, 7] and three[0, 3] != three[1, 3]  # 2 3 4, and 7 3 4
    assert two[0, 3] != two[0, 2]


def test_before_the_first_byte_there_are_zeros():
    ids = torch.randint(0, 256, (2, 9))
    padded = torch.nn.functional.pad(ids, (4, 0))
    for last in (1, 5, 9):
        alone, behind = (ngram_rows(one, (2, 4), 999, last) for one in (ids, padded))
        for one, other in zip(alone, behind, strict=True):
            assert torch.equal(one, other[:, -last:]) and one.shape == (2, last)


def test_rows_are_spread_over_the_table():
    """Of all pairs of letters, hashed into as many rows, about 1 - 1/e = 63 % of the rows are met, as by chance."""
    letters = torch.arange(64)
    pairs = torch.cartesian_prod(letters, letters)
    (rows,) = ngram_rows(pairs, (2,), 4096, last=2)
    assert rows.min() >= 0 and rows.max() < 4096
    assert 0.58 < len(rows[:, 1].unique()) / 4096 <= 1


def test_no_orders_give_nothing():
    assert list(ngram_rows(torch.zeros(1, 3, dtype=torch.long), (), 8, last=3)) == []


def looked_up(text, order, reach):
    """What followed the latest earlier n-gram like the one at the end of a text, by looking at each."""
    text = text[-reach:]
    for end in range(len(text) - 1, order - 1, -1):
        if text[end - order : end] == text[-order:]:
            return 1 + text[end]
    return 0


@given(
    texts=st.integers(1, 40).flatmap(lambda n: st.lists(st.tuples(*[st.integers(0, 2)] * n), min_size=1)),
    orders=st.sets(st.integers(2, 6)).map(sorted).map(tuple),
    reach=st.integers(1, 50),
)
def test_a_match_is_what_followed_the_latest_n_gram_like_this_one(texts, orders, reach):
    ids, n = torch.tensor(texts), len(texts[0])
    expected = [[[looked_up(text[: t + 1], k, reach) for t in range(n)] for text in texts] for k in orders]
    for last in {1, n}:  # one byte and all are found in different ways
        found = [matches.tolist() for matches in ngram_matches(ids, orders, reach, last)]
        assert found == [[row[-last:] for row in rows] for rows in expected]


def test_only_what_can_be_seen_is_looked_up():
    ids = torch.tensor([[7, 8, 1, 0, 0, 7, 8]])
    for reach, found in ((8, 2), (7, 2), (6, 0)):
        (matches,) = ngram_matches(ids, (2,), reach, last=7)
        assert matches[0].tolist() == [0, 0, 0, 0, 0, 0, found]
