"""What of a reply may be shown, against the whole text cut where a stop string is complete."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from smallgpt.server.reply_text import ReplyText, Token
from smallgpt.tokenizer.characters import UNK, Tokenizer
from tests.helpers.models import vocabulary

texts = st.text("ab好。 ", max_size=20)
stops = st.lists(st.text("ab好。 ", min_size=1, max_size=4), max_size=3)


class Pieces(Tokenizer):
    """Ids that stand for parts of a text, as many characters each as is said."""

    def __init__(self, parts: Sequence[str]) -> None:
        super().__init__(vocabulary().characters)
        self._texts = list(parts)


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the stop string that is complete first, and of those the longest."""
    for end in range(len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return text[: min(begins)]
    return text


@given(st.lists(st.text("ab好。 ", min_size=1, max_size=4), max_size=8), stops)
def test_a_stop_string_ends_the_text_and_nothing_of_it_is_ever_shown(
    parts: list[str], stops: list[str]
) -> None:
    text, shown = ReplyText(Pieces(parts), stops), ""
    whole, expected = "".join(parts), cut("".join(parts), stops)
    read = ""
    for number, part in enumerate(parts):
        if text.stopped:
            break
        read += part
        tokens = text.add(number, -float(number))
        assert all(token.log_probability is not None for token in tokens)
        shown += "".join(token.text for token in tokens)
        assert expected.startswith(shown)
        # What is held back might be the beginning of a stop string, or its token is.
        held = read[len(shown) :]
        assert text.stopped or not held or len(held) < 4 + max(map(len, stops))
    assert text.stopped == (cut(whole, stops) != whole or any(map(whole.endswith, stops)))
    if not text.stopped:
        shown += "".join(token.text for token in text.end())
    assert shown == expected
    assert text.end() == []


@given(texts)
def test_without_stop_strings_every_character_is_shown_at_once(text: str) -> None:
    tokenizer, reply = vocabulary(), ReplyText(vocabulary())
    for token in tokenizer.encode(text):
        if token != UNK:  # never drawn
            assert reply.add(token) == [Token(tokenizer.decode([token]))]
    assert reply.count == sum(token != UNK for token in tokenizer.encode(text))
