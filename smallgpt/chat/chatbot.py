"""A trained model to talk with: checkpoint + prompt + generation.

The context of the model is `message <sep> message <sep> …`, the speakers taking turns; the model
then speaks until `<sep>` or `<pad>`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path

import torch

from smallgpt.checkpoints import huggingface
from smallgpt.checkpoints.checkpoint import Checkpoint
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.config import SamplingConfig
from smallgpt.model import inference
from smallgpt.model.generate import generate
from smallgpt.model.gpt import GPT, KeyValueCache
from smallgpt.runtime import choose_precision
from smallgpt.tokenizer.characters import PAD, SEP, Tokenizer, as_utterance
from smallgpt.utils import background


class Chatbot:
    """A conversation with a model: `messages`, the user's first.

    Several threads may use one model, each with a `conversation()` of its own.

    Args:
        model: in evaluation mode.
        sampling: how replies are drawn.
        seed: the same seed and the same talk give the same replies.
        await_weights: called before each reply; returns when the model has its weights.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        sampling: SamplingConfig,
        seed: int = 0,
        await_weights: Callable[[], object] = lambda: None,
    ) -> None:
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.seed, self.await_weights = seed, await_weights
        self.messages: list[str] = []
        self.left_out = 0
        """Characters of the last prompt that did not fit the context."""
        unused = range(len(tokenizer), model.config.vocab_size)
        self._banned = [*tokenizer.suppressed_ids(), *unused]
        self._generator = torch.Generator().manual_seed(seed)
        self._cache: KeyValueCache | None = None

    def conversation(self) -> Chatbot:
        """A new conversation with the same model."""
        return Chatbot(self.model, self.tokenizer, self.sampling, self.seed, self.await_weights)

    def reply(self, text: str) -> str:
        """The whole reply; it and `text` join the conversation."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Generator[str, None, None]:
        """The reply, chunk by chunk.

        The turn joins the conversation also where the iterator is closed early (Ctrl-C).
        """
        self.await_weights()
        # Taken away while it is written, so that a second reply begun meanwhile gets its own.
        cache, self._cache = self._cache, None
        cache = cache or KeyValueCache(self.model.config, self.model.wte.weight)
        said = ""
        self.messages.append(text)
        try:
            chunks, self.left_out = self.respond(self.messages, self._generator, cache=cache)
            for chunk in chunks:
                said += chunk
                yield chunk
        finally:
            self.messages.append(said)
            self._cache = cache

    def flush(self) -> None:
        """Forget everything that was said."""
        self.messages.clear()

    def respond(
        self,
        messages: Sequence[str],
        generator: torch.Generator,
        sampling: SamplingConfig | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Generator[str, None, None], int]:
        """Reply to messages, of which nothing is kept.

        Args:
            messages: at least one, the speakers taking turns; the last is replied to.
            generator: on the CPU; the same state and messages give the same reply.
            sampling: by default the chatbot's own.
            cache: the part of the messages it has read is not read again. It must not be used
                elsewhere until the chunks have ended.

        Returns:
            chunks of the reply, drawn as they are asked for; and how many characters at the
            beginning of the last message did not fit the context.
        """
        self.await_weights()
        drawn = sampling or self.sampling
        context, left_out = prompt_ids(
            messages, self.tokenizer, self.model.config.block_size, drawn.max_new_tokens
        )
        ids = generate(self.model, context, drawn, {SEP, PAD}, self._banned, generator, cache)
        return _text_chunks(ids, self.tokenizer), left_out


def prompt_ids(
    messages: Sequence[str], tokenizer: Tokenizer, context_size: int, max_new_tokens: int
) -> tuple[list[int], int]:
    """The ids to reply to: as many of the last messages as fit, whole.

    Room for `max_new_tokens` is kept free, but at most half of the context. Only a newest message
    that is too long on its own is shortened, to its end.

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


def _text_chunks(ids: Iterable[int], tokenizer: Tokenizer) -> Generator[str, None, None]:
    """The text of ids, each character as soon as its bytes are whole."""
    read, said = list[int](), ""
    for token in ids:
        read.append(token)
        text = tokenizer.decode(read)
        if not text.endswith("\ufffd"):
            yield text[len(said) :]
            said = text


def load(
    path: str | Path | Checkpoint,
    sampling: SamplingConfig | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    dtype: str = "auto",
    wait: bool = True,
) -> Chatbot:
    """A chatbot from a checkpoint; nothing else is needed.

    Args:
        path: whatever names a model, see `open_checkpoint`; or one opened without a look at its
            weights.
        sampling: by default as the checkpoint was configured.
        dtype: precision of the weights: auto, float32, bfloat16, float16 or int8.
        wait: False returns while the weights are still made ready. The first reply waits for them,
            and raises the UserError if their file is damaged.

    Raises:
        UserError: there is no usable checkpoint at `path`, or the device cannot compute in `dtype`.
    """
    stored = path if isinstance(path, Checkpoint) else open_checkpoint(path, verify_weights=False)
    device = torch.device(device)
    model = huggingface.hollow_model(stored.config).eval()
    precision = choose_precision(dtype, device, model.parameter_count())

    def fill() -> None:
        inference.load_inference_weights(
            model,
            stored.weights,
            precision.dtype,
            precision.int8,
            device,
            background.end_with_the_program,
        )

    verified, filled = background.begin(stored.verify_weights), background.begin(fill)

    def await_weights() -> None:
        verified.result()
        filled.result()

    if wait:
        await_weights()
    return Chatbot(model, stored.tokenizer, sampling or stored.config, seed, await_weights)
