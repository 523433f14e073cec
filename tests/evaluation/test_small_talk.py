"""`evaluate --smalltalk`: fitting replies, counted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from smallgpt.chat.chatbot import Chatbot
from smallgpt.chat.side_by_side import Talk
from smallgpt.demo import smalltalk
from smallgpt.evaluation import small_talk
from smallgpt.evaluation.small_talk import fitting_replies


def test_smalltalk_counts_every_reply(trained: Path) -> None:
    lines = str(fitting_replies(trained, 3, 0, "cpu")).splitlines()
    rows = [re.fullmatch(r" *(\d+) of +(\d+) +(\d+\.\d) %  (.+)", line) for line in lines]
    counts = [(int(row[1]), int(row[2]), row[4]) for row in rows if row]
    assert len(counts) == len(lines)
    turns = [turn.user for play in smalltalk.held_out(3, 0) for turn in play]
    assert counts[-1][1:] == (len(turns), "fitting in all")
    assert sum(total for _, total, _ in counts[:-1]) == len(turns)
    assert sum(good for good, _, _ in counts[:-1]) == counts[-1][0]


def test_a_bot_that_knows_the_answers_gets_full_marks(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversation so far reaches the bot: with it, the right reply can be looked up."""
    plays, answers = smalltalk.held_out(4, 7), {}
    for play in plays:
        said: list[str] = []
        for turn in play:
            said += [turn.user]
            answers[tuple(said)] = turn.bot
            said += [turn.bot]

    def converse(bot: Chatbot, talks: Iterable[tuple[Talk, int]]) -> Iterator[int]:
        for talk, _ in talks:
            messages = next(talk)
            with suppress(StopIteration):
                while True:
                    messages = talk.send(answers[tuple(messages)])
            yield 1

    monkeypatch.setattr(small_talk, "converse", converse)
    assert str(fitting_replies(trained, 4, 7, "cpu")).endswith("100.0 %  fitting in all")
