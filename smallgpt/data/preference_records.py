"""A record of what people think of replies -> the dialogues they end, and how good each is.

    pair       {"prompt": …, "chosen": …, "rejected": …}; without prompt, two whole dialogues
    ranking    {"prompt": …, "replies": [best, …, worst]}, or with scores or ranks
    thumb      a dialogue with "label" or "kto_tag": true or false, or "verdict": "up" or "down"
    correction a dialogue with what should have been said instead of its last utterance

The first is as in TRL, LLaMA-Factory and Anthropic's hh-rlhf, the second as in UltraFeedback,
Nectar and RRHF, the labels are those of KTO; verdicts and corrections are what `smallgpt serve`
writes with --feedback. What was said before is given in any form that `dialogue_records` reads.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from smallgpt.data.dialogue_records import (
    CONTENTS,
    LISTS,
    PROMPTS,
    REPLIES,
    BadRecordError,
    Columns,
    checked,
    is_assistants,
    is_message,
    known_columns,
    known_key,
    said_before,
    turns_of,
    utterances,
)

CHOSEN, REJECTED = "chosen", "rejected"
LISTS_OF_REPLIES = ("replies", "responses", "completions", "answers")
THUMBS, CORRECTION = ("label", "kto_tag", "verdict"), "correction"
_THUMBS = {
    **dict.fromkeys(("true", "1", "1.0", "up", "good"), True),
    **dict.fromkeys(("false", "0", "0.0", "down", "bad"), False),
}
_SCORES, _RANKS = ("overall_score", "score"), ("rank",)
"""Keys of a reply: higher is better, lower is better. Beside the replies they are plural."""


class Judged(NamedTuple):
    """dialogues: the same but for the last utterance, the reply; grades: higher is better;
    compared: the replies are compared with each other, rather than each good, 1, or bad, 0."""

    dialogues: list[list[str]]
    grades: list[float]
    compared: bool


def judged(record: Any, kind: str | None = None, columns: Columns | None = None) -> Judged | None:
    """The replies of a record, and how good they are; None where it does not say that.

    Args:
        kind, columns: of a dialogue with one reply, as of `dialogue_records.utterances`.

    Raises:
        BadRecordError: it is broken.
    """
    if not isinstance(record, dict):
        return None
    if columns is None:
        if _given(record, CHOSEN) is not None and _given(record, REJECTED) is not None:
            return Judged(_pair(record), [1.0, 0.0], compared=True)
        if name := _name_of_ranking(record):
            return _ranking(record, name)
        if (correction := _given(record, CORRECTION)) is not None:
            *before, reply = utterances(record, kind, None)
            instead = checked([*before, _reply(correction, CORRECTION)])
            return Judged([instead, [*before, reply]], [1.0, 0.0], compared=False)
    liked = thumb(record, columns)
    if liked is None:
        return None
    return Judged([utterances(record, kind, columns)], [float(liked)], compared=False)


def thumb(record: Any, columns: Columns | None = None) -> bool | None:
    """Whether a dialogue's reply is marked as good or bad; None where it is not, or corrected."""
    if not isinstance(record, dict) or _given(record, CORRECTION) is not None:
        return None
    for key in THUMBS:
        if key in record and key not in (columns or ()):
            liked = _THUMBS.get(str(record[key]).strip().lower())
            if liked is not None:
                return liked
    return None


def to_be_learnt(
    record: Any, kind: str | None, columns: Columns | None
) -> tuple[list[str] | None, str]:
    """The dialogue of a record with its best reply, None where that is bad; and a remark, or "".

    Raises:
        BadRecordError: it is no dialogue.
    """
    if thumb(record, columns) is False:
        return None, "left out, whose reply is marked as bad"
    found = judged(record, kind, columns)
    if found is None:
        return utterances(record, kind, columns), ""
    best = found.grades.index(max(found.grades))
    remark = "with several replies, of which the best is read" if len(found.grades) > 1 else ""
    return found.dialogues[best], remark


def are_known(names: Iterable[str]) -> bool:
    """Whether the columns of a table are those of dialogues, or of pairs of replies."""
    names = list(names)
    return {CHOSEN, REJECTED} <= set(names) or known_columns(names) is not None


def _given(record: dict[str, Any], name: str) -> Any:
    """What is under a name; None where that is nothing, or NaN, as gaps are often saved."""
    value = record.get(name)
    return None if value != value else value


def _pair(record: dict[str, Any]) -> list[list[str]]:
    """Two replies behind what was said before, or two whole dialogues that begin alike."""
    better, worse = (turns_of(record[name], name) for name in (CHOSEN, REJECTED))
    if len(better) == len(worse) == 1:
        before = said_before(record)
        better, worse = [*before, *better], [*before, *worse]
    elif is_assistants(record[CHOSEN], 0):
        raise BadRecordError(f"a reply under {CHOSEN!r} is of {len(better)} utterances, not of one")
    better, worse = checked(better), checked(worse)
    if better[:-1] != worse[:-1]:
        raise BadRecordError(f"{CHOSEN!r} and {REJECTED!r} differ before the last utterance")
    return [better, worse]


def _name_of_ranking(record: dict[str, Any]) -> str | None:
    """The key of a list of replies to a prompt; None where there is none."""
    if not any(isinstance(value, list) and key not in LISTS for key, value in record.items()):
        return None
    if columns := known_columns(map(str, record)):
        replies = record[columns[1]]
        several = isinstance(replies, list) and all(isinstance(text, str) for text in replies)
        return columns[1] if several else None
    lists = (name for name in LISTS_OF_REPLIES if isinstance(record.get(name), list))
    return next(lists, None) if known_key(record, PROMPTS) else None


def _ranking(record: dict[str, Any], name: str) -> Judged:
    replies = record[name]
    if "labels" in record:
        raise BadRecordError(f"'labels' beside {name!r}: steps of one reply, not several replies")
    if len(replies) < 2:
        raise BadRecordError(f"fewer than two replies under {name!r}")
    before, dialogues = said_before(record), []
    for reply in replies:
        key = None if is_message(reply) else known_key(_keys(reply), (*REPLIES, *CONTENTS))
        dialogues.append(checked([*before, _reply(reply[key] if key else reply, key or name)]))
    return Judged(dialogues, _grades(record, replies), compared=True)


def _reply(value: Any, name: str) -> str:
    """The one utterance that a reply is."""
    said = turns_of(value, name)
    if len(said) != 1:
        raise BadRecordError(f"a reply under {name!r} is of {len(said)} utterances, not of one")
    return said[0]


def _grades(record: dict[str, Any], replies: list[Any]) -> list[float]:
    """How good each reply is, by scores or ranks in or beside the replies, else by its place."""
    for sign, keys in ((1, _SCORES), (-1, _RANKS)):
        for key in keys:
            beside = _given(record, f"{key}s")
            inside = [reply.get(key) if isinstance(reply, dict) else None for reply in replies]
            grades = inside if beside is None else beside
            if grades == [None] * len(replies):
                continue
            if not isinstance(grades, list) or len(grades) != len(replies):
                raise BadRecordError(f"not one of the {key}s for each reply")
            if not all(isinstance(grade, (int, float)) and grade == grade for grade in grades):
                raise BadRecordError(f"a {key} that is no number")
            return [sign * grade for grade in grades]
    return [-place for place in range(len(replies))]


def _keys(item: Any) -> Iterable[str]:
    return item if isinstance(item, dict) else ()
