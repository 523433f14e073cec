"""What requests and answers look like: OpenAI's chat completions and completions, vLLM's classify.

A field that is not here is refused: a typing error would otherwise change nothing in silence.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from smallgpt.config import SamplingConfig
from smallgpt.server.errors import wrong_field

LONGEST_TEXT = 32_768
"""Characters of a message, of the prompts of a request, or of a text to classify."""
MOST_MESSAGES = 1_000
MOST_TEXTS = 256
"""To classify in one request."""
MOST_EXPLAINED, LONGEST_EXPLAINED = 16, 4_096
"""Texts to explain in one request, and characters of each: some seconds for one."""
IGNORED = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
    "reasoning_effort",
    "verbosity",
)
"""Fields that clients send and that would change no reply."""
UNSUPPORTED = (
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "response_format",
    "logit_bias",
    "modalities",
    "audio",
    "prediction",
    "web_search_options",
    "suffix",
    "echo",
)
"""Fields that would change the reply, and must be neutral."""
_NEUTRAL: tuple[Any, ...] = (None, False, [], {}, "", "none", "auto", {"type": "text"}, ["text"])
_OF_MESSAGES = ("refusal", "audio", "annotations", "parsed", "tool_calls", "function_call")
_IGNORED_OF_MESSAGES = ("name", "reasoning_content")


def _without(fields: tuple[str, ...], given: Any, ignored: tuple[str, ...] = ()) -> Any:
    """A mapping without fields that are neutral, or that are ignored; an error where one is not."""
    if not isinstance(given, Mapping):
        return given
    for name in fields:
        if name in given and given[name] not in _NEUTRAL:
            raise wrong_field(name, "not supported by this model; leave it out")
    return {key: value for key, value in given.items() if key not in (*fields, *ignored)}


def _one_or_several(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, given: Any) -> Any:
        """One unknown field is enough to refuse a request; to list a hundred thousand takes
        seconds."""
        if not isinstance(given, Mapping):
            return given
        unknown = (name for name in given if name not in cls.model_fields)
        first = next(unknown, None)
        return {k: v for k, v in given.items() if k in cls.model_fields or k == first}


class TextPart(_Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str = Field(max_length=LONGEST_TEXT)


Text = Annotated[str, Field(max_length=LONGEST_TEXT)]


class Message(_Strict):
    """What somebody said. Its newlines become spaces."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=64)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _neutral(cls, given: Any) -> Any:
        return _without(_OF_MESSAGES, given, _IGNORED_OF_MESSAGES)

    @model_validator(mode="after")
    def _not_too_long(self) -> Self:
        if len(self.text) > LONGEST_TEXT:
            raise wrong_field("content", f"more than {LONGEST_TEXT} characters in its parts")
        return self

    @property
    def text(self) -> str:
        """The content in one piece."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(_Strict):
    """What a stream has besides the text."""

    include_usage: bool | None = False
    include_obfuscation: bool | None = False


Stop = Annotated[str, Field(min_length=1, max_length=256)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class SamplingRequest(_Strict):
    """How the reply is drawn; null is what the model was configured with."""

    read_from: ClassVar[str]
    """The field that has what is replied to."""
    model: str | None = None
    temperature: Annotated[Finite, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[Finite, Field(ge=0.001, le=1000)] | None = None
    no_repeat_ngram: Annotated[int, Field(ge=0, le=2**31)] | None = None
    max_repeats: Annotated[int, Field(ge=0, le=2**31)] | None = None
    best_of: Annotated[int, Field(ge=1, le=64)] | None = None
    mmi_weight: Annotated[Finite, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    n: Annotated[int, Field(ge=1, le=64)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    truncation: Literal["auto", "error"] | None = "auto"

    @model_validator(mode="before")
    @classmethod
    def _neutral(cls, given: Any) -> Any:
        return _without(UNSUPPORTED, given, IGNORED)

    def changes(self) -> dict[str, Any]:
        """What differs from the model's own sampling."""
        given = self.model_dump(include=set(SamplingConfig.__dataclass_fields__))
        return {
            **{key: value for key, value in given.items() if value is not None},
            **({"max_new_tokens": self.most} if self.most is not None else {}),
        }

    @property
    def most(self) -> int | None:
        """Tokens of the reply at most."""
        return self.max_tokens

    @property
    def stops(self) -> list[str]:
        """The strings before which the reply ends."""
        return _one_or_several(self.stop or [])

    @property
    def with_usage(self) -> bool:
        """Whether the stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatCompletionRequest(SamplingRequest):
    """A conversation to reply to."""

    read_from = "messages"
    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _alternatives_to_something(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise wrong_field("top_logprobs", "it needs logprobs: true")
        return self

    @property
    def most(self) -> int | None:
        """Tokens of the reply at most."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(SamplingRequest):
    """A text to continue: one utterance a line."""

    read_from = "prompt"
    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=64)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _not_too_long(self) -> Self:
        if sum(map(len, self.prompts)) > LONGEST_TEXT:  # others wait while they are encoded
            raise wrong_field("prompt", f"more than {LONGEST_TEXT} characters in all")
        return self

    @property
    def prompts(self) -> list[str]:
        """The texts to continue."""
        return _one_or_several(self.prompt)


