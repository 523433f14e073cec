"""What the API answers: compared with the chatbot itself, and with what OpenAI's API promises."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch

import smallgpt
from smallgpt.chat.best_of import generators_from
from smallgpt.chat.chatbot import Chatbot
from smallgpt.config import SamplingConfig
from smallgpt.model.generate import Request, generate
from smallgpt.server.service import Limits
from tests.helpers.foreign import make_foreign
from tests.helpers.models import ScriptedBot, random_model, vocabulary
from tests.helpers.server import PATIENCE, Served, client, eventually, serving

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SAMPLING = SamplingConfig(temperature=1.0, max_new_tokens=12, max_repeats=0)
BOT = Chatbot(random_model(1, tied=False, block_size=48), vocabulary(), SAMPLING)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(BOT.conversation(), limits=Limits(slots=4)) as served:
        yield served


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with client(served) as http:
        yield http


def said(*texts: str) -> list[dict[str, str]]:
    return [
        {"role": "assistant" if number % 2 else "user", "content": text}
        for number, text in enumerate(texts)
    ]


def ask(http: httpx.Client, *texts: str, **more: Any) -> Any:
    answer = http.post(CHAT, json={"messages": said(*texts), **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(http: httpx.Client, path: str, **body: Any) -> list[Any]:
    """The chunks of a stream; the last line of it is [DONE]."""
    with http.stream("POST", path, json=body | {"stream": True}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        *chunks, done = [line for line in answer.iter_lines() if line]
    assert done == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in chunks]


def refusal(answer: httpx.Response) -> tuple[int, str | None, str | None]:
    """The status, param and code of an error, which has the shape that all have."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return answer.status_code, error["param"], error["code"]


def alone(seed: int, *texts: str, **sampling: Any) -> tuple[Request, str]:
    """The request the chatbot makes of a talk, and its reply."""
    generator = torch.Generator().manual_seed(seed)
    request, _ = BOT.request(list(texts), generator, replace(SAMPLING, **sampling))
    return request, vocabulary().decode(generate(BOT.model, request))


@pytest.mark.parametrize("seed", range(8))
def test_a_seed_gives_the_chatbots_reply_whole_and_streamed(http: httpx.Client, seed: int) -> None:
    request, reply = alone(seed, "早上好", "你好", "天气好吗")
    ids = vocabulary().encode(reply)
    whole = ask(http, "早上好", "你好", "天气好吗", seed=seed, model="tiny")
    (choice,) = whole["choices"]
    ended = "length" if len(ids) == SAMPLING.max_new_tokens else "stop"
    message = {"role": "assistant", "content": reply, "refusal": None}
    assert choice == {"index": 0, "message": message, "logprobs": None, "finish_reason": ended}
    assert (whole["object"], whole["model"]) == ("chat.completion", "tiny")
    usage = whole["usage"]
    assert usage["prompt_tokens"] == len(request.context)
    assert usage["completion_tokens"] == len(ids)
    assert usage["total_tokens"] == len(request.context) + len(ids)
    assert usage["left_out"] == {"messages": 0, "characters": 0}

    body = {"messages": said("早上好", "你好", "天气好吗"), "seed": seed}
    first, *middle, last, counted = events(
        http, CHAT, **body, stream_options={"include_usage": True}
    )
    chunks = [first, *middle, last, counted]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert counted["choices"] == [] and counted["usage"]["completion_tokens"] == len(ids)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0] == {
        "index": 0, "logprobs": None, "delta": {}, "finish_reason": ended
    }  # fmt: skip
    parts = [chunk["choices"][0]["delta"]["content"] for chunk in middle]
    assert "".join(parts) == reply and all(parts)
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in [first, *middle])
    assert "usage" not in events(http, CHAT, **body)[0]


