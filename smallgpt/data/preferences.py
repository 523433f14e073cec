"""Preferences for tuning: which of two replies is better (DPO), which are good and bad (KTO).

They are read from the containers that dialogues are read from, record by record, in the formats of
`preference_records`. Thumbs, labels and corrections are verdicts on a reply: a correction says that
it is good itself, and what it corrects bad. Of several verdicts on a reply to the same messages the
last one counts; every good reply to them is better than every bad one.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from smallgpt.data.containers import recognise
from smallgpt.data.dialogue_formats import read_records, unit_of
from smallgpt.data.dialogue_records import BadRecordError, listed
from smallgpt.data.json_files import refusing
from smallgpt.data.preference_records import CHOSEN, REJECTED, THUMBS, Judged, judged
from smallgpt.data.text import check_files
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.words import counted

MOST_REPLIES = 10
"""Of a longer ranking, and of more good or more bad replies to the same messages, so many are
compared, evenly spread from the first to the last: pairs grow with the square of the replies."""
EXPECTED = (
    'a record is {"prompt": …, "chosen": …, "rejected": …}, {"prompt": …, "replies": [best, …, '
    'worst]}, {"prompt": …, "completion": …, "label": true}, or a line of serve --feedback: see '
    "docs/data.md"
)
_SAME = ("pair", "left out: both replies are the same")
_TWICE = ("pair", "left out: read before")
_BOTH_WAYS = ("pair", "kept, though the opposite was read too")
_MANY = ("list", f"of more than {MOST_REPLIES} replies: {MOST_REPLIES} of each are compared")

Remarks = Counter[tuple[str, str]]
"""How many of what, and what of them."""
Said = tuple[str, ...]
Item = TypeVar("Item")


@dataclass(frozen=True)
class PreferencePair:
    """messages: what was said before, at least one, the speakers in turn; chosen is the better
    reply to the last of them, rejected the worse one."""

    messages: list[str]
    chosen: str
    rejected: str


@dataclass(frozen=True)
class RatedReply:
    """messages: as of a pair; good: whether the reply is a good one."""

    messages: list[str]
    reply: str
    good: bool


@dataclass(frozen=True)
class Preferences:
    """What people think of replies; nothing occurs twice.

    pairs: of two replies to the same messages.
    rated: every reply of a pair, the chosen good and the rejected bad, and those with only a
        verdict. In the middle of a ranking a reply is both good and bad.
    unpaired: how many of `rated` are of a reply that is in no pair.
    """

    pairs: list[PreferencePair]
    rated: list[RatedReply]
    unpaired: int

    @property
    def fingerprint(self) -> str:
        """A hash of all that, in its order."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:32]


class _Pair(NamedTuple):
    messages: Said
    chosen: str
    rejected: str


def read_preferences(paths: list[Path]) -> Preferences:
    """All preferences of files, in order. What is left out is noted.

    Raises:
        UserError: a file cannot be read, has no preference in it, or a broken record.
    """
    check_files(paths)
    remarks: Remarks = Counter()
    pairs: list[_Pair] = []
    verdicts: dict[tuple[Said, str], bool] = {}
    for found in itertools.chain.from_iterable(map(_judged, paths)):
        if found.compared:
            pairs += _of_ranking(found, remarks)
        elif len({tuple(dialogue) for dialogue in found.dialogues}) < len(found.dialogues):
            remarks[_SAME] += 1
        else:
            for (*messages, reply), grade in zip(found.dialogues, found.grades, strict=True):
                verdicts[tuple(messages), reply] = grade > 0
    pairs += _of_verdicts(verdicts, remarks)
    distinct = dict.fromkeys(pairs)
    remarks[_TWICE] = len(pairs) - len(distinct)
    remarks[_BOTH_WAYS] = sum(_Pair(m, worse, better) in distinct for m, better, worse in distinct)
    for (noun, what), count in (+remarks).items():
        note(f"preferences: {counted(count, noun)} {what}")
    return _preferences(distinct, verdicts, paths)


def _preferences(
    pairs: Iterable[_Pair], verdicts: dict[tuple[Said, str], bool], paths: list[Path]
) -> Preferences:
    rated: dict[tuple[Said, str, bool], None] = {}
    for messages, chosen, rejected in pairs:
        rated |= dict.fromkeys([(messages, chosen, True), (messages, rejected, False)])
    paired = {(messages, reply) for messages, reply, _ in rated}
    rated |= dict.fromkeys((messages, reply, good) for (messages, reply), good in verdicts.items())
    if not rated:
        problem = f"no preference is left of {', '.join(map(str, paths))}"
        raise UserError(problem, "the replies of a pair must differ")
    return Preferences(
        pairs=[PreferencePair(list(messages), *replies) for messages, *replies in pairs],
        rated=[RatedReply(list(messages), reply, good) for messages, reply, good in rated],
        unpaired=sum((messages, reply) not in paired for messages, reply, _ in rated),
    )


def _judged(path: Path) -> Iterator[Judged]:
    """What the records of a file say."""
    container = recognise(path)
    if container == "text":
        raise UserError(f"{path} is a text, which has no preferences", EXPECTED)
    refuse = refusing(path, EXPECTED, unit_of(container))
    empty = True
    for number, record in read_records(path, container, refuse):
        try:
            found = judged(record) or _no_preference(record)
        except BadRecordError as error:
            refuse(number, str(error))
        else:
            empty = False
            yield found
    if empty:
        raise UserError(f"{path} has no preference in it", EXPECTED)


def _no_preference(record: Any) -> NoReturn:
    if not isinstance(record, dict):
        raise BadRecordError("a dialogue or a value alone, which says nothing of replies")
    missing = [name for name in (CHOSEN, REJECTED) if record.get(name) is None]
    marks = [name for name in THUMBS if record.get(name) is not None]
    problem = "nothing that says how good a reply is"
    if marks:
        known = "up nor down" if marks[0] == "verdict" else "true nor false"
        problem = f"{marks[0]!r} is {record[marks[0]]!r}, neither {known}"
    elif len(missing) == 1:
        problem = f"no reply under {missing[0]!r}"
    raise BadRecordError(f"{problem}; its keys are: {listed(record)}")


def _of_ranking(found: Judged, remarks: Remarks) -> Iterator[_Pair]:
    """A pair of each two replies, the better one first; none of equally good ones."""
    ranked = sorted(zip(found.grades, found.dialogues, strict=True), key=lambda item: -item[0])
    for (high, better), (low, worse) in itertools.combinations(_spread(ranked, remarks), 2):
        if high > low and better == worse:
            remarks[_SAME] += 1
        elif high > low:
            yield _Pair(tuple(better[:-1]), better[-1], worse[-1])


def _of_verdicts(verdicts: dict[tuple[Said, str], bool], remarks: Remarks) -> Iterator[_Pair]:
    """A pair of each good and each bad reply to the same messages."""
    replies: dict[Said, tuple[list[str], list[str]]] = {}
    for (messages, reply), good in verdicts.items():
        replies.setdefault(messages, ([], []))[good].append(reply)
    for messages, (worse, better) in replies.items():
        if worse and better:
            both = itertools.product(_spread(better, remarks), _spread(worse, remarks))
            yield from (_Pair(messages, *pair) for pair in both)


def _spread(items: Sequence[Item], remarks: Remarks) -> Sequence[Item]:
    """`MOST_REPLIES` of the items at most, the first and the last among them."""
    if len(items) <= MOST_REPLIES:
        return items
    remarks[_MANY] += 1
    step = (len(items) - 1) / (MOST_REPLIES - 1)
    return [items[round(number * step)] for number in range(MOST_REPLIES)]
