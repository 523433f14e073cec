"""Dialogues -> one text, or several parts of it, without duplicates.

Two dialogues are exact duplicates when their utterances are equal, and near duplicates when they
are equal but for white space, punctuation, case and full-width forms (Unicode NFKC); what belongs
to a number, as in 3.5, -5 or 10%, does count. Of each set of duplicates the first is kept; in a
split they fall into one part. A duplicate is known by a hash of 64 bits: what memory must hold is
some 200 bytes a dialogue, never the text.
"""

import hashlib
import re
import tempfile
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any
from unicodedata import category

import numpy as np
import numpy.typing as npt

from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError
from smallgpt.utils.words import counted

_OF_A_NUMBER = re.compile(r"((?<=\d)[\W_]+(?=\d)|[-.\u2010-\u2015](?=\d)|(?<=\d)[%‰])")
_DIGIT, _RAISED = re.compile(r"\d"), re.compile("[²³¹¼-¾⁰-₉⅐-⅟]")
MOST_REASONS = 20  # that are listed; with a part of the data in each they would fill pages


class Survey:
    """What the dialogues are: counts, and the hashes that duplicates are known by."""

    def __init__(self) -> None:
        self.dialogues = self.turns = self.characters = 0
        self.exact = self.near = 0
        """Duplicates left out."""
        self.unwanted = 0
        """Left out because another file has them."""
        self.rejected: Counter[str] = Counter()
        self.lengths: Counter[int] = Counter()
        """Dialogues by their characters, rounded up to a power of two."""
        self._kept: dict[bytes, bytes] = {}  # by what near duplicates share, what exact ones do
        self._elsewhere: set[bytes] = set()  # what near duplicates of other files share

    def leave_out(self, dialogues: Iterable[list[str]]) -> None:
        """Leave these out of what is collected from now on, and their near duplicates."""
        self._elsewhere.update(_digest(essence(dialogue)) for dialogue in dialogues)

    def collect(
        self, dialogues: Iterable[list[str]], keep_duplicates: bool = False
    ) -> Iterator[list[str]]:
        """The same dialogues, counted, without duplicates unless these are to be kept."""
        for dialogue in dialogues:
            if self._is_wanted(dialogue, keep_duplicates):
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

    def _is_wanted(self, dialogue: list[str], keep_duplicates: bool) -> bool:
        if keep_duplicates and not self._elsewhere:
            return True
        near = _digest(essence(dialogue))
        if near in self._elsewhere:
            self.unwanted += 1
            return False
        return keep_duplicates or not self._is_duplicate(dialogue, near)

    def _is_duplicate(self, dialogue: list[str], near: bytes) -> bool:
        exact = _digest("\n".join(dialogue))
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
            *([f"left out with --without: {self.unwanted:,}"] if self._elsewhere else []),
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
    dialogues: Iterable[list[str]], shares: dict[Path, float], seed: int | None = 0
) -> dict[Path, int]:
    """Write dialogues as texts for train.py; near duplicates come into the same one.

    `shares` has the share of each file, of 1 together; none stays empty. With the same seed nearly
    all dialogues keep their file when others are added. Without a seed (None) they stay in order:
    the first file has the first of them, and near duplicates are not looked for.

    Returns the number of dialogues in each. Where there are fewer than files, or a file cannot be
    written, none is, and a UserError says so.
    """
    written = dict.fromkeys(shares, 0)
    try:
        with ExitStack() as stack:
            files = {}
            for path in shares:
                path.parent.mkdir(parents=True, exist_ok=True)
                work = stack.enter_context(atomic.file(path))
                files[path] = stack.enter_context(work.open("w", encoding="utf-8", newline="\n"))
            texts = map("\n".join, dialogues)
            first = next(iter(shares))
            placed: Iterator[tuple[Path, str]] = ((first, text) for text in texts)
            if len(shares) > 1:
                spool = stack.enter_context(tempfile.TemporaryFile(dir=first.parent))
                placed = _in_parts(texts, shares, seed, spool)
            for path, text in placed:
                files[path].write("\n" * (written[path] > 0) + text + "\n")
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


def _in_parts(
    texts: Iterable[str], shares: dict[Path, float], seed: int | None, spool: IO[bytes]
) -> Iterator[tuple[Path, str]]:
    """Each text with its file; meanwhile they are on disk, for the parts depend on all of them."""
    digests, lengths = array("Q"), array("L")
    for number, text in enumerate(texts):
        if seed is None:  # _parts gives the first part the lowest numbers
            digests.append(number)
        else:
            digest = _digest(essence(text.split("\n")), seed)
            digests.append(int.from_bytes(digest, "little"))
        lengths.append(spool.write(text.encode()))
    spool.seek(0)
    paths = list(shares)
    parts = _parts(np.array(digests, np.uint64), list(shares.values()))
    for length, part in zip(lengths, parts, strict=True):
        yield paths[part], spool.read(length).decode()


def _parts(digests: npt.NDArray[np.uint64], shares: list[float]) -> npt.NDArray[Any]:
    """The part of each dialogue, so that equal digests share one and each has its share nearly.

    The largest groups come first, each into the part that lacks most.
    """
    groups, group_of, sizes = np.unique(digests, return_inverse=True, return_counts=True)
    if 0 < len(groups) < len(shares):
        problem = f"{counted(len(groups), 'different dialogue')} for {len(shares)} parts"
        raise UserError(problem, "add more, or leave parts out: --validation 0, --test 0")
    order = np.argsort(-sizes, kind="stable")
    lacking = [share * len(digests) for share in shares]
    empty, chosen = set(range(len(shares))), np.empty(len(groups), np.int64)
    for n, size in enumerate(sizes[order].tolist()):
        choice = empty if len(groups) - n <= len(empty) else range(len(shares))
        part = max(choice, key=lacking.__getitem__)
        lacking[part] -= size
        empty.discard(part)
        chosen[n] = part
    # Among groups of one size the lowest digests are for the first part, whatever is added.
    result = np.empty_like(chosen)
    result[order] = chosen[np.lexsort((chosen, -sizes[order]))]
    return result[group_of]
