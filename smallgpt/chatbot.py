"""A trained model you talk to: checkpoint + generation + conversation."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import torch

from smallgpt import checkpoint
from smallgpt.config import SamplingConfig
from smallgpt.conversation import Conversation
from smallgpt.generation import generate
from smallgpt.model import GPT
from smallgpt.tokenizer import PAD, SEP, Tokenizer


class Chatbot:
    """Replies to what is said, with what was said before in mind.

    Args:
        model: in evaluation mode.
        tokenizer: its vocabulary.
        sampling: how replies are drawn.
        seed: the same seed and the same talk give the same replies.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, sampling: SamplingConfig, seed: int = 0
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.conversation = Conversation(tokenizer, model.config.block_size)
        self.left_out = 0
        """Characters of the last prompt that did not fit the context."""
        self._tokenizer = tokenizer
        self._generator = torch.Generator().manual_seed(seed)
        unused = range(len(tokenizer), model.config.vocab_size)
        self._banned = [*tokenizer.unspeakable(), *unused]

    def reply(self, text: str) -> str:
        """The whole reply; it and `text` join the conversation."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Generator[str, None, None]:
        """The reply, character by character.

        The turn joins the conversation also where the iterator is closed early (Ctrl-C).
        """
        self.conversation.add(text)
        said = ""
        try:
            context, self.left_out = self.conversation.context(self.sampling.max_new_tokens)
            for token in generate(
                self.model, context, self.sampling, {SEP, PAD}, self._banned, self._generator
            ):
                character = self._tokenizer.decode([token])
                said += character
                yield character
        finally:
            self.conversation.add(said)

    def flush(self) -> None:
        """Forget the conversation."""
        self.conversation.flush()


def load(
    path: str | Path,
    sampling: SamplingConfig | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Chatbot:
    """A chatbot from a checkpoint directory; nothing else is needed.

    Args:
        sampling: by default as the checkpoint was configured.

    Raises:
        UserError: there is no usable checkpoint at `path`.
    """
    stored = checkpoint.load(Path(path).expanduser())
    model = stored.model().to(device)
    return Chatbot(model, stored.tokenizer, sampling or stored.config, seed)
