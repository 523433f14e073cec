"""Which messages of a conversation the model gets to see. Knows text and ids, not tensors.

The context of the model is `message <sep> message <sep> …`, the speakers taking turns; the model
then speaks until `<sep>` or `<pad>`.
"""

from __future__ import annotations

from collections.abc import Sequence

from smallgpt.tokenizer.characters import SEP, Tokenizer, as_utterance


def prompt_ids(
    messages: Sequence[str], tokenizer: Tokenizer, context_size: int, max_new_tokens: int
) -> tuple[list[int], int]:
    """The ids to reply to: as many of the last messages as fit, whole.

    Room for `max_new_tokens` is kept free, but at most half of the context. Only a newest message
    that is too long on its own is shortened, to its end.

    Args:
        messages: at least one, the oldest first.

    Returns:
        the ids (ending in `<sep>`), and how many characters of the newest message were left out.
    """
    room = context_size - min(max_new_tokens, context_size // 2)
    spans = [*tokenizer.spans(as_utterance(messages[-1])), (SEP, "\n")]
    cut = max(0, len(spans) - room)
    ids = [token for token, _ in spans[cut:]]
    for message in reversed(messages[:-1]):
        turn = [*tokenizer.encode(as_utterance(message)), SEP]
        if len(turn) + len(ids) > room:
            break
        ids = turn + ids
    return ids, sum(len(text) for _, text in spans[:cut])
