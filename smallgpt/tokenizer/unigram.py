"""A vocabulary of frequent pieces of text, of up to four characters, learnt from the text itself.

A unigram model (Kudo, "Subword Regularization", arXiv:1804.10959): each piece has a score, the
logarithm of its share of the pieces of the text, and a text is cut into the pieces with the highest
sum of scores. Every character is a piece too. No piece has a newline, which is `<sep>`, nor < or >,
so that no control token can be typed. Nothing is normalised: the pieces join to the text.

On disk it is a `tokenizer.json` of type Unigram, which gives the same ids. What it is made by is
our own: for 3 million characters the trainer of the `tokenizers` library takes minutes and twice
the memory, and its encoder cuts a quarter as fast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from smallgpt.tokenizer.characters import FIRST_CHARACTER, SEP, UNK, Tokenizer

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

LONGEST = 4
"""Characters of a piece at most."""
_APART = "<>"
"""Characters of the control tokens; they are in no piece but their own."""
_UNKNOWN = 10.0
"""By so much an unknown character scores below the lowest piece, as in the library."""
_STEPS = 1024
"""Scores are multiples of 1 / _STEPS: their sums are exact, in whatever order they are taken."""
_SEEDS = 8
"""Learning begins with so many candidates for each piece that is wanted."""
_KEPT = 0.7
"""Share of the candidates that the next round keeps."""
_PART = 1 << 16
"""Characters cut at a time; small enough that the processor's cache holds much of the work."""


class UnigramTokenizer(Tokenizer):
    """A vocabulary of pieces.

    Args:
        pieces: in id order, starting at id 3; distinct, and each of their characters among them.
        scores: of each piece.
        classifies: `<start>` and `<extract>` follow the pieces.
    """

    of_characters = False

    def __init__(
        self, pieces: Sequence[str], scores: Sequence[float], classifies: bool = False
    ) -> None:
        self.characters, self.scores = list(pieces), list(scores)
        self.classifies = classifies
        self._texts = ["\ufffd", "\n", "", *pieces]
        self._id_of = {p: i for i, p in enumerate(pieces, FIRST_CHARACTER) if len(p) == 1}
        known = self._id_of.keys() - {"\n"}
        if len({"", *pieces}) <= len(pieces) or not all(map(known.issuperset, pieces)):
            raise ValueError("a vocabulary of pieces needs them distinct, and their characters")
        if len(scores) != len(pieces) or not all(map(math.isfinite, scores)):
            raise ValueError("each piece needs a score")
        if any(len(piece) > 1 and set(_APART) & set(piece) for piece in pieces):
            raise ValueError(f"none of {_APART} may be in a longer piece")
        self._id_of["\n"] = SEP
        self._alone = FIRST_CHARACTER + len(pieces)
        parts = np.zeros((self._alone, max(map(len, pieces), default=1)), np.int64)
        for number, piece in enumerate(pieces, FIRST_CHARACTER):
            parts[number, : len(piece)] = [self._id_of[character] for character in piece]
        self._cutter = _Cutter(parts, np.array([0.0, 0.0, 0.0, *scores]))

    def encode(self, text: str) -> list[int]:
        """Text to ids; a newline is `<sep>`, unknown characters in a row are one `<unk>`."""
        numbers: list[int] = self.join(self.numbers(text))[0].tolist()
        return numbers

    def numbers(self, characters: Sequence[str]) -> IntArray:
        """The ids of single characters, for `join`; an unknown < or > has a number of its own."""
        known = self._id_of.get
        return np.array(
            [known(c, self._alone if c in _APART else UNK) for c in characters], np.int64
        )

    def join(self, numbers: IntArray) -> tuple[IntArray, IntArray]:
        """The ids of a text, and the place where each begins, out of those of its characters."""
        ids, begins = self._cutter.cut(numbers)
        again = (ids[1:] == UNK) & (ids[:-1] == UNK)
        kept = np.concatenate(([True], ~again))[: len(ids)]
        ids, begins = ids[kept], begins[kept]
        return np.where(ids == self._alone, UNK, ids), begins

    def spans(self, text: str) -> list[tuple[int, str]]:
        """The ids of a text, each with its part of the text; the parts join to the text."""
        ids, begins = self.join(self.numbers(text))
        ends = [*begins[1:].tolist(), len(text)]
        parts = (text[begin:end] for begin, end in zip(begins.tolist(), ends, strict=False))
        return list(zip(ids.tolist(), parts, strict=True))

    def lengths(self) -> IntArray:
        """How many characters each id stands for, (V,)."""
        return np.array([max(1, len(text)) for text in self._texts] + [1, 1] * self.classifies)

    def first_nats(self) -> FloatArray:
        """−log p(piece | its first character), (V,), by the scores; 0 for control tokens."""
        chance = np.exp([0.0, 0.0, 0.0, *self.scores, *[0.0, 0.0] * self.classifies])
        firsts = self.numbers([text[:1] for text in self._texts] + ["\n", "\n"] * self.classifies)
        firsts[:FIRST_CHARACTER] = firsts[self._alone :] = 0
        alike = np.bincount(firsts, chance)
        result = np.log(alike[firsts] / chance)
        return np.where(firsts > 0, result, 0.0)

    def rare_from(self, share: float) -> int:
        """The first of the ids that together make up this share of the text, the rarest ones."""
        text = np.exp(self.scores) * [len(piece) for piece in self.characters]
        sums = np.cumsum(text) / text.sum()
        return FIRST_CHARACTER + int(np.searchsorted(sums, 1 - share)) + 1

    def with_marks(self) -> Tokenizer:
        """The tokenizer of a classifier with the same pieces."""
        return UnigramTokenizer(self.characters, self.scores, classifies=True)

    def extended(self, other: Tokenizer) -> Tokenizer:
        """This vocabulary and, behind it, the characters that only `other` has."""
        new = [c for c in other.characters if len(c) == 1 and c not in self._id_of]
        scores = [*self.scores, *[min(self.scores, default=0.0)] * len(new)]
        return UnigramTokenizer([*self.characters, *new], scores) if new else self

    def backend(self) -> tokenizers.Tokenizer:
        """The vocabulary as one of the `tokenizers` library, new at each call."""
        scores = [0.0, 0.0, 0.0, *self.scores, *[0.0, 0.0] * self.classifies]
        vocabulary = list(zip(self.tokens(), scores, strict=True))
        backend = tokenizers.Tokenizer(models.Unigram(vocabulary, UNK, byte_fallback=False))
        # A typed "<pad>" is no control token, as < and > stand alone.
        backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(f"[{_APART}]"), "isolated")
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens(["<unk>", "<pad>"])
        return backend


