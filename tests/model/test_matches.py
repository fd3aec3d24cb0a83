import torch
from hypothesis import given
from hypothesis import strategies as st

from model.matches import find_matches

LETTERS = b"abAB\xc3"


def ngram_context(text, order):
    """The n-gram at the end of a text, and how many of its last bytes it takes."""
    return (text[-order:], order) if order <= len(text) else (None, 0)


def word_context(text, count):
    """The word at the end of a text, or the byte between two, and so many words before it, read from the end."""
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
    return tuple(parts), len(text) - at + 1  # with the byte before the first of them


def looked_up(text, context, size, places, reach):
    """What followed the latest earlier places with the context that the end of a text has, by looking at each."""
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
def test_a_match_is_what_followed_the_latest_contexts_like_this_one(texts, orders, words, places, reach):
    ids, n = torch.tensor(texts), len(texts[0])
    contexts = [(ngram_context, order) for order in orders] + [(word_context, count) for count in words]
    for last in {1, n}:  # one byte and all are found in different ways
        found = [each.tolist() for each in find_matches(ids, orders, words, places, reach, last).unbind(dim=-1)]
        expected = [
            [[looked_up(bytes(text[: t + 1]), *each, places, reach)[k] for t in range(n - last, n)] for text in texts]
            for each in contexts
            for k in range(places)
        ]
        assert found == expected


def test_only_what_can_be_seen_is_looked_up():
    ids = torch.tensor([[7, 8, 1, 0, 0, 7, 8]])
    for reach, found in ((8, 2), (7, 2), (6, 0)):
        latest = find_matches(ids, (2,), (), 1, reach, last=7)
        assert latest[0].tolist() == [[0], [0], [0], [0], [0], [0], [found]]


def test_words_are_found_again_whatever_stands_between_them():
    text = b" The cat sat. ... the  CAT s"
    found = find_matches(torch.tensor([list(text)]), (2,), (0, 1, 2), 1, 99, last=1)
    assert found.tolist() == [[[1 + ord("a")] * 4]]
    found = find_matches(torch.tensor([list(text[:-1])]), (3,), (0, 1, 2), 1, 99, last=1)
    assert found[0, 0].tolist() == [0, 1 + ord("C"), 1 + ord("s"), 1 + ord("s")]
