import torch
from hypothesis import given
from hypothesis import strategies as st

from model.matches import find_matches

LETTERS = b"abAB\xc3"


def ngram_context(text, order):
    """The n-gram at the end of a text, and its length."""
    return (text[-order:], order) if order <= len(text) else (None, 0)


def word_context(text, count):
    """The last word of a text, or its last byte if that is a gap, and `count` words before it; and their length."""
    at, parts = len(text), []
    for part in range(count + 1):
        while part > 0 and at > 0 and text[at - 1] not in LETTERS:
            at -= 1
        end = at
        while at > 0 and text[at - 1] in LETTERS:
            at -= 1
        parts.append(text[at:end].lower() or (text[-1:] if part == 0 else None))
        if at == 0 or (part > 0 and parts[-1] is None):
            return None, 0
    return tuple(parts), len(text) - at + 1  # with the gap before the first of them


def search(text, context, size, places, reach):
    """1 + the byte that followed each of the latest earlier occurrences of the last context, by looking everywhere."""
    text = text[-reach:]
    wanted, found = context(text, size)[0], []
    for end in range(len(text) - 1, 0, -1):
        if wanted is not None and context(text[:end], size)[0] == wanted:
            found.append(1 + text[end])
    return (found + [0] * places)[:places]


@given(
    texts=st.integers(1, 40).flatmap(lambda n: st.lists(st.tuples(*[st.sampled_from(b"abA\xc3 .")] * n), min_size=1)),
    orders=st.sets(st.integers(2, 6)).map(sorted).map(tuple),
    words=st.sets(st.integers(0, 3)).map(sorted).map(tuple),
    places=st.integers(1, 3),
    reach=st.integers(1, 50),
)
def test_matches_are_the_bytes_after_the_latest_equal_contexts(texts, orders, words, places, reach):
    ids, n = torch.tensor(texts), len(texts[0])
    contexts = [(ngram_context, order) for order in orders] + [(word_context, count) for count in words]
    for last in {1, n}:  # a single byte is looked up by other code than many
        found = [each.tolist() for each in find_matches(ids, orders, words, places, reach, last).unbind(dim=-1)]
        expected = [
            [[search(bytes(text[: t + 1]), *each, places, reach)[k] for t in range(n - last, n)] for text in texts]
            for each in contexts
            for k in range(places)
        ]
        assert found == expected


def test_matches_are_within_the_maximum_distance():
    ids = torch.tensor([[7, 8, 1, 0, 0, 7, 8]])
    for reach, found in ((8, 2), (7, 2), (6, 0)):
        latest = find_matches(ids, (2,), (), 1, reach, last=7)
        assert latest[0].tolist() == [[0], [0], [0], [0], [0], [0], [found]]


def test_words_match_whatever_is_between_them():
    text = b" The cat sat. ... the  CAT s"
    found = find_matches(torch.tensor([list(text)]), (2,), (0, 1, 2), 1, 99, last=1)
    assert found.tolist() == [[[1 + ord("a")] * 4]]
    found = find_matches(torch.tensor([list(text[:-1])]), (3,), (0, 1, 2), 1, 99, last=1)
    assert found[0, 0].tolist() == [0, 1 + ord("C"), 1 + ord("s"), 1 + ord("s")]