class _Cutter:
    """Cuts texts into the pieces with the highest sum of scores (Viterbi), many places at a time.

    Args:
        parts: of each piece the ids of its characters, 0 behind its end, (V, longest). Rows without
            a character, the control tokens, are never joined to anything.
        scores: (V,)
    """

    def __init__(self, parts: IntArray, scores: FloatArray) -> None:
        lengths = (parts > 0).sum(1)
        self.scores = np.append(scores, 0.0)  # what stands alone, behind all others, needs none
        self.scores[UNK] = scores.min() - _UNKNOWN
        self._base = len(scores) + 1
        self._levels = []
        """For pieces of 2, 3, … characters: a key for the node that precedes and the character
        that follows, rising; and by node the id of the piece that ends there, 0 for none."""
        node = parts[:, 0]
        for length in range(2, parts.shape[1] + 1):
            (longer,) = np.nonzero(lengths >= length)
            keys, places = np.unique(
                node[longer] * self._base + parts[longer, length - 1], return_inverse=True
            )
            ends = np.zeros(len(keys) + 1, np.int64)
            own = lengths[longer] == length
            ends[places[own]] = longer[own]
            self._levels.append((np.append(keys, np.iinfo(np.int64).max), ends))
            node = node.copy()
            node[longer] = places

    def cut(self, numbers: IntArray) -> tuple[IntArray, IntArray]:
        """The ids of the pieces of a text, and where each begins.

        Args:
            numbers: the ids of its characters.
        """
        cuts = [np.zeros((2, 0), np.int64)]
        at = 0
        while at < len(numbers):
            end = _end_of_part(numbers, at)
            ids, begins = self._cut(numbers[at:end])
            cuts.append(np.stack([ids, begins + at]))
            at = end
        ids, begins = np.concatenate(cuts, axis=1)
        return ids, begins

    def _cut(self, numbers: IntArray) -> tuple[IntArray, IntArray]:
        size = len(numbers)
        ids, scores, joined = self._matches(numbers)
        # Where no piece joins a character to the one before it, a stretch begins that is cut by
        # itself: the n-th characters of all of them are looked at together.
        starts = np.flatnonzero(~joined[:size])
        nth = np.arange(size) - np.repeat(starts, np.diff(np.append(starts, size)))
        order = np.argsort(nth, kind="stable")
        groups = np.split(order, np.cumsum(np.bincount(nth))[:-1])
        best = np.zeros(size + 1)  # of the stretch up to here; 0 where one begins
        length = np.ones(size + 1, np.int64)  # of the piece that ends here
        for number, place in enumerate(groups):
            most = min(number, len(ids) - 1)
            total = best[place - most] + scores[most][place - most]
            chosen = np.full(len(place), most + 1)
            for less in range(most - 1, -1, -1):  # of equals the longest, as in the library
                other = best[place - less] + scores[less][place - less]
                better = other > total
                total, chosen = np.where(better, other, total), np.where(better, less + 1, chosen)
            length[place + 1] = chosen
            best[place + 1] = np.where(joined[place + 1], total, 0.0)
        result = np.full(size, -1)
        end = np.append(starts[1:], size)
        while len(end):
            begin = end - length[end]
            result[begin] = np.stack(ids)[length[end] - 1, begin]
            end = begin[joined[begin]]
        begins = np.flatnonzero(result >= 0)
        return result[begins], begins

    def _matches(
        self, numbers: IntArray
    ) -> tuple[list[IntArray], list[FloatArray], npt.NDArray[np.bool_]]:
        """For each length and place the id and the score of the piece that begins there (minus
        infinity where none does); and whether any joins a place to the one before, (size + 1,)."""
        size = len(numbers)
        ids, scores = [numbers], [self.scores[numbers]]
        joined = np.zeros(size + 1, bool)
        place, node = np.arange(size), numbers
        for length, (keys, ends) in enumerate(self._levels, start=2):
            room = place <= size - length
            place, node = place[room], node[room]
            wanted = node * self._base + numbers[place + length - 1]
            node = np.searchsorted(keys, wanted)
            found = keys[node] == wanted
            place, node = place[found], node[found]
            whole = ends[node] > 0
            begins, piece = place[whole], ends[node[whole]]
            ids.append(np.zeros(size, np.int64))
            ids[-1][begins] = piece
            scores.append(np.full(size, -np.inf))
            scores[-1][begins] = self.scores[piece]
            for within in range(1, length):
                joined[begins + within] = True
        return ids, scores, joined