class ClassifyRequest(_Strict):
    """Texts to judge."""

    model: str | None = None
    input: Text | Annotated[list[Text], Field(max_length=MOST_TEXTS)]
    explain: bool | None = False
    user: Any = None

    @property
    def texts(self) -> list[str]:
        """The texts to judge."""
        return _one_or_several(self.input)


class PromptTokensDetails(BaseModel):
    """cached_tokens: of the prompt, which had been read for an earlier request."""

    cached_tokens: int


class LeftOut(BaseModel):
    """What of the prompt did not fit the context: so many of the oldest messages, and so many
    characters at the beginning of the newest."""

    messages: int
    characters: int


class Usage(BaseModel):
    """Tokens that were read and drawn; the one that ends a reply is not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    left_out: LeftOut


class TopLogprob(BaseModel):
    """A token that might have come; `logprob` at temperature 1, in nats."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that came. The tokens join to the text."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """Of a reply."""

    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    """A reply."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """A reply and why it ended."""

    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """The answer to a ChatCompletionRequest that is not streamed."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class LegacyLogprobs(BaseModel):
    """Of a completion."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """A continuation and why it ended."""

    index: int
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """The answer to a CompletionRequest that is not streamed."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class Weight(BaseModel):
    """How much a part of the text speaks for the label, in logits."""

    text: str
    weight: float


class Classification(BaseModel):
    """The verdict on a text."""

    index: int
    label: str
    probs: list[float]
    num_classes: int
    explanation: list[Weight] | None = None


class ClassifyUsage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: Literal[0] = 0


class ClassifyResponse(BaseModel):
    """The answer to a ClassifyRequest; `labels` are in the order of `probs`."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classification]
    labels: list[str]
    usage: ClassifyUsage


Stripped = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST_TEXT)
]


class FeedbackRequest(_Strict):
    """What somebody thinks of the last message, which is a reply: a verdict on it, or the
    correction, which is what they would have said."""

    model: str
    messages: list[Message] = Field(min_length=2, max_length=MOST_MESSAGES)
    verdict: Literal["up", "down"] | None = None
    correction: Stripped | None = None

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if self.verdict is None and self.correction is None:
            raise wrong_field("verdict", "a verdict or a correction is needed")
        if self.verdict is not None and self.correction is not None:
            raise wrong_field("correction", "a verdict and a correction are two requests")
        if self.correction == self.messages[-1].text.strip():
            raise wrong_field("correction", "it is the same as the reply")
        return self


def finite(value: float) -> float:
    """A log-probability that JSON can say."""
    return value if math.isfinite(value) else -9999.0
