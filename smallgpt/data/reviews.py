"""Labelled texts: CSV, TSV or JSONL with a text and a label column, and their split.

A review is one example, however long; identical reviews are always in the same part of the split.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallgpt.config import SentimentConfig
from smallgpt.data.tables import read_rows
from smallgpt.data.text import BLANK
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.words import counted

IntArray = npt.NDArray[np.int64]
MOST_LABELS = 1000
MANY_LABELS, FEW_REVIEWS = 20, 5
"""More labels, or mostly labels with fewer reviews, may be those of a wrong column."""
_MISSING = ("", "nan", "none", "null")
_NUMBER = re.compile(r"-?[0-9]+")
_WHOLE_NUMBER = re.compile(r"(-?[0-9]+)\.0*")  # as a table with gaps is often saved


@dataclass(frozen=True)
class Reviews:
    """texts: the reviews; labels: the number of each one's label, (N,); names: by number."""

    texts: list[str]
    labels: IntArray
    names: list[str]

    def __len__(self) -> int:
        """Number of reviews."""
        return len(self.texts)

    def part(self, indices: IntArray) -> Reviews:
        """Some of the reviews, with the same names of labels."""
        return Reviews([self.texts[i] for i in indices], self.labels[indices], self.names)


@dataclass(frozen=True)
class Split:
    """Indices of the reviews to train on, to choose the best model with, and to test it on."""

    train: IntArray
    validation: IntArray
    test: IntArray


def read_reviews(
    path: Path,
    text_column: str,
    label_column: str,
    names: list[str] | None = None,
    label_map: Mapping[str, str] | None = None,
) -> Reviews:
    """Read a whole file.

    Rows without a text or a label are dropped, and counted in a line. `1.0` is the label `1`.

    Args:
        names: the classes; by default all that are found, numbers by their value.
        label_map: the class of each label; rows with other labels are dropped, and counted too. By
            default every label is a class.

    Raises:
        UserError: the file or a column is missing, undecodable or broken, a class is not among the
            names, there are fewer than two, or no row has a label of `label_map`.
    """
    texts, found = [], []
    empty, seen = Counter[str](), Counter[str]()
    class_of = _class_of(label_map or {})
    for row in read_rows(path, (text_column, label_column)):
        text, label = row.cells[text_column], _label(row.cells[label_column])
        if not text.strip(BLANK) or text.strip().lower() == "nan":
            empty["text"] += 1
            continue
        if label.lower() in _MISSING and label not in class_of:
            empty["label"] += 1
            continue
        seen[label] += 1
        name = class_of.get(label) if class_of else label
        if name is None:
            continue
        if names is not None and name not in names:
            raise UserError(
                f"{path}, {row.unit} {row.number:,}: the label {name!r} is unknown",
                f"the labels are: {', '.join(names)}",
            )
        texts.append(text)
        found.append(name)
    for column, count in empty.items():
        note(f"{path}: {counted(count, 'row')} without a {column} dropped")
    if class_of:
        _tell_what_is_mapped(path, label_column, class_of, seen)
    if names is None:
        names = _names(path, label_column, found)
    number = {name: n for n, name in enumerate(names)}
    return Reviews(texts, np.array([number[label] for label in found], np.int64), names)


def _class_of(label_map: Mapping[str, str]) -> dict[str, str]:
    """`label_map` with labels and classes as they are read from a table."""
    class_of: dict[str, str] = {}
    for written, name in label_map.items():
        if class_of.setdefault(_label(written), _label(name)) != _label(name):
            raise UserError(
                f"label_map: the label {_label(written)!r} has two classes", "keep one of them"
            )
    return class_of


def _tell_what_is_mapped(
    path: Path, label_column: str, class_of: dict[str, str], seen: Counter[str]
) -> None:
    """Count the rows that `label_map` leaves out; refuse a label in it that no row has."""
    there = ", ".join(f"{label} ({count:,})" for label, count in seen.most_common(20))
    for label in class_of:
        if label not in seen:
            raise UserError(
                f"label_map: no row of {path} has the label {label!r}",
                f"the labels in column {label_column!r} are: {there or 'none'}",
            )
    left_out = {label: count for label, count in seen.items() if label not in class_of}
    if left_out:
        rows = counted(sum(left_out.values()), "row")
        labels = ", ".join(sorted(left_out)[:20])
        note(f"{path}: {rows} left out, as label_map does not name their labels ({labels})")


