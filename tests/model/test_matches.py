import os
import subprocess
import sys

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.match_index import index_text
from model.matches import MatchModel

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


def step_by_step(model, ids, prefill, piece=1):
    """What a match model finds for ids (b n): the first `prefill` at once, then `piece` bytes after another."""
    index = index_text(model, ids[:, :prefill])
    steps = [index.add(model, ids[:, t : t + piece], t) for t in range(prefill, ids.shape[1], piece)]
    return torch.cat((model(ids[:, :prefill]), *steps), dim=1)


@given(
    texts=st.integers(1, 40).flatmap(lambda n: st.lists(st.tuples(*[st.sampled_from(b"abA\xc3 .")] * n), min_size=1)),
    orders=st.sets(st.integers(2, 6)).map(sorted).map(tuple),
    words=st.sets(st.integers(0, 3)).map(sorted).map(tuple),
    places=st.integers(1, 3),
    reach=st.integers(1, 50),
    data=st.data(),
)
def test_matches_are_the_bytes_after_the_latest_equal_contexts(texts, orders, words, places, reach, data):
    ids, n = torch.tensor(texts), len(texts[0])
    contexts = [(ngram_context, order) for order in orders] + [(word_context, count) for count in words]
    expected = [
        [[search(bytes(text[: t + 1]), *each, places, reach)[k] for t in range(n)] for text in texts]
        for each in contexts
        for k in range(places)
    ]
    model = MatchModel(orders, words, places, reach)
    prefill, piece = (data.draw(st.integers(1, n), label=label) for label in ("prefill", "piece"))
    for found in (model(ids), step_by_step(model, ids, prefill), step_by_step(model, ids, prefill, piece)):
        assert [each.tolist() for each in found.unbind(dim=-1)] == expected


@given(
    seed=st.integers(0, 99),
    num_tokens=st.sampled_from([3, 256, 300, 70_000]),
    order=st.sampled_from([2, 254, 255, 300]),
    reach=st.integers(250, 310),
    prefill=st.integers(1, 700),
)
@settings(max_examples=20)
def test_steps_equal_a_pass_over_all_bytes_whatever_the_sizes(seed, num_tokens, order, reach, prefill):
    """Texts repeat, so that long contexts match."""
    generator = torch.Generator().manual_seed(seed)
    period = torch.randint(0, num_tokens, (2, 9), generator=generator)
    ids = period.repeat(1, 80)
    model = MatchModel((order,), (0, 1), 2, reach)
    found = model(ids)
    assert (found[..., 0] > 0).any() == (reach - order >= 9)
    assert torch.equal(step_by_step(model, ids, prefill), found)


def test_matches_are_within_the_maximum_distance():
    ids = torch.tensor([[7, 8, 1, 0, 0, 7, 8]])
    for reach, found in ((8, 2), (7, 2), (6, 0)):
        latest = MatchModel((2,), (), 1, reach)(ids)
        assert latest[0].tolist() == [[0], [0], [0], [0], [0], [0], [found]]


def test_words_match_whatever_is_between_them():
    text = b" The cat sat. ... the  CAT s"
    found = MatchModel((2,), (0, 1, 2), 1, 99)(torch.tensor([list(text)]))
    assert found[0, -1].tolist() == [1 + ord("a")] * 4
    found = MatchModel((3,), (0, 1, 2), 1, 99)(torch.tensor([list(text[:-1])]))
    assert found[0, -1].tolist() == [0, 1 + ord("C"), 1 + ord("s"), 1 + ord("s")]


def test_loops_run_where_no_folder_can_keep_their_compiled_code():
    program = """
import torch
from model.match_index import index_text
from model.matches import MatchModel
model, ids = MatchModel((3,), (), 1, 9), torch.tensor([[1, 2, 3, 4, 1, 2, 3]])
print(index_text(model, ids[:, :6]).add(model, ids[:, 6:], 6).tolist())
"""
    nowhere = os.environ | {"NUMBA_CACHE_LOCATOR_CLASSES": "_ZipCacheLocator"}  # for code in zip files alone
    done = subprocess.run([sys.executable, "-c", program], env=nowhere, capture_output=True, text=True)
    assert done.stdout.strip() == "[[[5]]]", done.stderr  # 1 + the 4 that followed
