"""POST /v1/chat/completions and /v1/completions."""

import itertools
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from smallgpt.chat.best_of import best, generators_from
from smallgpt.chat.chatbot import Prompt
from smallgpt.model.generate import Request
from smallgpt.server.connection import EventStream, until_disconnected
from smallgpt.server.errors import ApiError, documented
from smallgpt.server.protocol import (
    ChatCompletion,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    SamplingRequest,
    finite,
)
from smallgpt.server.replies import FinishReason, Piece, Replies
from smallgpt.server.reply_text import Token
from smallgpt.server.service import Service
from smallgpt.tokenizer.characters import as_utterance
from smallgpt.utils.errors import UserError

router = APIRouter()
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The replies; with `stream`, as server-sent events.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    **documented(400, 401, 403, 404, 408, 413, 429, 500, 503, 504),
}


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=_RESPONSES)
async def chat_completions(wanted: ChatCompletionRequest, request: HttpRequest) -> Response:
    """Reply to a conversation.

    Each message is an utterance of the talk, a system message too. The oldest that do not fit the
    context are left out; `usage.left_out` counts them.
    """
    service = Service.of(request)
    name = service.chat_model(wanted.model)
    generator = torch.Generator().manual_seed(_seed(wanted))
    asked = service.bot.request(_utterances(wanted), generator, _sampling(wanted))
    alternatives = (wanted.top_logprobs or 0) if wanted.logprobs else None
    replies = _submit(service, request, wanted, [asked], alternatives)
    return await _answer(
        request, wanted, replies, _Chat(name, bool(wanted.logprobs), service.bot.tokenizer.decode)
    )


@router.post("/v1/completions", response_model=Completion, responses=_RESPONSES)
async def completions(wanted: CompletionRequest, request: HttpRequest) -> Response:
    """Continue a text, one utterance a line, until its dialogue ends."""
    service = Service.of(request)
    name = service.chat_model(wanted.model)
    seed, sampling = _seed(wanted), _sampling(wanted)
    try:
        asked = [
            service.bot.continuation(text, torch.Generator().manual_seed(seed), sampling)
            for text in wanted.prompts
        ]
    except UserError as error:  # a text of which the tokenizer leaves nothing
        raise ApiError(400, f"prompt: {error.problem}", "prompt") from None
    replies = _submit(service, request, wanted, asked, wanted.logprobs)
    return await _answer(
        request,
        wanted,
        replies,
        _Text(name, wanted.logprobs is not None, service.bot.tokenizer.decode),
    )


def _seed(wanted: SamplingRequest) -> int:
    return secrets.randbits(63) if wanted.seed is None else wanted.seed


def _sampling(wanted: SamplingRequest) -> dict[str, Any]:
    """What differs from the model's own sampling."""
    if (wanted.n or 1) == 1:
        return wanted.changes()
    if (wanted.best_of or 1) > 1:
        raise ApiError(400, "best_of: only one reply can be the best; leave out n", "best_of")
    return wanted.changes() | {"best_of": 1}


def _utterances(wanted: ChatCompletionRequest) -> list[str]:
    """The texts of the messages, of which those without a word say nothing."""
    last, number = wanted.messages[-1], len(wanted.messages) - 1
    if last.role != "user":
        message = f"the last message is by the {last.role}; only the user's can be replied to"
        raise ApiError(400, f"messages[{number}].role: {message}", f"messages[{number}].role")
    if not as_utterance(last.text):
        param = f"messages[{number}].content"
        raise ApiError(400, f"{param}: the message is empty", param)
    return [message.text for message in wanted.messages if as_utterance(message.text)]


def _submit(
    service: Service,
    http: HttpRequest,
    wanted: SamplingRequest,
    asked: Sequence[tuple[Request, Prompt]],
    alternatives: int | None,
) -> Replies:
    """Give the engine the requests; log-probabilities are wanted unless `alternatives` is None."""
    most = service.engine.slots + service.engine.queue
    if len(asked) > most:  # to try again would never help
        message = f"prompt: at most {most}, the slots and the queue of this server"
        raise ApiError(400, message, "prompt")
    replies = service.replies(http)
    try:
        for request, prompt in asked:
            if wanted.truncation == "error" and any(prompt[1:]):
                message = (
                    f"The model reads {service.bot.model.config.block_size} tokens, the reply "
                    "among them: this is too long. Send less, or leave out truncation."
                )
                raise ApiError(400, message, wanted.read_from, "context_length_exceeded")
            choose = None
            if len(request.generators) > 1:
                choose = partial(best, service.bot.model, mmi_weight=request.sampling.mmi_weight)
            elif (count := wanted.n or 1) > 1:
                request = replace(request, generators=generators_from(request.generators[0], count))
            if len(request.generators) > service.engine.slots:
                param = "n" if choose is None else "best_of"
                message = f"{param}: at most {service.engine.slots}, the slots of this server"
                raise ApiError(400, message, param)
            if alternatives is not None:
                request = replace(request, log_probabilities=True, alternatives=alternatives)
            replies.add(request, prompt, wanted.stops, choose)
    except ApiError:
        replies.close()
        raise
    return replies