def _label(cell: str) -> str:
    cell = cell.strip()
    number = _WHOLE_NUMBER.fullmatch(cell)
    return number[1] if number else cell


def _names(path: Path, label_column: str, found: list[str]) -> list[str]:
    names = sorted(set(found), key=lambda n: (0, int(n), n) if _NUMBER.fullmatch(n) else (1, 0, n))
    if not 2 <= len(names) <= MOST_LABELS:
        raise UserError(
            f"{path}: {counted(len(names), 'different label')} in column {label_column!r}",
            f"a classifier needs 2 to {MOST_LABELS:,}; is it the right column? set label_column",
        )
    count = Counter(found)
    few = 2 * sum(count[name] < FEW_REVIEWS for name in names) > len(names)
    if few or len(names) > MANY_LABELS:
        note(
            f"warning: {path}: {counted(len(names), 'different label')} in column {label_column!r}"
            f"{f', most with fewer than {FEW_REVIEWS} reviews' if few else ''}: "
            "is label_column the right column?"
        )
    return names


def split_reviews(
    reviews: Reviews, train_percent: float, validation_percent: float, seed: int
) -> Split:
    """Split the reviews by label: each part gets almost the same share of each label.

    `train_percent` is the share that is not for the test, `validation_percent` the share of that
    for validation. A UserError says that a label has too few reviews for three parts.
    """
    generator = np.random.default_rng((seed, 6))
    first: dict[str, int] = {}
    group = np.array([first.setdefault(text, i) for i, text in enumerate(reviews.texts)], np.int64)
    part = np.zeros(len(reviews), np.int64)
    for label, name in enumerate(reviews.names):
        own = generator.permutation(np.unique(group[reviews.labels[group] == label]))
        test = max(1, len(own) - round(len(own) * train_percent))
        validation = max(1, round((len(own) - test) * validation_percent))
        if len(own) < 3 or test + validation >= len(own):
            raise UserError(
                f"only {counted(len(own), 'distinct review')} "
                f"{'has' if len(own) == 1 else 'have'} the label {name!r}",
                "each label needs some for training, validation and test; check label_column and "
                "text_column, add more, or change train_percent and validation_percent",
            )
        part[own[:test]] = 2
        part[own[test : test + validation]] = 1
    part = part[group]
    return Split(*(np.flatnonzero(part == number) for number in range(3)))


def read_and_split(
    config: SentimentConfig, names: list[str] | None = None
) -> tuple[Reviews, Split]:
    """The reviews of a config's file, and their split; `names` as in `read_reviews`."""
    path = Path(config.sentimental_data_path)
    reviews = read_reviews(path, config.text_column, config.label_column, names, config.label_map)
    return reviews, split_reviews(
        reviews, config.train_percent, config.validation_percent, config.split_seed
    )


def fingerprint(reviews: Reviews, split: Split) -> str:
    """A hash of the reviews, their labels and which part each is in."""
    parts = [part.tolist() for part in vars(split).values()]
    everything = (reviews.texts, reviews.labels.tolist(), reviews.names, parts)
    return hashlib.sha256(repr(everything).encode()).hexdigest()


def hashes(texts: Iterable[str]) -> IntArray:
    """A number for each text, the same for the same text, (N,)."""
    digests = (hashlib.blake2b(repr(text).encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), np.int64)


def texts_outside_test(config: SentimentConfig, also: list[Path]) -> Iterator[str]:
    """The texts of a config's reviews, and those of other files, that are not in its test part.

    Each is without blank lines, which would divide it in a text of dialogues.
    """
    own, split = read_and_split(config)
    test = {own.texts[i] for i in split.test}
    others = (
        row.cells[config.text_column]
        for file in also
        for row in read_rows(file, [config.text_column], keys="text_column")
    )
    for text in itertools.chain(own.texts, others):
        lines = [line.strip() for line in text.splitlines() if line.strip(BLANK)]
        if lines and text not in test:
            yield "\n".join(lines)
