"""Messages -> dialogues in which one speaker, "me", gives the replies.

What one side says in a row is one utterance, joined by spaces, as everywhere in this project. All
others are one side: in a group, each reply answers whatever was said since the last one. A dialogue
ends where nothing is said for longer than the gap. It begins with the others and ends with me.
"""

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from smallgpt.data.chats.exports import read, recognise
from smallgpt.data.chats.messages import ME, OTHER, SYSTEM, Export, Message, listed
from smallgpt.data.chats.placeholders import without_placeholders
from smallgpt.data.json_files import Broken
from smallgpt.utils.errors import UserError

_WHAT_IS_READ = "see docs/data.md for what is read; other texts need no --me"
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


class Chats:
    """The dialogues of one person in any number of exports; what was dropped, by kind.

    Args:
        me: the names, or the account, of the person whose messages become the replies.
        gap: seconds of silence that end a dialogue.
    """

    def __init__(self, me: Sequence[str], gap: float) -> None:
        self.me = [name.strip() for name in me]
        self.silent = set(self.me)
        """Those of these names that have said nothing yet."""
        self.gap = gap
        self.names: set[str] = set()
        """What all speakers are called, and their accounts."""
        self.speakers: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.unanswered = self.unprompted = self.used = self.moved = self.groups = 0

    def dialogues(self, path: Path, broken: Broken | None = None) -> Iterator[list[str]]:
        """Stream the dialogues of an export, as `read_dialogues` those of other files.

        Raises:
            UserError: it is no export, the person does not speak in it, or without `broken`, a row
                is broken.
        """
        form = recognise(path, self.me)
        if form is None:
            raise UserError(f"{path}: no chat export was recognised in it", _WHAT_IS_READ)
        export = read(path, form, self.me, broken)
        mine = self._accounts(path, export)
        for key, count in export.speakers().items():
            self.speakers[f"{export.called(key)}{' (you)' if key in mine else ''}"] += count
            names = {key, *export.names[key]} - {ME, OTHER}
            self.names |= set(map(_named, names))
        members = {(m.chat, m.sender) for m in export.messages if m.sender != SYSTEM}
        self.groups += sum(n > 2 for n in Counter(chat for chat, _ in members).values())
        for messages in self._split(self._in_order(export.messages)):
            if utterances := self._utterances(messages, mine):
                yield utterances

    def _accounts(self, path: Path, export: Export) -> set[str]:
        speakers = export.speakers()
        found: set[str] = set()
        for me in self.me:
            named = [key for key in speakers if _folded(key) == _folded(me)] or [
                key
                for key in speakers
                if _folded(me) in map(_folded, [*export.names[key], *(["me"] if key == ME else [])])
            ]
            if len(named) > 1:
                problem = f"{path}: {len(named)} speakers are called {me!r}"
                raise UserError(problem, f"give the account instead: --me {named[0]}")
            found.update(named)
            self.silent -= {me} if named else set()
        if not speakers:
            raise UserError(f"{path}: no message of a person was recognised in it", _WHAT_IS_READ)
        if not found:
            problem = f"{path}: {' and '.join(map(repr, self.me))} says nothing in it"
            raise UserError(problem, f"give --me one of its speakers: {export.listed()}")
        return found

    def _in_order(self, messages: list[Message]) -> list[Message]:
        """By chat and time. Some tools write the newest first, or each day's in any order."""
        timed, last = [], None
        for message in messages:
            last = message.time if message.time is not None else last
            timed.append(message._replace(time=last) if message.time is None else message)
        pairs = [
            (a.time or 0, b.time or 0) for a, b in itertools.pairwise(timed) if a.chat == b.chat
        ]
        falls = sum(after < before for before, after in pairs)
        if falls > sum(after > before for before, after in pairs):
            timed.reverse()
        else:
            self.moved += falls
        places = {chat: n for n, chat in enumerate(dict.fromkeys(m.chat for m in timed))}
        timed.sort(key=lambda message: (places[message.chat], message.time or 0))
        return timed

    def _split(self, messages: Iterable[Message]) -> Iterator[list[Message]]:
        run: list[Message] = []
        for message in messages:
            silence = (message.time or 0) - (run[-1].time or 0) if run else 0
            if run and (message.chat != run[-1].chat or silence > self.gap):
                yield run
                run = []
            run.append(message)
        yield run

    def _utterances(self, messages: list[Message], mine: set[str]) -> list[str]:
        said: list[tuple[bool, str]] = []
        for message in messages:
            text, dropped = without_placeholders(message)
            self.dropped[dropped] += bool(dropped)
            said += [(message.sender in mine, text)] if text else []
        sides = itertools.groupby(said, key=lambda one: one[0])
        turns = [(own, [text for _, text in texts]) for own, texts in sides]
        if turns and turns[0][0]:
            self.unprompted += len(turns.pop(0)[1])
        if turns and not turns[-1][0]:
            self.unanswered += len(turns.pop()[1])
        self.used += sum(len(texts) for _, texts in turns)
        return [" ".join(texts) for _, texts in turns]

    def lines(self) -> list[str]:
        """The report, for people."""
        result = [
            f"speakers: {listed(self.speakers)}",
            f"messages: {self.speakers.total():,}, of which {self.used:,} are in dialogues",
        ]
        if self.silent:
            names = ", ".join(sorted(map(repr, self.silent)))
            result.append(f"  no messages by this name, is it written so? {names}")
        if self.groups:
            result.append("in a group, each reply answers what others said since the last one")
        left = {
            **{f"dropped: {kind}": count for kind, count in self.dropped.most_common()},
            "not used: what you say first, as it answers nothing": self.unprompted,
            "not used: what others say last, as you do not answer it": self.unanswered,
        }
        result += [f"  {count:,} {what}" for what, count in left.items() if count]
        if self.moved:
            result.append("  the messages were not in the order of their times, and were sorted")
        return result


def gap_in_seconds(text: str) -> float:
    """The seconds of 30m, 2h or 1d; a UserError says that it is no such length of time."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
    seconds = float(found[1]) * _UNITS.get(found[2], 0) if found else 0
    if not seconds:
        raise UserError(f"--gap {text!r} is no length of time", "for example 30m, 2h or 1d")
    return seconds


def _named(name: str) -> str:
    """A name without the mark that WhatsApp puts before strangers."""
    return name.removeprefix("~").strip()


def _folded(name: str) -> str:
    return _named(unicodedata.normalize("NFKC", name).casefold().strip())
