"""What Open WebUI sends to an OpenAI connection, after its backend/open_webui/routers/openai.py,
routers/tasks.py and utils/middleware.py (versions 0.6 and 0.7); itself it is too large to run here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import smallgpt
from tests.helpers.server import Served, client, serving

pytestmark = pytest.mark.peers
KEY = "a key of nobody"
PAGE = "http://webui.example:3000"
TALK = [
    {"role": "system", "content": "你好"},
    {"role": "user", "content": "早上好呀"},
    {"role": "assistant", "content": "早上好！睡得好吗？"},
    {"role": "user", "content": [{"type": "text", "text": "很好，谢谢你"}]},
]
TASK = (
    "请用三五个字概括下面的对话，只输出一个 JSON 对象，不要解释。\n" * 20
    + "用户：早上好呀\n助手：早上好"
)
"""As long as what asks for a title, tags or further questions: a multiple of the context."""


@pytest.fixture(scope="module")
def server(trained: Path) -> Iterator[Served]:
    with serving(smallgpt.load(trained), "tiny", key=KEY, origins=(PAGE,)) as served:
        yield served


@pytest.fixture
def webui(server: Served) -> Iterator[httpx.Client]:
    headers = {
        "Authorization": f"Bearer {KEY}",
        "Content-Type": "application/json",
        "X-OpenWebUI-User-Name": "%E5%B0%8F%E6%98%8E",
        "X-OpenWebUI-Chat-Id": "1f0c",
    }
    with client(f"{server.url}/v1", headers=headers) as webui:
        yield webui


def test_it_lists_the_models(webui: httpx.Client) -> None:
    (model,) = webui.get("/models").raise_for_status().json()["data"]
    assert model["id"] == "tiny"
    del webui.headers["Authorization"]  # it has no key: it sends none
    refused = webui.get("/models")
    assert refused.status_code == 401 and refused.json()["error"]["message"]


def test_it_shows_a_reply_as_it_comes_and_its_usage(webui: httpx.Client) -> None:
    form = {"stream": True, "model": "tiny", "messages": TALK}
    form |= {"stream_options": {"include_usage": True}, "temperature": 0.0}
    with webui.stream("POST", "/chat/completions", json=form) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        data = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert data.pop() == "[DONE]"
    chunks = [json.loads(each) for each in data]
    usage = chunks[-1]["usage"]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    shown = "".join(choice["delta"].get("content") or "" for choice in choices)
    whole = webui.post("/chat/completions", json=form | {"stream": False}).json()
    assert shown and shown == whole["choices"][0]["message"]["content"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + len(shown)


@pytest.mark.parametrize("limit", [{}, {"max_tokens": 1000}, {"max_completion_tokens": 1000}])
def test_a_task_that_is_longer_than_the_context_gets_a_reply(
    webui: httpx.Client, limit: dict[str, int]
) -> None:
    form = {"model": "tiny", "messages": [{"role": "user", "content": TASK}], "stream": False}
    answer = webui.post("/chat/completions", json=form | limit).raise_for_status().json()
    assert answer["choices"][0]["message"]["content"]
    assert 0 < answer["usage"]["left_out"]["characters"] < len(TASK)


CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {}}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"tools": [CLOCK]}, "tools"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"min_p": 0.1}, "min_p"),
        ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages[0].content"),
    ],
)
def test_it_can_tell_what_is_not_supported(
    webui: httpx.Client, wanted: dict[str, Any], field: str
) -> None:
    form = {"model": "tiny", "messages": TALK, "stream": True, **wanted}
    answer = webui.post("/chat/completions", json=form)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"].startswith(field) and field.split(".")[-1] in error["message"]


def test_a_browser_may_be_connected_directly_where_its_page_is_allowed(server: Served) -> None:
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    form = {"model": "tiny", "messages": TALK}
    for origin, allowed in ((PAGE, True), ("http://evil.example", False)):
        with client(server, headers={"Origin": origin}) as browser:
            before = browser.options("/v1/chat/completions", headers=asked)
            assert before.is_success == allowed
            key = {"Authorization": f"Bearer {KEY}"}
            answer = browser.post("/v1/chat/completions", json=form, headers=key)
            assert answer.status_code == (200 if allowed else 403)
            if allowed:
                assert answer.headers["access-control-allow-origin"] == PAGE