def test_several_replies_to_one_talk(http: httpx.Client) -> None:
    generators = generators_from(torch.Generator().manual_seed(5), 3)
    request, _ = alone(0, "早上好")
    expected = [
        vocabulary().decode(generate(BOT.model, replace(request, generators=[generator])))
        for generator in generators
    ]
    choices = ask(http, "早上好", n=3, seed=5)["choices"]
    assert [choice["message"]["content"] for choice in choices] == expected
    streamed = ["", "", ""]
    for chunk in events(http, CHAT, messages=said("早上好"), n=3, seed=5):
        (choice,) = chunk["choices"]
        streamed[choice["index"]] += choice["delta"].get("content", "")
    assert streamed == expected


def test_the_best_of_several(http: httpx.Client) -> None:
    bot = BOT.conversation()
    bot.sampling, bot._generator = {"best_of": 3}, torch.Generator().manual_seed(5)
    expected = bot.reply("早上好")
    for more in ({}, {"logprobs": True, "top_logprobs": 1}):
        (choice,) = ask(http, "早上好", best_of=3, seed=5, **more)["choices"]
        assert choice["message"]["content"] == expected


@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_stop_string_ends_the_reply_and_is_not_in_it(http: httpx.Client, stop_at: int) -> None:
    seed = next(n for n in range(99) if len(set(alone(n, "早上好")[1])) > 6)
    reply = alone(seed, "早上好")[1]
    stop = reply[stop_at : stop_at + 2]
    for stops in (stop, [stop, "没有"]):
        whole = ask(http, "早上好", seed=seed, stop=stops)
        assert whole["choices"][0]["message"]["content"] == reply[: reply.index(stop)]
        assert whole["choices"][0]["finish_reason"] == "stop"
        assert whole["usage"]["completion_tokens"] == reply.index(stop) + 2
    chunks = events(http, CHAT, messages=said("早上好"), seed=seed, stop=stop)
    parts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(parts) == reply[: reply.index(stop)]
    choice = ask(http, "早上好", seed=seed, stop=["没有"])["choices"][0]
    assert choice["message"]["content"] == reply


def test_lengths_and_penalties(http: httpx.Client) -> None:
    for key in ("max_tokens", "max_completion_tokens"):
        whole = ask(http, "早上好", seed=1, **{key: 1})
        assert whole["usage"]["completion_tokens"] == 1
        assert whole["choices"][0]["finish_reason"] == "length"
    same = {"temperature": 0.0, "seed": 1}
    _, reply = alone(1, "早上好", temperature=0.0)
    assert ask(http, "早上好", **same)["choices"][0]["message"]["content"] == reply
    changed = {"frequency_penalty": 1.5, "presence_penalty": 1.0, "top_p": 0.5, "top_k": 5}
    _, other = alone(1, "早上好", **changed)
    assert ask(http, "早上好", seed=1, **changed)["choices"][0]["message"]["content"] == other


def log_probabilities(request: Request, ids: list[int]) -> torch.Tensor:
    """Of all ids at each place of a reply, from one pass over it, (T, V)."""
    with torch.no_grad():
        logits_TV = BOT.model(torch.tensor([[*request.context, *ids]]))[0]
    return logits_TV[len(request.context) - 1 : -1].log_softmax(-1)


