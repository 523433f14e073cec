"""A trained model to talk with: checkpoint + prompt + generation.

The context of the model is `message <sep> message <sep> …`, the speakers taking turns; the model
then speaks until `<sep>` or `<pad>`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from smallgpt.chat.best_of import generate_best, generators_from
from smallgpt.checkpoints import huggingface
from smallgpt.checkpoints.checkpoint import Checkpoint
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.config import Config, SamplingConfig
from smallgpt.config_file import config_from_dict
from smallgpt.model import inference, native
from smallgpt.model.cache import KeyValueCache
from smallgpt.model.generate import Request, generate
from smallgpt.model.gpt import GPT
from smallgpt.runtime import choose_device, choose_precision
from smallgpt.tokenizer.characters import PAD, SEP, Tokenizer, as_utterance
from smallgpt.utils import background, c_library
from smallgpt.utils.errors import UserError

ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Source:
    """Which model talks, and how it computes: number of weights, precision, device."""

    path: Path
    parameters: int
    precision: str
    device: str


class Chatbot:
    """A conversation with a model: `messages`, the user's first.

    One conversation is for one thread at a time. Threads (or users) that talk at the same time each
    take a `conversation()`: the model behind them is one, and is only read.

    Args:
        model: in evaluation mode.
        sampling: how replies are drawn.
        seed: the same seed and the same talk give the same replies.
        await_weights: called before each reply; returns when the model has its weights.
        source: where the model comes from, if it is known.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        sampling: SamplingConfig,
        seed: int = 0,
        await_weights: Callable[[], object] = lambda: None,
        source: Source | None = None,
    ) -> None:
        self.model, self.tokenizer, self._sampling = model, tokenizer, sampling
        self.seed, self.await_weights, self.source = seed, await_weights, source
        self.messages: list[str] = []
        self.left_out = 0
        """Characters of the last prompt that did not fit the context."""
        unused = range(len(tokenizer), model.config.vocab_size)
        self._banned = [*tokenizer.suppressed_ids(), *unused]
        self._generator = torch.Generator().manual_seed(seed)
        self._cache: KeyValueCache | None = None

    def conversation(self) -> Chatbot:
        """A new conversation with the same model, sampling and seed, in which nothing was said."""
        return Chatbot(
            self.model, self.tokenizer, self.sampling, self.seed, self.await_weights, self.source
        )

    def copy(self) -> Chatbot:
        """This conversation as it is now, to go on separately; both draw the same numbers next."""
        other = self.conversation()
        other.messages = list(self.messages)
        other._generator.set_state(self._generator.get_state())
        return other

    @property
    def sampling(self) -> SamplingConfig:
        """How replies are drawn. Of a mapping that is assigned, the keys change."""
        return self._sampling

    @sampling.setter
    def sampling(self, changes: SamplingConfig | Mapping[str, Any]) -> None:
        self._sampling = changed_sampling(self._sampling, changes)

    @property
    def history(self) -> list[dict[str, str]]:
        """What was said, as messages of the form {"role": "user" | "assistant", "content": text}.

        The list is a copy. Assigned, it becomes what was said; it must begin with the user, the
        two taking turns, and end with a reply, or a UserError says so.
        """
        pairs = zip(ROLES * len(self.messages), self.messages, strict=False)
        return [{"role": role, "content": text} for role, text in pairs]

    @history.setter
    def history(self, messages: Sequence[Mapping[str, str]]) -> None:
        self.messages = _turns(messages)

    def reply(self, text: str) -> str:
        """The whole reply; it and `text` join the conversation.

        Raises:
            UserError: `text` is no text, or blank.
        """
        return "".join(self.stream(text))

    def stream(self, text: str) -> Generator[str, None, None]:
        """The reply, chunk by chunk.

        The turn joins the conversation at the first chunk, also where the iterator is closed early
        (Ctrl-C). Arguments and errors are those of `reply`.
        """
        _check_texts([text])
        if not as_utterance(text):
            raise UserError("the message is empty", "there is nothing to reply to")
        return self._stream(text)

    def _stream(self, text: str) -> Generator[str, None, None]:
        self.await_weights()
        # Taken away while it is written, so that a second reply begun meanwhile gets its own.
        cache, self._cache = self._cache, None
        cache = cache or KeyValueCache(self.model.config, self.model.wte.weight)
        said = ""
        self.messages.append(text)
        try:
            chunks, prompt = self.respond(self.messages, self._generator, cache=cache)
            self.left_out = prompt.characters_left_out
            for chunk in chunks:
                said += chunk
                yield chunk
        finally:
            self.messages.append(said)
            self._cache = cache

    def flush(self) -> None:
        """Forget everything that was said."""
        self.messages.clear()

    def take_back(self) -> str:
        """Forget the last reply and what it replied to, and return the latter.

        `bot.reply(bot.take_back())` draws the last reply anew, with other random numbers.

        Raises:
            UserError: nothing has been said.
        """
        if not self.messages:
            raise UserError("nothing has been said yet")
        *self.messages, said, _ = self.messages
        return said

    def respond(
        self,
        messages: Sequence[str],
        generator: torch.Generator,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Generator[str, None, None], Prompt]:
        """Reply to messages, of which nothing is kept.

        Args:
            messages: at least one, the speakers taking turns; the last is replied to.
            generator: on the CPU; the same state and messages give the same reply.
            sampling: by default the chatbot's own; of a mapping, the keys that differ from it.
            cache: the part of the messages it has read is not read again. It must not be used
                elsewhere until the chunks have ended.

        Returns:
            chunks of the reply, drawn as they are asked for (with `best_of` all of it for the
            first one); and what is replied to.

        Raises:
            UserError: there are no messages, they are no texts, or `sampling` cannot be.
        """
        request, prompt = self.request(messages, generator, sampling)
        self.await_weights()
        if len(request.generators) > 1:
            ids = generate_best(self.model, request, request.sampling.mmi_weight, cache)
        else:
            ids = generate(self.model, request, cache)
        return text_chunks(ids, self.tokenizer), prompt

    def request(
        self,
        messages: Sequence[str],
        generator: torch.Generator,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
    ) -> tuple[Request, Prompt]:
        """What `respond` draws a reply to, or with `best_of` several. Arguments and errors as
        there."""
        _check_texts(messages)
        drawn = changed_sampling(self.sampling, sampling) if sampling else self.sampling
        prompt = prompt_ids(
            messages, self.tokenizer, self.model.config.block_size, drawn.max_new_tokens
        )
        return self._request(prompt, generator, drawn, {SEP, PAD}), prompt

    def continuation(
        self,
        text: str,
        generator: torch.Generator,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
    ) -> tuple[Request, Prompt]:
        """What continues a text, one utterance a line, until its dialogue ends. Of one that is too
        long, the end is read.

        Raises:
            UserError: the text is empty, or `sampling` cannot be.
        """
        drawn = changed_sampling(self.sampling, sampling) if sampling else self.sampling
        spans = self.tokenizer.spans(text.replace("\r\n", "\n"))
        if not spans:
            raise UserError("the text is empty", "there is nothing to continue")
        prompt = _newest(spans, room_for(self.model.config.block_size, drawn.max_new_tokens))
        return self._request(prompt, generator, drawn, {PAD}), prompt

    def _request(
        self, prompt: Prompt, generator: torch.Generator, drawn: SamplingConfig, stop: set[int]
    ) -> Request:
        several = drawn.best_of > 1 and drawn.temperature > 0  # at 0 all would be the same
        generators = generators_from(generator, drawn.best_of) if several else [generator]
        decode = self.tokenizer.decode
        return Request(prompt.ids, drawn, generators, stop, self._banned, decode, several)


