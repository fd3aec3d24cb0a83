"""The loops of `MatchIndex.add`, compiled by Numba.

A few steps for each context, where operations on tensors, which cannot stop early, would take thousands. Arrays are
those of `MatchIndex`. `hashing` holds the factors of hashes and each byte's letter in lower case, 0 for a gap. They are
arguments, because code that Numba keeps on the disk would not notice a change of them. Integers have 64 bits and wrap
around.

An index of many rows is larger than a core's cache, and reading from memory takes longer than the loops. So they read
for all contexts of all rows before they wait for what they have read, with no branch that depends on it. The simple
version takes one context after another:

    place = the latest place in its bucket
    while fewer than k were found, and the place is in reach:
        where the context is the same, found the byte after it
        place = the place before it in the bucket
"""

import numpy as np

from model.matches import NON_NEGATIVE
from utils.loops import compiled


@compiled
def add_bytes(new, place, hashing, orders, word_counts, ids, hashed, starts, earlier, latest, words, found):
    """Add the byte at `place` of each row, `new` (b), and write what followed its contexts to `found` (b context k)."""
    rows, contexts, slots = hashed.shape
    own_slot = place % slots
    context = np.empty((rows, contexts), dtype=np.int64)
    start = np.empty((rows, contexts), dtype=np.int64)
    for row in range(rows):
        ids[row, own_slot] = new[row]
        read_ngrams(place, own_slot, hashing, orders, ids[row], context[row], start[row])
        read_words(
            new[row], place, hashing, word_counts, words[row], context[row, len(orders) :], start[row, len(orders) :]
        )

    # Find earlier ones in the chain of their bucket.
    bucket = context % slots
    newest = np.empty((rows, contexts), dtype=np.int64)
    for row in range(rows):
        for i in range(contexts):
            newest[row, i] = latest[row, i, bucket[row, i]]
    follow_chains(place, own_slot, context, start, newest, ids, hashed, starts, earlier, found)

    # Put these in front of the chains.
    for row in range(rows):
        for i in range(contexts):
            hashed[row, i, own_slot] = context[row, i]
            starts[row, i, own_slot] = start[row, i]
            earlier[row, i, own_slot] = newest[row, i]
            latest[row, i, bucket[row, i]] = place


@compiled
def add_text(new, place, hashing, orders, word_counts, ids, hashed, starts, earlier, latest, words, found):
    """Add the bytes from `place` on of each row, `new` (n b), one after another: `found` is (n b context k)."""
    for t in range(len(new)):
        add_bytes(
            new[t], place + t, hashing, orders, word_counts, ids, hashed, starts, earlier, latest, words, found[t]
        )


@compiled
def read_ngrams(place, own_slot, hashing, orders, ids, context, start):
    """The hash and the first byte of each n-gram that ends at `place`, as `matches.ngram_contexts` says."""
    factor, _, _ = hashing
    slot = own_slot
    ngram = np.int64(ids[slot])
    order = 1
    for i in range(len(orders)):
        while order < orders[i]:
            slot = (slot if slot > 0 else len(ids)) - 1
            order += 1
            ngram = (ngram * factor + ids[slot] + order) & NON_NEGATIVE
        context[i] = ngram
        start[i] = place - order + 1


@compiled
def read_words(byte, place, hashing, word_counts, words, context, start):
    """The hash and the first byte of each context of words, as `matches.word_contexts` says."""
    factor, mix, letters = hashing
    letter = letters[byte] if byte < len(letters) else byte
    if letter > 0:
        words[0, 1] = (words[0, 1] * factor + letter) & NON_NEGATIVE
    else:
        begin_gap(place, words)
    word = words[0, 1] if letter > 0 else (-byte - 1) & NON_NEGATIVE
    count = 0
    for i in range(len(word_counts)):
        while count < word_counts[i]:
            count += 1
            word = (word * mix + words[count, 1]) & NON_NEGATIVE
        context[i] = word
        start[i] = words[count, 0]


@compiled
def begin_gap(place, words):
    """Go on in `words` (1+count 2) to a byte that belongs to no word."""
    if words[0, 0] < place - 1:  # it ends a word
        for count in range(len(words) - 1, 0, -1):
            words[count, 0] = words[count - 1, 0]
            words[count, 1] = words[count - 1, 1]
    words[0, 0] = place
    words[0, 1] = 0


@compiled
def follow_chains(place, own_slot, context, start, newest, ids, hashed, starts, earlier, found):
    """Write what followed the latest occurrences of each context (b context) to `found`.

    All chains are followed at once, each by one place in a round, as long as it goes on.
    """
    rows, contexts, slots = hashed.shape
    reach = max(0, place + 1 - slots)  # a context counts if it starts there or later
    found[:] = 0
    chains = np.empty((rows * contexts, 4), dtype=np.int64)  # row, context, how many were found, and the place
    going_on = 0
    for row in range(rows):
        for i in range(contexts):
            chains[going_on] = (row, i, 0, newest[row, i])
            going_on += (newest[row, i] >= reach) & (start[row, i] >= reach)

    while going_on > 0:
        chains_before, going_on = going_on, 0
        for chain in range(chains_before):
            row, i, count, candidate = chains[chain]
            slot = own_slot - (place - candidate)
            slot += slots * (slot < 0)
            next_slot = (slot + 1) * (slot + 1 < slots)
            is_equal = hashed[row, i, slot] == context[row, i]
            counts = is_equal & (starts[row, i, slot] >= reach)
            found[row, i, count] = (1 + ids[row, next_slot]) * counts  # 0 until there is one
            count += is_equal
            candidate = np.int64(earlier[row, i, slot])
            chains[going_on] = (row, i, count, candidate)
            going_on += (count < found.shape[2]) & (candidate >= reach)