def test_log_probabilities_of_each_token(http: httpx.Client) -> None:
    request, reply = alone(3, "早上好")
    ids = vocabulary().encode(reply)
    log_p_TV = log_probabilities(request, ids)
    body = {"messages": said("早上好"), "seed": 3, "logprobs": True, "top_logprobs": 2}
    whole = http.post(CHAT, json=body).json()["choices"][0]["logprobs"]["content"]
    streamed = [
        token
        for chunk in events(http, CHAT, **body)
        if chunk["choices"][0]["logprobs"]
        for token in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert whole == streamed
    assert "".join(token["token"] for token in whole) == reply
    for token, number, log_p_V in zip(whole, ids, log_p_TV, strict=True):
        assert bytes(token["bytes"]).decode() == token["token"]
        assert token["logprob"] == pytest.approx(float(log_p_V[number]), abs=1e-4)
        values, likeliest = log_p_V.topk(2)
        others = token["top_logprobs"]
        assert [one["token"] for one in others] == [vocabulary().decode([n]) for n in likeliest]
        assert [one["logprob"] for one in others] == pytest.approx(values.tolist(), abs=1e-4)
    short = reply[:2]
    stopped = http.post(CHAT, json=body | {"stop": reply[2:4]}).json()["choices"][0]
    assert "".join(token["token"] for token in stopped["logprobs"]["content"]) == short


def test_continuing_a_text(http: httpx.Client) -> None:
    """A text is lines of a dialogue; what continues it may have several."""
    body = {"prompt": ["早上好\n", "你好"], "seed": 3, "max_tokens": 30, "logprobs": 1}
    answer = http.post(TEXT, json=body)
    assert answer.status_code == 200, answer.text
    texts = []
    for prompt in ("早上好\n", "你好"):
        generator = torch.Generator().manual_seed(3)
        request, _ = BOT.continuation(prompt, generator, {"max_new_tokens": 30})
        assert vocabulary().decode(request.context) == prompt
        texts.append(vocabulary().decode(generate(BOT.model, request)))
    choices = answer.json()["choices"]
    assert [choice["text"] for choice in choices] == texts
    assert any("\n" in text for text in texts)
    assert [choice["index"] for choice in choices] == [0, 1]
    for choice in choices:
        logprobs = choice["logprobs"]
        assert "".join(logprobs["tokens"]) == choice["text"]
        for token, begin in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            assert choice["text"].startswith(token, begin)
        assert all(value <= 0 for value in logprobs["token_logprobs"])
    streamed = ["", ""]
    offsets: list[list[int]] = [[], []]
    for chunk in events(http, TEXT, **body):
        assert chunk["object"] == "text_completion"
        (choice,) = chunk["choices"]
        streamed[choice["index"]] += choice["text"]
        if choice["logprobs"]:
            offsets[choice["index"]] += choice["logprobs"]["text_offset"]
    assert streamed == texts
    assert offsets == [choice["logprobs"]["text_offset"] for choice in choices]


def test_a_system_message_is_an_utterance_before_the_talk() -> None:
    with serving(ScriptedBot(["你好"])) as served, client(served) as http:
        parts = [{"type": "text", "text": "早"}, {"type": "text", "text": "上\n好"}]
        messages = [
            {"role": "system", "content": "你好"},
            {"role": "user", "content": " "},
            {"role": "assistant", "content": None, "reasoning_content": "晚", "tool_calls": None},
            {"role": "user", "content": parts, "name": "me"},
        ]
        answer = http.post(CHAT, json={"messages": messages, "user": "x", "tools": []})
        assert answer.status_code == 200, answer.text
        assert served.service.bot.heard() == ["你好\n早上 好\n"]  # type: ignore[attr-defined]


def test_what_does_not_fit_the_context_is_left_out_and_told(http: httpx.Client) -> None:
    talk = ["早上好呀", "你好", "天气不错呀，是吗？", "是的", "安" * 20]
    usage = ask(http, *talk, max_tokens=1)["usage"]
    assert usage["left_out"] == {"messages": 0, "characters": 0}
    usage = ask(http, *talk, max_tokens=12)["usage"]
    assert usage["left_out"] == {"messages": 2, "characters": 0}
    usage = ask(http, *talk, "好", "安" * 100, max_tokens=12)["usage"]
    assert usage["left_out"] == {"messages": 6, "characters": 100 + 1 - (48 - 12)}
    for texts in (talk, ["安" * 100]):
        body = {"messages": said(*texts), "max_tokens": 12, "truncation": "error"}
        wanted = (400, "messages", "context_length_exceeded")
        assert refusal(http.post(CHAT, json=body)) == wanted
    body = {"prompt": "安" * 100, "truncation": "error"}
    wanted = (400, "prompt", "context_length_exceeded")
    assert refusal(http.post(TEXT, json=body)) == wanted
    body = {"messages": said(*talk), "max_tokens": 1, "truncation": "error"}
    assert http.post(CHAT, json=body).status_code == 200


def test_a_talk_that_goes_on_is_read_from_where_it_was_left(http: httpx.Client) -> None:
    first = ask(http, "早上好呀，你好", seed=1)
    reply = first["choices"][0]["message"]["content"]
    usage = ask(http, "早上好呀，你好", reply, "好")["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["total_tokens"] - 1


WRONG: list[tuple[dict[str, Any], str | None]] = [
    ({"messages": []}, "messages"),
    ({"messages": "早"}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "tool", "content": "早"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": " \n"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "好" * 40_000}]}, "messages[0].content"),
    ({"messages": said("早", "好")}, "messages[1].role"),
    (
        {"messages": [{"role": "user", "content": "早", "tool_calls": [1]}]},
        "messages[0].tool_calls",
    ),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 5}, "n"),  # there are four slots
    ({"n": 2, "best_of": 2}, "best_of"),
    ({"best_of": 5}, "best_of"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"seed": 2**63}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": ["x", 5]}, "stop[1]"),
    ({"stream": "yes"}, "stream"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"temprature": 1}, "temprature"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"truncation": "no"}, "truncation"),
]