def _check_texts(messages: Any) -> None:
    if not isinstance(messages, list | tuple) or not messages:
        raise UserError("there is no message to reply to", 'give a list of texts: ["你好"]')
    for text in messages:
        if not isinstance(text, str):
            raise UserError(f"a message is text, not {text!r}", 'write for example: reply("你好")')


class Prompt(NamedTuple):
    """Messages as the model reads them.

    ids: ending in `<sep>`; messages_left_out: how many of the oldest did not fit the context;
    characters_left_out: how many at the beginning of the newest did not.
    """

    ids: list[int]
    messages_left_out: int
    characters_left_out: int


def prompt_ids(
    messages: Sequence[str], tokenizer: Tokenizer, context_size: int, max_new_tokens: int
) -> Prompt:
    """The ids to reply to: as many of the last messages as fit, whole.

    Room for `max_new_tokens` is kept free, but at most half of the context. Only a newest message
    that is too long on its own is shortened, to its end.
    """
    room = room_for(context_size, max_new_tokens)
    newest = [*tokenizer.spans(as_utterance(messages[-1])), (SEP, "\n")]
    ids, _, cut = _newest(newest, room)
    left = len(messages) - 1
    while left:
        turn = [*tokenizer.encode(as_utterance(messages[left - 1])), SEP]
        if len(turn) + len(ids) > room:
            break
        ids, left = turn + ids, left - 1
    return Prompt(ids, left, cut)


