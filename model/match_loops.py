"""The loops of `MatchIndex.add`, compiled by Numba.

A few steps for each context, where operations on tensors, which cannot stop early, would take thousands. Arrays are
those of `MatchIndex`. Integers have 64 bits and wrap around.
"""

import torch

from model.matches import NON_NEGATIVE, letters
from model.ngrams import FACTOR, MIX
from utils.loops import compiled

LETTERS = letters(torch.arange(256)).numpy()  # by byte: its letter in lower case, 0 for a gap


@compiled
def add_bytes(new, place, orders, word_counts, ids, hashed, starts, earlier, latest, words, found):
    """Add the byte at `place` of each row, `new` (b), and write what followed its contexts to `found` (b context k)."""
    found[:] = 0
    for row in range(len(new)):
        byte = new[row]
        ids[row, place % ids.shape[1]] = byte

        # n-grams, as in `matches.ngram_contexts`
        ngram = byte
        order = 1
        for i in range(len(orders)):
            while order < orders[i]:
                before = ids[row, (place - order) % ids.shape[1]]
                order += 1
                ngram = (ngram * FACTOR + before + order) & NON_NEGATIVE
            add_context(ngram, place - order + 1, place, row, i, ids, hashed, starts, earlier, latest, found)

        # words, as in `matches.word_contexts`
        letter = LETTERS[byte] if byte < len(LETTERS) else byte
        if letter > 0:
            words[row, 0, 1] = (words[row, 0, 1] * FACTOR + letter) & NON_NEGATIVE
        else:
            begin_gap(place, row, words)
        word = words[row, 0, 1] if letter > 0 else (-byte - 1) & NON_NEGATIVE
        count = 0
        for i in range(len(word_counts)):
            while count < word_counts[i]:
                count += 1
                word = (word * MIX + words[row, count, 1]) & NON_NEGATIVE
            start = words[row, count, 0]
            add_context(word, start, place, row, len(orders) + i, ids, hashed, starts, earlier, latest, found)


@compiled
def add_text(new, place, orders, word_counts, ids, hashed, starts, earlier, latest, words, found):
    """Add the bytes from `place` on of each row, `new` (n b), one after another: `found` is (n b context k)."""
    for t in range(len(new)):
        add_bytes(new[t], place + t, orders, word_counts, ids, hashed, starts, earlier, latest, words, found[t])


@compiled
def add_context(context, start, place, row, i, ids, hashed, starts, earlier, latest, found):
    """Write what followed the latest occurrences of a context to `found`, and put this one in front of its chain.

    Args:
        context: its hash.
        start: the first byte that it depends on.
        i: its index among the contexts of a byte.
    """
    slots = ids.shape[1]
    reach = max(0, place + 1 - slots)  # a context counts if it starts there or later
    newest = latest[row, i, context % slots]

    count = 0
    candidate = newest
    while count < found.shape[2] and candidate >= reach and start >= reach:
        slot = candidate % slots
        if hashed[row, i, slot] == context:
            if starts[row, i, slot] >= reach:
                found[row, i, count] = 1 + ids[row, (candidate + 1) % slots]
            count += 1
        candidate = earlier[row, i, slot]

    hashed[row, i, place % slots] = context
    starts[row, i, place % slots] = start
    earlier[row, i, place % slots] = newest
    latest[row, i, context % slots] = place


@compiled
def begin_gap(place, row, words):
    """Go on in `words` (b 1+count 2) to a byte that belongs to no word."""
    if words[row, 0, 0] < place - 1:  # it ends a word
        for count in range(words.shape[1] - 1, 0, -1):
            words[row, count, 0] = words[row, count - 1, 0]
            words[row, count, 1] = words[row, count - 1, 1]
    words[row, 0, 0] = place
    words[row, 0, 1] = 0
