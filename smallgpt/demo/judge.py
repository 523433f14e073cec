"""Whether a model's replies in held-out small talk fit."""

import itertools
import re
from collections.abc import Generator, Sequence

from smallgpt.demo.smalltalk import Line, Turn, templates

_NAME = re.compile(r"\{(\w+)\}")


class Judge:
    """Judges the replies to one dialogue, in order.

    A reply fits when, stripped, it is one of the bot lines of its turn with every variable at
    the value it has in this dialogue. What the bot is free to choose (a film to recommend) is
    set by its own reply, and asked for later as said. A misfit that still names exactly one
    value for such a variable sets it too; one that names none, or several, leaves it open, and
    the next reply that fits may set it: later memory is wrong only if it cannot be right.
    """

    def __init__(self, dialogue: Sequence[Turn]) -> None:
        self._turns = iter(dialogue)
        self._known: dict[str, str] = {}

    def fits(self, reply: str) -> bool:
        """Whether `reply` fits the next turn."""
        turn = next(self._turns)
        self._known.update(turn.said)
        lines = list(itertools.chain.from_iterable(turn.node.bots))
        for line in lines:
            if match := re.fullmatch(self._pattern(line), reply.strip()):
                self._known.update(match.groupdict())
                return True
        for name, kind in lines[0].slots.items():
            named = [value for value in self._open_values(kind) if value in reply]
            if name not in self._known and len(named) == 1:
                self._known[name] = named[0]
        return False

    def _pattern(self, line: Line) -> str:
        pattern, free = "", set[str]()
        for i, part in enumerate(_NAME.split(line.text)):  # literal, variable, literal, …
            if i % 2 and part not in self._known:
                values = "|".join(map(re.escape, self._open_values(line.slots[part])))
                pattern += f"(?P={part})" if part in free else f"(?P<{part}>{values})"
                free.add(part)
            else:
                pattern += re.escape(self._known[part] if i % 2 else part)
        return pattern

    def _open_values(self, kind: str) -> list[str]:
        """The values of a slot list that nobody has used in this dialogue."""
        return [v for v in templates().slots[kind] if v not in self._known.values()]


def judged(
    dialogue: Sequence[Turn], counts: dict[str, tuple[int, int]]
) -> Generator[list[str], str, None]:
    """Play a dialogue; counts, by situation, how many replies fit and how many there were.

    Yields the conversation so far, which alternates user and bot lines, holds the bot's own
    earlier replies, and ends with the user's line; is sent the bot's reply.
    """
    judge, history = Judge(dialogue), list[str]()
    for turn in dialogue:
        history.append(turn.user)
        reply = yield list(history)
        history.append(reply)
        fitting, total = counts.get(turn.node.situation, (0, 0))
        counts[turn.node.situation] = (fitting + judge.fits(reply), total + 1)