@pytest.mark.parametrize(("change", "param"), WRONG)
def test_what_is_wrong_is_said_with_its_place(
    http: httpx.Client, change: dict[str, Any], param: str | None
) -> None:
    answer = http.post(CHAT, json={"messages": said("早"), "model": "tiny"} | change)
    assert refusal(answer) == (400, param, None)
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_errors_of_other_kinds(http: httpx.Client) -> None:
    body = {"messages": said("早"), "model": "gpt-4"}
    assert refusal(http.post(CHAT, json=body)) == (404, "model", "model_not_found")
    assert refusal(http.get("/v1/models/gpt-4")) == (404, "model", "model_not_found")
    assert refusal(http.post(TEXT, json={"prompt": ""})) == (400, "prompt", None)
    assert refusal(http.post("/v1/classify", json={"input": "早"}))[0] == 404
    assert refusal(http.post("/v1/feedback", json={}))[0] == 400
    body = {"model": "tiny", "messages": said("早", "好"), "verdict": "up"}
    assert refusal(http.post("/v1/feedback", json=body))[0] == 404
    assert refusal(http.get("/nothing"))[0] == 404
    assert refusal(http.get(CHAT))[0] == 405
    json_type = {"Content-Type": "application/json"}
    assert refusal(http.post(CHAT, content=b"{", headers=json_type)) == (400, None, None)
    assert refusal(http.post(CHAT, content=b"[1]", headers=json_type)) == (400, None, None)


def test_a_prompt_of_which_the_tokenizer_leaves_nothing(tmp_path: Path) -> None:
    make_foreign(tmp_path / "words", "words")
    bot = smallgpt.load(tmp_path / "words", device="cpu")
    with serving(bot) as served, client(served) as http:
        assert refusal(http.post(TEXT, json={"prompt": ["早", " "]})) == (400, "prompt", None)
        # Said in a talk it is an utterance of no tokens.
        ask(http, "\0")


def test_models_are_listed_with_a_card(served: Served, http: httpx.Client) -> None:
    (model,) = http.get("/v1/models").json()["data"]
    created = served.service.created
    common = {"id": "tiny", "object": "model", "created": created, "owned_by": "smallgpt"}
    assert model == common | {"kind": "chat"}
    card = http.get("/v1/models/tiny").json()
    assert card == model | {
        "parameters": 123_456,
        "precision": "float32",
        "device": "cpu",
        "context_length": 48,
        "vocabulary": len(vocabulary()),
        "tokenizer": "characters",
        "step": None,
        "sampling": vars(SAMPLING),
        "labels": None,
        "curve": {"training": [], "validation": []},
    }


