"""OpenAI's own library for Python as the client, with its check of every answer's types."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

import smallgpt
from smallgpt.server.service import Limits
from tests.helpers.models import HeldBot
from tests.helpers.server import PATIENCE, Served, eventually, serving

pytestmark = pytest.mark.peers
KEY = "a key of nobody"
TALK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "早上好呀"}]
LONGER: list[ChatCompletionMessageParam] = [
    *TALK,
    {"role": "assistant", "content": "早上好！睡得好吗？"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "很好，"}, {"type": "text", "text": "谢谢你"}],
    },
]


@pytest.fixture(scope="module")
def server(trained: Path) -> Iterator[Served]:
    with serving(smallgpt.load(trained), "tiny", key=KEY) as served:
        yield served


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"{server.url}/v1", api_key=KEY, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture(scope="module")
def model(client: OpenAI) -> str:
    (model,) = client.models.list()
    return model.id


def test_models(client: OpenAI, model: str) -> None:
    card = client.models.retrieve(model)
    assert (card.id, card.object, card.owned_by) == (model, "model", "smallgpt")
    assert card.model_extra and card.model_extra["kind"] == "chat"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt-4")
    assert error.value.code == "model_not_found"


@pytest.mark.parametrize("talk", [TALK, LONGER], ids=["one message", "a conversation"])
def test_a_reply_is_that_of_the_chatbot(
    client: OpenAI, model: str, trained: Path, talk: list[ChatCompletionMessageParam]
) -> None:
    bot = smallgpt.load(trained)
    if talk is LONGER:
        bot.history = [
            {"role": "user", "content": "早上好呀"},
            {"role": "assistant", "content": "早上好！睡得好吗？"},
        ]
    expected = bot.reply("早上好呀" if talk is TALK else "很好，谢谢你")
    completion = client.chat.completions.create(model=model, messages=talk)
    (choice,) = completion.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected)
    assert choice.finish_reason == "stop"
    usage = completion.usage
    assert usage and usage.completion_tokens == len(expected)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens

    with client.chat.completions.create(
        model=model, messages=talk, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    first, *rest, last, of_usage = chunks
    assert first.choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in rest) == expected
    assert (last.choices[0].finish_reason, last.choices[0].delta.content) == ("stop", None)
    assert not of_usage.choices and of_usage.usage
    assert of_usage.usage.completion_tokens == usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_librarys_own_stream_helper_adds_it_up(client: OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=TALK).choices[0].message.content
    with client.chat.completions.stream(model=model, messages=TALK) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(pieces) == final.choices[0].message.content == whole
    assert final.choices[0].finish_reason == "stop"


def test_the_librarys_own_message_can_be_sent_back(client: OpenAI, model: str) -> None:
    """As its documentation does, and as a dict; with all fields that they have."""
    whole = client.chat.completions.create(model=model, messages=TALK).choices[0].message
    with client.chat.completions.stream(model=model, messages=TALK) as stream:
        added_up = stream.get_final_completion().choices[0].message
    replies: set[str | None] = set()
    for message in (whole, whole.model_dump(), added_up, added_up.model_dump()):
        talk: list[Any] = [*TALK, message, {"role": "user", "content": "很好，谢谢你"}]
        completion = client.chat.completions.create(model=model, messages=talk)
        replies.add(completion.choices[0].message.content)
    assert len(replies) == 1


def test_many_at_once_get_what_each_gets_alone(client: OpenAI, model: str) -> None:
    texts = ["早上好呀", "你叫什么名字", "今天天气不错", "晚安"] * 5

    def alone(text: str) -> str | None:
        talk: list[ChatCompletionMessageParam] = [{"role": "user", "content": text}]
        completion = client.chat.completions.create(
            model=model, messages=talk, temperature=1.5, seed=7
        )
        return completion.choices[0].message.content

    async def together() -> list[str]:
        async with AsyncOpenAI(base_url=client.base_url, api_key=KEY) as others:

            async def one(text: str) -> str:
                stream = await others.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": text}],
                    temperature=1.5,
                    seed=7,
                    stream=True,
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(one, texts))

    expected = {text: alone(text) for text in set(texts)}
    assert asyncio.run(together()) == [expected[text] for text in texts]


def test_raw_responses(client: OpenAI, model: str) -> None:
    raw = client.chat.completions.with_raw_response.create(model=model, messages=TALK)
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].finish_reason == "stop"
    with client.chat.completions.with_streaming_response.create(
        model=model, messages=TALK, stream=True
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(client: OpenAI, model: str, stream: bool) -> None:
    if stream:
        chunks = client.chat.completions.create(
            model=model, messages=TALK, logprobs=True, top_logprobs=3, stream=True
        )
        each = [chunk.choices[0] for chunk in chunks]
        content = "".join(choice.delta.content or "" for choice in each)
        tokens = [t for c in each if c.logprobs for t in c.logprobs.content or []]
    else:
        completion = client.chat.completions.create(
            model=model, messages=TALK, logprobs=True, top_logprobs=3
        )
        choice = completion.choices[0]
        assert choice.logprobs and choice.message.content
        content, tokens = choice.message.content, choice.logprobs.content or []
    assert "".join(token.token for token in tokens) == content
    for token in tokens:
        assert token.bytes == list(token.token.encode())
        others = token.top_logprobs
        assert len(others) == 3 and others == sorted(others, key=lambda other: -other.logprob)
        assert token.logprob == others[0].logprob <= 0  # at temperature 0


def test_several_replies_are_drawn_apart(client: OpenAI, model: str) -> None:
    def draw(seed: int) -> list[str | None]:
        completion = client.chat.completions.create(
            model=model, messages=TALK, n=3, temperature=5, seed=seed
        )
        assert [choice.index for choice in completion.choices] == [0, 1, 2]
        return [choice.message.content for choice in completion.choices]

    assert len(set(draw(1))) > 1
    assert draw(1) == draw(1) != draw(2)
    chunks = client.chat.completions.create(
        model=model, messages=TALK, n=3, temperature=5, seed=1, stream=True
    )
    texts = ["", "", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == draw(1)


@pytest.mark.parametrize("stream", [False, True])
def test_where_a_reply_ends(client: OpenAI, model: str, stream: bool) -> None:
    def reply(**wanted: Any) -> tuple[str, str | None]:
        if not stream:
            choice = client.chat.completions.create(model=model, messages=TALK, **wanted).choices[0]
            return choice.message.content or "", choice.finish_reason
        chunks = list(
            client.chat.completions.create(model=model, messages=TALK, stream=True, **wanted)
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        return text, chunks[-1].choices[0].finish_reason

    whole, why = reply()
    assert why == "stop" and len(whole) > 4
    assert reply(max_tokens=3) == reply(max_completion_tokens=3) == (whole[:3], "length")
    end = whole[2:4]
    assert reply(stop=[end, "never"]) == (whole[: whole.index(end)], "stop")


def test_a_completion_goes_on_where_a_chat_stops(client: OpenAI, model: str) -> None:
    chat = client.chat.completions.create(model=model, messages=TALK).choices[0].message.content
    prompt = "早上好呀\n"
    completion = client.completions.create(model=model, prompt=[prompt, "晚安\n"], logprobs=2)
    first, second = completion.choices
    assert (first.index, second.index) == (0, 1)
    assert chat and first.text.startswith(f"{chat}\n")
    assert first.logprobs and "".join(first.logprobs.tokens or []) == first.text
    # The library's type of a chunk knows no null for the reason, OpenAI's answers do.
    with OpenAI(base_url=client.base_url, api_key=KEY) as lenient:
        stream = lenient.completions.create(model=model, prompt=prompt, stop="\n", stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == chat


TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {}}}
IMAGE: Any = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"temperature": -1}, "temperature"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role"),
        ({"extra_body": {"temprature": 1}}, "temprature"),
    ],
)
def test_what_is_not_supported_is_refused(
    client: OpenAI, model: str, wanted: Any, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**({"model": model, "messages": TALK} | wanted))
    assert (error.value.type, error.value.status_code) == ("invalid_request_error", 400)
    assert error.value.param and error.value.param.startswith(param)
    assert param.split(".")[-1].split("[")[0] in str(error.value)


def test_what_clients_send_without_need_is_let_through(client: OpenAI, model: str) -> None:
    completion = client.chat.completions.create(
        model=model,
        messages=TALK,
        user="somebody",
        metadata={"task": "title"},
        store=False,
        tools=[],
        tool_choice="none",
        parallel_tool_calls=False,
        response_format={"type": "text"},
        logit_bias={},
        stop=None,
        reasoning_effort="low",
        service_tier="auto",
    )
    assert completion.choices[0].finish_reason == "stop"


def test_a_wrong_key_and_a_wrong_model(client: OpenAI, model: str) -> None:
    stranger = client.with_options(api_key="another")
    for ask in (stranger.models.list, lambda: stranger.models.retrieve(model)):
        with pytest.raises(openai.AuthenticationError) as error:
            ask()
        assert error.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=TALK)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")


def test_a_conversation_that_is_too_long(client: OpenAI, model: str) -> None:
    talk: Any = [{"role": ("user", "assistant")[n % 2], "content": "早上好呀"} for n in range(41)]
    completion = client.chat.completions.create(model=model, messages=talk)
    assert completion.usage and completion.usage.model_extra
    left_out = completion.usage.model_extra["left_out"]["messages"]
    assert 0 < left_out < 41
    kept = client.chat.completions.create(model=model, messages=talk[left_out:])
    assert kept.choices[0].message == completion.choices[0].message
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(
            model=model, messages=talk, extra_body={"truncation": "error"}
        )
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "messages")


def test_a_full_queue_is_tried_again() -> None:
    held = HeldBot(["好" * 9])
    with (
        serving(held, limits=Limits(slots=1, queue=1)) as served,
        OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=PATIENCE) as client,
        ThreadPoolExecutor() as threads,
    ):

        def ask(retries: int) -> str | None:
            patient = client.with_options(max_retries=retries)
            completion = patient.chat.completions.create(model="tiny", messages=TALK)
            return completion.choices[0].message.content

        one = threads.submit(ask, 0)
        eventually(lambda: served.service.engine.running)
        other = threads.submit(ask, 0)
        eventually(lambda: served.service.engine.waiting)
        with pytest.raises(openai.RateLimitError) as error:
            ask(0)
        assert error.value.code == "queue_full"
        assert int(error.value.response.headers["retry-after"]) >= 1
        stubborn = threads.submit(ask, 20)
        refusals = {"path": "/v1/chat/completions", "status": "429"}
        eventually(lambda: served.metric("smallgpt_requests_total", **refusals) >= 2)
        held.may_draw(1000)
        assert [asked.result(PATIENCE) for asked in (one, other, stubborn)] == ["好" * 9] * 3


def test_what_finds_a_free_slot_need_not_wait() -> None:
    held = HeldBot(["好" * 9])
    with serving(held, limits=Limits(slots=8, queue=0)) as served:

        async def ask() -> list[str | None]:
            async with AsyncOpenAI(
                base_url=f"{served.url}/v1", api_key="none", timeout=PATIENCE, max_retries=0
            ) as client:
                create = client.chat.completions.create
                all_slots = [create(model="tiny", messages=TALK) for _ in range(8)]
                asked = asyncio.gather(*all_slots)
                engine = served.service.engine
                await asyncio.to_thread(eventually, lambda: engine.running + engine.waiting == 8)
                with pytest.raises(openai.RateLimitError):
                    await create(model="tiny", messages=TALK)
                held.may_draw(1000)
                return [completion.choices[0].message.content for completion in await asked]

        assert asyncio.run(ask()) == ["好" * 9] * 8


@pytest.mark.parametrize("how", ["the client's timeout", "a stream that is closed"])
def test_who_leaves_frees_the_slot(how: str) -> None:
    held = HeldBot(["好" * 9])
    with (
        serving(held) as served,
        OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
    ):
        if how == "the client's timeout":
            with pytest.raises(openai.APITimeoutError):
                client.chat.completions.create(model="tiny", messages=TALK, timeout=0.5)
        else:
            held.may_draw(1)
            with client.chat.completions.create(model="tiny", messages=TALK, stream=True) as stream:
                assert next(chunk for chunk in stream if chunk.choices[0].delta.content)
        left = {"path": "/v1/chat/completions", "status": "499"}
        eventually(lambda: served.metric("smallgpt_requests_total", **left) == 1)
        assert served.service.engine.running == 1
        held.may_draw(1)
        eventually(lambda: served.service.engine.running == 0)