async def _answer(
    request: HttpRequest, wanted: SamplingRequest, replies: Replies, form: "_Form"
) -> Response:
    if wanted.stream:
        return EventStream(_events(wanted, replies, form), replies.close)
    try:
        return JSONResponse(await until_disconnected(request.receive, _whole(replies, form)))
    finally:
        replies.close()


async def _whole(replies: Replies, form: "_Form") -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    tokens, reasons = dict[int, list[Token]](), dict[int, FinishReason | None]()
    async for pieces in replies.pieces():
        for piece in pieces:
            tokens.setdefault(piece.index, []).extend(piece.tokens)
            reasons[piece.index] = piece.finish_reason
    choices = [
        {"index": index, **form.whole(tokens[index]), "finish_reason": reasons[index]}
        for index in sorted(tokens)
    ]
    return form.body(choices, usage=replies.usage().model_dump())


async def _events(
    wanted: SamplingRequest, replies: Replies, form: "_Form"
) -> AsyncIterator[list[dict[str, Any]]]:
    """The chunks of a stream, as they come."""
    no_usage = {"usage": None} if wanted.with_usage else {}

    def chunk(index: int, part: Mapping[str, Any], reason: FinishReason | None) -> dict[str, Any]:
        choice = {"index": index, "logprobs": None, **part, "finish_reason": reason}
        return form.body([choice], streamed=True, **no_usage)

    if form.opening:
        yield [chunk(index, form.opening, None) for index in range(replies.count)]
    async for pieces in replies.pieces():
        events = list[dict[str, Any]]()
        for piece in pieces:
            if piece.tokens:
                events.append(chunk(piece.index, form.part(piece), None))
            if piece.finish_reason:
                events.append(chunk(piece.index, form.closing, piece.finish_reason))
        yield events
    if wanted.with_usage:
        yield [form.body([], streamed=True, usage=replies.usage().model_dump())]


class _Form(ABC):
    """How answers of an endpoint look."""

    prefix: str
    kinds: tuple[str, str]
    """`object` of the whole and of a chunk."""
    opening: Mapping[str, Any]
    """Of a choice's first chunk, if there is one before its text."""
    closing: Mapping[str, Any]
    """Of its last."""

    def __init__(self, model: str, logprobs: bool, decode: Callable[[Sequence[int]], str]) -> None:
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time())}
        self._model, self._logprobs, self._decode = model, logprobs, decode
        self._offsets = dict[int, int]()

    def body(self, choices: list[Any], streamed: bool = False, **more: Any) -> dict[str, Any]:
        """An answer, or a chunk of it."""
        kind = {"object": self.kinds[streamed], "model": self._model}
        return {**self._head, **kind, "choices": choices, **more}

    @abstractmethod
    def whole(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """A choice that has these tokens."""

    @abstractmethod
    def part(self, piece: Piece) -> dict[str, Any]:
        """What a chunk says of a choice."""


class _Chat(_Form):
    prefix, kinds = "chatcmpl", ("chat.completion", "chat.completion.chunk")
    opening = MappingProxyType({"delta": {"role": "assistant", "content": ""}})
    closing = MappingProxyType({"delta": {}})

    def whole(self, tokens: Sequence[Token]) -> dict[str, Any]:
        message = {"role": "assistant", "content": _text(tokens), "refusal": None}
        return {"message": message, "logprobs": self._logprobs_of(tokens)}

    def part(self, piece: Piece) -> dict[str, Any]:
        delta = {"content": _text(piece.tokens)}
        return {"delta": delta, "logprobs": self._logprobs_of(piece.tokens)}

    def _logprobs_of(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        return {"content": [self._of_token(token) for token in tokens], "refusal": None}

    def _of_token(self, token: Token) -> dict[str, Any]:
        assert token.log_probability is not None
        others = [
            _logprob(self._decode([other]), value) for other, value in token.alternatives.items()
        ]
        return {**_logprob(token.text, token.log_probability), "top_logprobs": others}


class _Text(_Form):
    prefix, kinds = "cmpl", ("text_completion", "text_completion")
    opening: Mapping[str, Any] = MappingProxyType({})
    closing = MappingProxyType({"text": ""})

    def whole(self, tokens: Sequence[Token]) -> dict[str, Any]:
        return {"text": _text(tokens), "logprobs": self._logprobs_of(tokens, 0)}

    def part(self, piece: Piece) -> dict[str, Any]:
        begin = self._offsets.get(piece.index, 0)
        text = _text(piece.tokens)
        self._offsets[piece.index] = begin + len(text)
        return {"text": text, "logprobs": self._logprobs_of(piece.tokens, begin)}

    def _logprobs_of(self, tokens: Sequence[Token], begin: int) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        lengths = [len(token.text) for token in tokens]
        offsets = [begin, *itertools.accumulate(lengths[:-1], initial=begin)][1:]
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [finite(token.log_probability or 0.0) for token in tokens],
            "top_logprobs": [
                {self._decode([other]): finite(p) for other, p in token.alternatives.items()}
                for token in tokens
            ],
            "text_offset": offsets,
        }


def _text(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)


def _logprob(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": finite(value), "bytes": list(text.encode())}
