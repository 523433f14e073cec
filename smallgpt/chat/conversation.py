"""Turns, history and what fits the context. Knows text and ids, not tensors.

The context of the model is `utterance <sep> utterance <sep> …`, the speakers taking turns; the
model then speaks until `<sep>` or `<pad>`.
"""

from __future__ import annotations

from smallgpt.tokenizer.characters import SEP, Tokenizer, as_utterance


class Conversation:
    """The turns so far, and the context made of them.

    Args:
        tokenizer: the model's.
        context_size: ids the model can attend to, its reply included.
    """

    def __init__(self, tokenizer: Tokenizer, context_size: int) -> None:
        self.tokenizer = tokenizer
        self.context_size = context_size
        self._turns: list[list[int]] = []

    def __len__(self) -> int:
        """Number of turns (utterances) remembered."""
        return len(self._turns)

    def add(self, utterance: str) -> None:
        """Append a turn, whoever spoke."""
        self._turns.append([*self.tokenizer.encode(as_utterance(utterance)), SEP])

    def flush(self) -> None:
        """Forget everything."""
        self._turns.clear()

    def reserve(self, max_new_tokens: int) -> int:
        """Ids kept free for the reply: `max_new_tokens`, but at most half of the context."""
        return min(max_new_tokens, self.context_size // 2)

    def context(self, max_new_tokens: int) -> tuple[list[int], int]:
        """The ids to reply to: as many of the last turns as fit, whole; older turns are forgotten.

        Only a newest turn that is too long on its own is shortened, to its end.

        Returns:
            the ids (ending in `<sep>`), and how many characters of the newest turn were left out.
        """
        room = self.context_size - self.reserve(max_new_tokens)
        while len(self._turns) > 1 and sum(map(len, self._turns)) > room:
            del self._turns[0]
        ids = [token for turn in self._turns for token in turn]
        left_out = max(0, len(ids) - room)
        if left_out:
            self._turns[0] = ids = ids[left_out:]
        return list(ids), left_out
