"""Units that end at words: a level that follows the text (SpaceByte, arXiv 2404.14408)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.segments import Rule, TextUnits, pick

PERIOD = 64  # units after which the count of those that may end begins anew
LONGEST = 2  # strides after which a unit ends within a word, or between two, as well


@dataclass(frozen=True)
class WordEnds(Rule):
    """Units that end at the first byte after a word, and not more of them than `FixedStride` of this stride has.

    Words are runs of letters, digits and bytes from 128 up. The byte after a word is the first one that knows that the
    word is over. With a stride of 6, most units are one word; with 24, several words.

    The simple version, for byte t at place p = t mod period, goes from byte to byte:

        is_candidate = p is 0, or a word has just ended, or did some multiple of `too_long` bytes ago
        ends a unit  = is_candidate, and at most ⌊p / stride⌋ units have ended earlier in this period

    The third kind of candidate keeps what the bytes read from growing too old. The bound makes the number of units that
    n bytes can have the same as for a stride, so that shapes are fixed and the cost is known. All of it depends on the
    bytes up to t alone, and on none before the period.
    """

    @property
    def period(self) -> int:
        """Units from a multiple of this byte on do not depend on the bytes before it."""
        return PERIOD * self.stride

    @property
    def too_long(self) -> int:
        """Bytes after which a unit may end without a word."""
        return LONGEST * self.stride

    @property
    def longest(self) -> int:
        """Bytes of the longest unit: those until one more may end, and those until the next candidate."""
        return self.stride + self.too_long

    def cut(self, ids: Tensor) -> "WordUnits":
        """The units of ids (b n).

        The bound without a loop: with C(p) candidates up to place p of a period, of which A(p) = 1 + ⌊p / stride⌋
        may count, min(C(p), min over q ≤ p of A(q) + C(p) - C(q)) do, for a candidate that does not count is lost.
        """
        n = ids.shape[1]
        byte = torch.arange(n, device=ids.device)

        # -- candidates
        in_word = is_word(ids)
        word_has_ended = ~in_word & F.pad(in_word, (1, 0))[:, :n]
        begins_anew = word_has_ended | (byte % self.period == 0)
        since = byte - torch.where(begins_anew, byte, 0).cummax(dim=1).values
        is_candidate = since % self.too_long == 0

        # -- those that count
        padded = F.pad(is_candidate, (0, -n % self.period))
        candidates = padded.unflatten(1, (-1, self.period)).cumsum(dim=-1)
        allowed = 1 + torch.arange(self.period, device=ids.device) // self.stride
        in_period = candidates + (allowed - candidates).cummin(dim=-1).values.clamp(max=0)
        ends_unit = in_period.diff(dim=-1, prepend=torch.zeros_like(in_period[..., :1])) > 0
        in_period, ends_unit = (t.flatten(1)[:, :n] for t in (in_period, ends_unit))

        # -- where they end, in fixed shapes: what is no end goes to one place more, which is cut off
        units = self.count(n)
        latest = ends_unit.cumsum(dim=1) - 1
        ends = ids.new_full((len(ids), units + 1), n - 1, dtype=torch.long)
        ends.scatter_(1, torch.where(ends_unit, latest, units), byte.expand(len(ids), -1))

        state = torch.stack((since[:, -1], in_word[:, -1], in_period[:, -1], latest[:, -1] + 1), dim=1)
        return WordUnits(ends[:, :units], latest, state)

    def step(self, ids: Tensor, state: Tensor, byte: int) -> list[int | None]:
        """For each row the index of the unit that ends at the next byte, or None. Moves the state on.

        This is the simple version of the class, for one byte of a few rows.

        Args:
            ids: the next byte of each row (b).
            state: how far the rows are, as `WordUnits.state`; changed in place.
            byte: the index of this byte in the text.
        """
        place = byte % self.period
        in_words = is_word(ids.cpu()).tolist()
        rows = []
        indices: list[int | None] = []
        for in_word, (since, was_in_word, in_period, count) in zip(in_words, state.tolist(), strict=True):
            word_has_ended = was_in_word and not in_word
            since = 0 if word_has_ended or place == 0 else since + 1
            in_period = 0 if place == 0 else in_period
            ends_unit = since % self.too_long == 0 and in_period <= place // self.stride
            indices.append(count if ends_unit else None)
            rows.append((since, in_word, in_period + ends_unit, count + ends_unit))
        state.copy_(torch.tensor(rows))
        return indices


def is_word(ids: Tensor) -> Tensor:
    """Whether each byte is a letter or a digit."""
    return is_letter(ids) | (ids >= ord("0")) & (ids <= ord("9"))


def is_letter(ids: Tensor) -> Tensor:
    """Whether each byte is a letter of ASCII, or from 128 up, as those of other letters in UTF-8 are."""
    lower = ids | 32  # letters in lower case; nothing else becomes a letter
    return (lower >= ord("a")) & (lower <= ord("z")) | (ids >= 128)


@dataclass(frozen=True, eq=False)
class WordUnits(TextUnits):
    """The units of `WordEnds` in n bytes, which differ from row to row."""

    end_of_unit: Tensor
    """the last byte of each unit (b k), any byte for those that are not real"""
    latest: Tensor
    """index of the latest unit that has ended at each byte (b n)"""
    state: Tensor
    """how far each row is after the last byte (b 4): bytes since the latest word ended, whether the last byte
    belongs to a word, units that have ended in this period, and in all"""
    before: int | Tensor = 0

    @property
    def n(self) -> int:
        return self.latest.shape[1]

    @property
    def count(self) -> int:
        return self.end_of_unit.shape[1]

    @property
    def real(self) -> Tensor:
        return torch.arange(self.count, device=self.latest.device) < self.state[:, 3:]

    def down(self, x: Tensor) -> Tensor:
        return pick(x, self.end_of_unit)

    def windows(self, x: Tensor, size: int) -> Tensor:
        first = self.end_of_unit[..., None]  # x has size - 1 entries more, so there each window begins
        index = first + torch.arange(size, device=x.device)
        return pick(x, index.flatten(1)).unflatten(1, index.shape[1:])

    def up(self, units: Tensor) -> Tensor:
        return pick(units, self.latest)

    def ends(self, device: torch.device) -> Tensor:
        return self.end_of_unit.to(device)

    def latest_at(self, byte: Tensor) -> Tensor:
        return self.latest.gather(1, byte)

    def last(self, tokens: Tensor, count: int = 1) -> Tensor:
        behind = self.state[:, 3] + tokens.shape[1] - self.count  # index behind the last real token
        index = behind[:, None] + torch.arange(-count, 0, device=tokens.device)
        return pick(tokens, index)