def room_for(context_size: int, max_new_tokens: int) -> int:
    """Tokens of a prompt, where a reply follows."""
    return context_size - min(max_new_tokens, context_size // 2)


def _newest(spans: Sequence[tuple[int, str]], room: int) -> Prompt:
    """The last ids that fit, and how many characters were before them."""
    cut = max(0, len(spans) - room)
    return Prompt([token for token, _ in spans[cut:]], 0, sum(len(text) for _, text in spans[:cut]))


class TextDecoder:
    """The text of ids that come one by one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decode = tokenizer.decode
        self._said, self._new = list[int](), list[int]()

    def add(self, token: int) -> str:
        """What the text has gained: each character as soon as its bytes are whole."""
        self._new.append(token)
        # A space between two words needs the one before it, and nothing needs more.
        before, text = self._decode(self._said), self._decode([*self._said, *self._new])
        if text.endswith("\ufffd"):
            return ""
        self._said, self._new = self._new, []
        return text[len(before) :]


def text_chunks(ids: Iterable[int], tokenizer: Tokenizer) -> Generator[str, None, None]:
    """The text of ids, chunk by chunk."""
    decoder = TextDecoder(tokenizer)
    for token in ids:
        if chunk := decoder.add(token):
            yield chunk


def _turns(messages: Any) -> list[str]:
    """The texts of messages in OpenAI's format, a UserError where they are no conversation."""
    if not isinstance(messages, list | tuple):
        raise UserError("a conversation is a list of messages")
    texts = []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        text = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(text, str):
            wanted = '{"role": "user", "content": "…"}'
            raise UserError(f"message {number + 1} is not of the form {wanted}")
        if role != (wanted := ROLES[number % 2]):
            advice = "user and assistant take turns, and there is no system prompt"
            raise UserError(f"message {number + 1} is by {role!r}, not {wanted!r}", advice)
        texts.append(as_utterance(text))
        if role == ROLES[0] and not texts[-1]:
            raise UserError(f"message {number + 1} is empty")
    if len(texts) % 2:
        raise UserError("the last message has no reply", "end with one by 'assistant'")
    return texts


def load(
    path: str | Path | Checkpoint,
    sampling: SamplingConfig | Mapping[str, Any] | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    dtype: str = "auto",
    wait: bool = True,
) -> Chatbot:
    """A chatbot from a checkpoint; nothing else is needed.

    Args:
        path: whatever names a model, see `open_checkpoint`; or one opened without a look at its
            weights.
        sampling: how replies are drawn, by default as the checkpoint was configured; of a mapping,
            such as {"temperature": 0.8}, the keys that differ from that.
        device: auto, cpu, cuda, cuda:N or mps; auto is the fastest there is.
        seed: the same seed and the same talk give the same replies.
        dtype: precision of the weights: auto, float32, bfloat16, float16, int8 or int4.
        wait: False returns while the weights are still made ready. The first reply waits for them,
            and raises the UserError if their file is damaged.

    Raises:
        UserError: there is no usable checkpoint at `path`, the device cannot compute in `dtype`, or
            an argument is not what it should be.
    """
    stored = path if isinstance(path, Checkpoint) else open_checkpoint(path, verify_weights=False)
    drawn = changed_sampling(stored.config, {} if sampling is None else sampling)
    settings = {"device": str(device), "seed": seed, "dtype": dtype}
    checked = config_from_dict(settings, "smallgpt.load", Config)
    chosen = choose_device(checked.device)
    model = huggingface.hollow_model(stored.config).eval()
    parameters = model.parameter_count()
    library = None
    if chosen.type == "cpu":  # compiled before the prompt: later its note would stand in the talk
        library = c_library.compiled(native.SOURCE, native.PURPOSE)
    precision = choose_precision(checked.dtype, chosen, parameters, in_c=library is not None)

    def fill() -> None:
        inference.load_inference_weights(
            model,
            stored.weights,
            precision.dtype,
            precision.bits,
            chosen,
            library,
            background.end_with_the_program,
        )

    verified, filled = background.begin(stored.verify_weights), background.begin(fill)

    def await_weights() -> None:
        verified.result()
        filled.result()

    if wait:
        await_weights()
    source = Source(stored.path, parameters, str(precision), str(chosen))
    return Chatbot(model, stored.tokenizer, drawn, checked.seed, await_weights, source)


def changed_sampling(
    old: SamplingConfig, changes: SamplingConfig | Mapping[str, Any]
) -> SamplingConfig:
    """How replies are drawn after some keys have changed, checked as those of a config file.

    Raises:
        UserError: there is no such key, or its value cannot be.
    """
    if isinstance(changes, SamplingConfig):
        old, changes = changes, {}
    if not isinstance(changes, Mapping):
        advice = 'give a SamplingConfig, or for example {"temperature": 0.8}'
        raise UserError(f"sampling: {changes!r} does not say how replies are drawn", advice)
    values = {field.name: getattr(old, field.name) for field in fields(SamplingConfig)}
    values |= {str(key): value for key, value in changes.items()}
    return config_from_dict(values, "sampling", SamplingConfig)