def test_health_and_metrics(http: httpx.Client, served: Served) -> None:
    health = http.get("/health")
    assert (health.status_code, health.json()) == (
        200,
        {
            "status": "ok",
            "feedback": False,
            "key_required": False,
            "chat": "tiny",
            "classifier": None,
        },
    )
    assert http.head("/health").status_code == http.head("/").status_code == 200
    ok = {"path": CHAT, "status": "200"}

    def figures() -> list[float]:
        return [
            served.metric("smallgpt_requests_total", **ok),
            served.metric("smallgpt_prompt_characters_total"),
            served.metric("smallgpt_generated_characters_total"),
        ]

    before = figures()
    replies = [ask(http, "早上好", max_tokens=most) for most in (2, 12)]
    said = sum(len(reply["choices"][0]["message"]["content"]) for reply in replies)
    # A request is counted when its answer has been sent.
    eventually(lambda: figures()[0] == before[0] + 2)
    assert figures()[1:] == [before[1] + 8, before[2] + said]
    text = http.get("/metrics").text
    for name in (
        "smallgpt_requests_running 0.0",
        "smallgpt_requests_waiting 0.0",
        "smallgpt_time_to_first_character_seconds_count",
        "smallgpt_characters_per_second_count",
        "smallgpt_slots_busy_count",
        'smallgpt_requests_total{path="/v1/chat/completions",status="200"}',
    ):
        assert name in text


def test_a_coarse_clock_changes_no_reply(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of Windows stands still for 16 ms."""
    clock = SimpleNamespace(monotonic=lambda: 1.0)
    monkeypatch.setattr("smallgpt.server.replies.time", clock)
    assert ask(http, "早上好", seed=3)["usage"]["completion_tokens"] > 1


def test_while_the_model_is_loaded_requests_are_put_off() -> None:
    loaded = threading.Event()
    bot = ScriptedBot(["你好"])
    bot.await_weights = loaded.wait
    with serving(bot, wait=False) as served, client(served) as http:
        try:
            assert http.get("/health").json()["status"] == "loading"
            assert http.get("/health").status_code == 503
            answer = http.post(CHAT, json={"messages": said("早")})
            assert refusal(answer) == (503, None, "loading") and answer.headers["retry-after"]
            assert http.get("/v1/models").status_code == 200
        finally:
            loaded.set()
        eventually(lambda: http.get("/health").status_code == 200)
        ask(http, "早")


def test_more_prompts_than_can_ever_wait_are_refused() -> None:
    limits = Limits(slots=2, queue=1)
    with serving(ScriptedBot(["你好"]), limits=limits) as served, client(served) as http:
        assert refusal(http.post(TEXT, json={"prompt": ["早\n"] * 4})) == (400, "prompt", None)
        assert len(http.post(TEXT, json={"prompt": ["早\n"] * 3}).json()["choices"]) == 3


def test_a_full_queue_says_when_to_come_back() -> None:
    hold, reached = threading.Semaphore(0), threading.Event()

    def pause(left: int) -> None:
        if left:
            reached.set()
            hold.acquire(timeout=PATIENCE)

    bot = ScriptedBot(["你好"])
    bot.script.pause = pause
    with serving(bot, limits=Limits(slots=1, queue=0)) as served, client(served) as http:
        answers = []
        asking = threading.Thread(target=lambda: answers.append(ask(http, "早")))
        asking.start()
        assert reached.wait(PATIENCE)
        answer = http.post(CHAT, json={"messages": said("早")})
        hold.release(99)
        asking.join()
        assert refusal(answer) == (429, None, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        assert answers[0]["choices"][0]["message"]["content"] == "你好"


def test_a_request_that_takes_too_long_is_told_so() -> None:
    limits = Limits(seconds=-1)  # over when it begins
    with serving(ScriptedBot(["你好"]), limits=limits) as served, client(served) as http:
        body = {"messages": said("早")}
        assert refusal(http.post(CHAT, json=body)) == (504, None, "time_limit")
        with http.stream("POST", CHAT, json=body | {"stream": True}) as answer:
            assert answer.status_code == 200
            *_, last = [line for line in answer.iter_lines() if line]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["code"], error["type"]) == ("time_limit", "timeout_error")
