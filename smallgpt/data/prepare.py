"""Dialogues -> one text, or several parts of it, without duplicates.

Two dialogues are exact duplicates when their utterances are equal, and near duplicates when they
are equal but for white space, punctuation, case and full-width forms (Unicode NFKC); what belongs
to a number, as in 3.5, -5 or 10%, does count. Of each set of duplicates the first is kept; in a
split they fall into one part. A duplicate is known by a hash of 64 bits: what memory must hold is
some 200 bytes a dialogue, never the text.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from unicodedata import category

from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError

_OF_A_NUMBER = re.compile(r"((?<=\d)[\W_]+(?=\d)|[-.\u2010-\u2015](?=\d)|(?<=\d)[%‰])")
_DIGIT, _RAISED = re.compile(r"\d"), re.compile("[²³¹¼-¾⁰-₉⅐-⅟]")
MOST_REASONS = 20  # that are listed; with a part of the data in each they would fill pages


class Survey:
    """What the dialogues are: counts, and the hashes that duplicates are known by."""

    def __init__(self) -> None:
        self.dialogues = self.turns = self.characters = 0
        self.exact = self.near = 0
        """Duplicates left out."""
        self.rejected: Counter[str] = Counter()
        self.lengths: Counter[int] = Counter()
        """Dialogues by their characters, rounded up to a power of two."""
        self._kept: dict[bytes, bytes] = {}  # by what near duplicates share, what exact ones do

    def collect(
        self, dialogues: Iterable[list[str]], keep_duplicates: bool = False
    ) -> Iterator[list[str]]:
        """The same dialogues, counted, without duplicates unless these are to be kept."""
        for dialogue in dialogues:
            if keep_duplicates or not self._is_duplicate(dialogue):
                characters = sum(map(len, dialogue))
                self.dialogues += 1
                self.turns += len(dialogue)
                self.characters += characters
                self.lengths[1 << max(0, characters - 1).bit_length()] += 1
                yield dialogue

    def reject(self, _number: int, reason: str) -> None:
        """Count a broken record, which is left out."""
        known = len(self.rejected) < MOST_REASONS or reason in self.rejected
        self.rejected[reason if known else "other reasons"] += 1

    def _is_duplicate(self, dialogue: list[str]) -> bool:
        exact, near = _digest("\n".join(dialogue)), _digest(essence(dialogue))
        kept = self._kept.get(near)
        if kept is None:
            self._kept[near] = exact
        else:
            self.exact += kept == exact
            self.near += kept != exact
        return kept is not None

    def lines(self) -> list[str]:
        """The report, for people."""
        each = max(1, self.dialogues)
        result = [
            f"dialogues: {self.dialogues:,}",
            f"turns: {self.turns:,} ({self.turns / each:.1f} a dialogue)",
            f"characters: {self.characters:,} ({self.characters / each:.1f} a dialogue)",
            f"duplicates: {self.exact:,} exact, {self.near:,} near",
            f"unreadable records: {self.rejected.total():,}",
            *(f"  {count:,}: {reason}" for reason, count in self.rejected.most_common()),
            "dialogues by length (up to … characters):",
        ]
        longest = max(self.lengths.values(), default=1)
        for most, count in sorted(self.lengths.items()):
            result.append(f"{most:>9,}: {count:>9,} {'#' * round(40 * count / longest)}")
        return result

    def draw(self, path: Path) -> None:
        """Draw the histogram of lengths; a UserError says that it cannot be written."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.subplots()
        found = sorted(self.lengths.items())
        axes.bar([f"{most:,}" for most, _ in found], [count for _, count in found])
        axes.set(xlabel="characters of a dialogue, at most", ylabel="dialogues")
        try:
            with atomic.file(path) as work:
                figure.savefig(work, dpi=90, format="png")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None


def essence(dialogue: list[str]) -> str:
    """What near duplicates have in common: letters and numbers only, one line an utterance.

    Utterances of nothing else, such as "……", stay as they are.
    """

    def letters(utterance: str) -> str:
        told_apart = _RAISED.sub(r"^\g<0>", utterance)  # which NFKC makes plain digits
        folded = unicodedata.normalize("NFKC", told_apart).casefold()
        parts = _OF_A_NUMBER.split(folded) if _DIGIT.search(folded) else [folded]  # quicker
        parts[::2] = ["".join(c for c in p if category(c)[0] not in "PZC") for p in parts[::2]]
        return "".join(parts)

    return "\n".join(letters(utterance) or utterance for utterance in dialogue)


def _digest(text: str, seed: int = 0) -> bytes:
    salt = seed.to_bytes(16, "little")
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, salt=salt).digest()


def write(
    dialogues: Iterable[list[str]], shares: dict[Path, float], seed: int = 0
) -> dict[Path, int]:
    """Write dialogues as texts for train.py; near duplicates come into the same one.

    `shares` has the share of each file, of 1 together. The same seed gives each dialogue the same
    file, whatever others there are. Returns the number of dialogues in each file. Where there is
    none at all, or a file cannot be written, no file is, and a UserError says so.
    """
    written = dict.fromkeys(shares, 0)
    try:
        with ExitStack() as stack:
            files = {}
            for path in shares:
                path.parent.mkdir(parents=True, exist_ok=True)
                work = stack.enter_context(atomic.file(path))
                files[path] = stack.enter_context(work.open("w", encoding="utf-8", newline="\n"))
            for dialogue in dialogues:
                path = _file_of(dialogue, shares, seed)
                files[path].write("\n" * (written[path] > 0) + "\n".join(dialogue) + "\n")
                written[path] += 1
            if not any(written.values()):
                advice = "see what could not be read: python -m smallgpt data stats"
                raise UserError("there is no dialogue in it", advice)
    except FileExistsError as error:
        raise UserError(f"{error.filename} is a file, not a folder", "name another") from None
    except OSError as error:
        names = ", ".join(map(str, shares))
        raise UserError(f"{names} cannot be written: {error.strerror}") from None
    return written


def _file_of(dialogue: list[str], shares: dict[Path, float], seed: int) -> Path:
    if len(shares) == 1:
        return next(iter(shares))
    place = int.from_bytes(_digest(essence(dialogue), seed), "little") / 2**64
    for path, share in shares.items():
        place -= share
        if place < 0:
            return path
    return next(iter(shares))
