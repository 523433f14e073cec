"""The text of a reply as its ids come: what may be shown, and where a stop string ends it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from smallgpt.chat.chatbot import TextDecoder
from smallgpt.tokenizer.characters import Tokenizer


@dataclass(frozen=True)
class Token:
    """A token's part of the text; log-probabilities of it, and of others in its place by id."""

    text: str
    log_probability: float | None = None
    alternatives: Mapping[int, float] = field(default_factory=dict)


class ReplyText:
    """Ids in, tokens out, held back as long as they may be the beginning of a stop string.

    Args:
        stops: strings, not empty. The text ends before the one that is complete first; of those
            complete at once, before the one that begins first.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._decoder, self._stops = TextDecoder(tokenizer), stops
        self._held = list[Token]()
        self.stopped = False
        """Whether a stop string came: no more ids are wanted."""
        self.count = 0
        """Ids added."""

    def add(
        self,
        token: int,
        log_probability: float | None = None,
        alternatives: Mapping[int, float] | None = None,
    ) -> list[Token]:
        """The tokens that may be shown now."""
        self.count += 1
        text = self._decoder.add(token)
        self._held.append(Token(text, log_probability, alternatives or {}))
        if not self._stops:
            return self.end()
        held = "".join(each.text for each in self._held)
        ends = [(at + len(stop), at) for stop in self._stops if (at := held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return self._release(min(ends)[1])
        return self._release(len(held) - self._possible_beginning(held))

    def end(self) -> list[Token]:
        """What was held back, when no id comes any more."""
        held, self._held = self._held, []
        return held

    def _possible_beginning(self, held: str) -> int:
        """Characters at the end that a stop string begins with."""
        longest = min(max(map(len, self._stops)) - 1, len(held))
        for length in range(longest, 0, -1):
            if any(stop.startswith(held[-length:]) for stop in self._stops):
                return length
        return 0

    def _release(self, end: int) -> list[Token]:
        """The tokens of the first `end` characters; a token that goes beyond is cut at a stop, and
        else waits."""
        released = list[Token]()
        while self._held:
            token = self._held[0]
            if len(token.text) > end:
                if self.stopped and end:
                    released.append(replace(token, text=token.text[:end]))
                break
            end -= len(token.text)
            released.append(self._held.pop(0))
        if self.stopped:
            self._held.clear()
        return released