def _end_of_part(numbers: IntArray, begin: int) -> int:
    """The end of about `_PART` characters from `begin` on: behind a control token."""
    end = begin + _PART
    while end < len(numbers):
        (control,) = np.nonzero(numbers[end : end + _PART] < FIRST_CHARACTER)
        if len(control):
            return end + int(control[0]) + 1
        end += _PART
    return len(numbers)


def learn(numbers: IntArray, characters: Sequence[str], pieces: int) -> UnigramTokenizer:
    """A vocabulary of at most so many pieces (never fewer than `characters`) for a text.

    Candidates are the strings of 2 to LONGEST characters that occur at least twice. In each round
    the text is cut, the scores follow from how often each piece was used, and those go that the sum
    of scores needs least. The same text always gives the same vocabulary.

    Args:
        numbers: the text in ids of a character vocabulary, which are 3, 4, … for `characters`.
        characters: each becomes a piece, whether it occurs or not.
    """
    singles = FIRST_CHARACTER + len(characters)
    parts = np.zeros((singles, LONGEST), np.int64)
    parts[FIRST_CHARACTER:, 0] = np.arange(FIRST_CHARACTER, singles)
    counts = np.bincount(numbers, minlength=singles)
    apart = [number for number, c in enumerate(characters, FIRST_CHARACTER) if c in _APART]
    most = FIRST_CHARACTER + max(pieces, len(characters))
    found = _candidates(numbers, apart, _SEEDS * (most - singles))
    parts, counts = np.concatenate([parts, found[0]]), np.concatenate([counts, found[1]])
    while True:
        cutter = _Cutter(parts, _scores(counts))
        counts = np.bincount(cutter.cut(numbers)[0], minlength=len(parts))
        if len(parts) <= most:
            break
        needed = counts[singles:] * _gains(parts[singles:], _Cutter(parts, _scores(counts)))
        keep = max(most - singles, int(_KEPT * len(needed)))
        kept = np.argsort(-needed, kind="stable")[:keep]
        kept = singles + np.sort(kept[needed[kept] > 0])
        kept = np.concatenate([np.arange(singles), kept])
        parts, counts = parts[kept], counts[kept]
    texts = [
        "".join(characters[n - FIRST_CHARACTER] for n in row if n)
        for row in parts[FIRST_CHARACTER:].tolist()
    ]
    scores = _scores(counts)[FIRST_CHARACTER:].tolist()
    used = counts[FIRST_CHARACTER:].tolist()
    order = sorted(range(len(texts)), key=lambda number: (-used[number], texts[number]))
    order = [number for number in order if used[number] or len(texts[number]) == 1]
    return UnigramTokenizer([texts[n] for n in order], [scores[n] for n in order])


