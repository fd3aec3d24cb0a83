"""The loops of `Sampling` and `Rows`, compiled by Numba.

For one row, starting a dozen operations on 256 numbers takes longer than a step of a small model.
"""

from math import factorial, inf, isfinite, log

import numpy as np

from utils.loops import compiled

LOG2_E = 1 / log(2)
# ln 2 in two parts. The first has so few digits that its product with a small whole number is exact.
LN2_HIGH = float.fromhex("0x1.62e42feep-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
COEFFICIENTS = tuple(1 / factorial(n) for n in range(13, -1, -1))  # of the power series of e^r, highest first
LEAST = -708.0  # below this, e^x is too small for the bits of a float64, and counts as 0

TINY = 1e-38  # divides logits at a temperature of 0, or close to it; a float64 does not overflow


@compiled
def choose_tokens(
    position, logits, options, numbers, used, prompts, prompt_lengths, ends, stop, seen, stopped, token, new
):
    """Choose each row's token at a position, as `Rows.advance` says, whose arrays these are.

    Returns whether all logits were finite.

    Args:
        logits: of several positions (b n v), of which the last one counts.
        options: see `draw`.
        numbers: random numbers of each row (b n), of which `used` (b) were used.
        stop: tokens that end a row.
        new: gets the tokens that are new, and -1 where there is none (b).
    """
    for row in range(len(logits)):
        new[row] = -1
        if position < prompt_lengths[row]:
            token[row] = prompts[row, position]
        elif position < ends[row]:
            if not stopped[row]:
                drawn = draw(logits[row, -1], seen[row], numbers[row, used[row]], options)
                if drawn < 0:
                    return False
                token[row] = drawn
                used[row] += 1
                stopped[row] = (stop == drawn).any()
            new[row] = token[row]
        seen[row, token[row]] = True
    return True


@compiled
def draw(logits, seen, uniform, options):
    """A token drawn from logits (v), or -1 if they are not finite.

    The tokens' probabilities lie side by side, and a random number from 0 to 1 lies in that of one token. So a draw
    needs a single random number, however many tokens there are.

    Args:
        seen: marks the tokens that came before, for a repetition penalty (v).
        uniform: the random number, below 1.
        options: temperature, top_k, top_p, min_p and repetition_penalty of `Sampling`; those that are None have the
            value that changes nothing.
    """
    temperature, top_k, top_p, min_p, penalty = options
    scaled = penalise(logits, seen, penalty)
    likeliest = scaled.argmax()
    if not isfinite(scaled[likeliest]):  # what is not a number counts as the largest
        return -1
    if temperature == 0:
        return likeliest

    # The largest is subtracted, which changes no probability. It is then 0, where a quotient alone could overflow.
    scaled = (scaled - scaled[likeliest]) / max(temperature, TINY)
    weights = filtered(scaled, top_k, top_p, min_p)
    threshold = uniform * weights.sum()
    end = 0.0
    for i in range(len(weights)):
        end += weights[i]
        if end > threshold:
            return i
    return likeliest  # only if rounding has put the threshold behind all of them


@compiled
def penalise(logits, seen, penalty):
    """Logits (v) in float64, after the repetition penalty."""
    out = logits.astype(np.float64)
    if penalty != 1:
        for i in range(len(out)):
            if seen[i]:
                out[i] = out[i] / penalty if out[i] > 0 else out[i] * penalty
    return out


@compiled
def filtered(scaled, top_k, top_p, min_p):
    """How likely each token is, relative to the likeliest, and 0 for those that must not be drawn: (v).

    Each filter looks at all tokens. The likeliest token and its ties stay.

    Args:
        scaled: logits over the temperature (v), of which the largest is 0.
    """
    weights = exponentials(scaled)
    kept = weights.copy()
    lowest = -inf  # the least logit that is kept
    if min_p > 0:
        for i in range(len(weights)):
            if weights[i] < min_p:
                kept[i] = 0.0
    if top_k < len(scaled) or top_p < 1:
        order = np.argsort(-scaled, kind="mergesort")
        if top_k < len(scaled):
            lowest = scaled[order[top_k - 1]]
        if top_p < 1:
            total = weights.sum()
            likelier = 0.0  # weights of all likelier tokens
            for i in order:
                if likelier >= top_p * total and scaled[i] < 0:
                    kept[i] = 0.0
                likelier += weights[i]
    for i in range(len(weights)):
        if scaled[i] < lowest:
            kept[i] = 0.0
    return kept


@compiled
def exponentials(x):
    """e^x of x ≤ 0 (v), in float64. The simple version is `np.exp`, which Numba computes one after another.

    Here a processor computes several at once, in a fifth of the time: e^x = 2^k · e^r, with a whole number k and
    |r| ≤ ln 2 / 2. A power series gives e^r, and the bits of a float are those of k.
    """
    out = np.empty(len(x))
    power_bits = np.empty(len(x), dtype=np.int64)
    for i in range(len(x)):
        in_range = max(x[i], LEAST)
        k = np.floor(in_range * LOG2_E + 0.5)
        r = in_range - k * LN2_HIGH - k * LN2_LOW
        series = 0.0
        for coefficient in COEFFICIENTS:
            series = series * r + coefficient
        out[i] = series
        power_bits[i] = (np.int64(k) + 1023) << 52

    power = power_bits.view(np.float64)
    for i in range(len(x)):
        out[i] *= power[i] if x[i] >= LEAST else 0.0
    return out