def _scores(counts: IntArray) -> FloatArray:
    """Of each piece, and 0 for the control tokens; one that does not occur is taken to do once."""
    used = np.maximum(counts, 1)
    logs = np.log(used / used[FIRST_CHARACTER:].sum())
    logs[:FIRST_CHARACTER] = 0.0
    return np.rint(logs * _STEPS) / _STEPS


def _candidates(numbers: IntArray, apart: list[int], most: int) -> tuple[IntArray, IntArray]:
    """The strings that save the most characters, (N, LONGEST), and how often each occurs."""
    base = int(numbers.max(initial=0)) + 1
    joins = numbers >= FIRST_CHARACTER
    joins &= ~np.isin(numbers, apart)
    (place,) = np.nonzero(joins)
    node = numbers[place]
    begins, lengths, counts = [], [], []
    for length in range(2, LONGEST + 1):
        room = place <= len(numbers) - length
        place, node = place[room], node[room]
        follows = joins[place + length - 1]
        place, node = place[follows], node[follows]
        _, first, node, count = np.unique(
            node * base + numbers[place + length - 1],
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        (twice,) = np.nonzero(count > 1)
        begins.append(place[first[twice]])
        lengths.append(np.full(len(twice), length))
        counts.append(count[twice])
        again = count[node] > 1
        place, node = place[again], node[again]
    begin, size, count = (np.concatenate(parts) for parts in (begins, lengths, counts))
    chosen = np.argsort(-count * (size - 1), kind="stable")[:most]
    begin, size, count = begin[chosen, None], size[chosen, None], count[chosen]
    within = np.arange(LONGEST)
    closed = np.append(numbers, [0] * LONGEST)
    return np.where(within < size, closed[begin + within], 0), count


def _gains(parts: IntArray, cutter: _Cutter) -> FloatArray:
    """By how much each piece scores higher than the best cut of it into other pieces."""
    own = cutter.scores[-1 - len(parts) : -1]
    lengths = (parts > 0).sum(1)
    best = np.full(len(parts), -np.inf)
    for at in range(1, LONGEST):
        (longer,) = np.nonzero(lengths > at)
        left, right = parts[longer, :at], parts[longer, at:]
        best[longer] = np.maximum(best[longer], _totals(left, cutter) + _totals(right, cutter))
    return own - best


def _totals(texts: IntArray, cutter: _Cutter) -> FloatArray:
    """The sum of scores of each text, a row with 0 behind its end."""
    closed = np.pad(texts, ((0, 0), (0, 1)), constant_values=SEP)
    ids, _ = cutter.cut(closed[closed > 0])
    scores = np.where(ids == SEP, 0.0, cutter.scores[ids])
    ends = np.flatnonzero(ids == SEP)
    return np.add.reduceat(scores, np.append(0, ends[:-1] + 1)) if len(ends) else np.empty(0)
