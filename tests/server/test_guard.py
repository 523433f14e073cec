"""Who may ask what: keys, hosts, origins, and the headers of the page."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.helpers.models import ScriptedBot
from tests.helpers.server import client, serving

BODY = {"messages": [{"role": "user", "content": "早"}]}
CHAT = "/v1/chat/completions"
ORIGIN = "https://chat.example.org"


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """A server with a key, a name and a page elsewhere."""
    bot, hosts = ScriptedBot(["你好"]), ("gpt.lan",)
    with (
        serving(bot, hosts=hosts, origins=(ORIGIN,), key="secret") as served,
        client(served) as http,
    ):
        yield http


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer secre", "Bearer secret2", "secret", "Basic secret"]
)
def test_without_the_key_nothing_is_answered(http: httpx.Client, given: str) -> None:
    headers = {"Authorization": given} if given else {}
    for answer in (
        http.get("/v1/models", headers=headers),
        http.post(CHAT, json=BODY, headers=headers),
        http.get("/v1/nothing", headers=headers),
    ):
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert http.get("/health").json()["key_required"] is True
    assert http.get("/metrics").status_code == 200
    assert http.get("/").status_code == 200  # the page asks for it


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_with_the_key_all_is(http: httpx.Client, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} secret"}
    assert http.post(CHAT, json=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("127.0.0.1:1", True),
        ("192.168.1.5:8000", True),  # an address is no name that could be made to lead here
        ("[::1]:8000", True),
        ("gpt.lan", True),
        ("gpt.lan:8000", True),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("gpt.lan.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_hosts(http: httpx.Client, host: str, allowed: bool) -> None:
    answer = http.get("/health", headers={"Host": host})
    assert answer.status_code == (200 if allowed else 403)
    if not allowed:
        assert answer.json()["error"]["code"] == "host_not_allowed"


def test_pages_of_others_may_not_ask_unless_named(http: httpx.Client) -> None:
    headers = {"Authorization": "Bearer secret"}
    own = f"http://{http.base_url.host}:{http.base_url.port}"
    for origin, allowed in ((own, True), (ORIGIN, True), ("https://evil.example", False)):
        answer = http.post(CHAT, json=BODY, headers=headers | {"Origin": origin})
        assert answer.status_code == (200 if allowed else 403)
    answer = http.get("/health", headers={"Origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    asked |= {"Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang"}
    assert http.options(CHAT, headers=asked).status_code == 200
    assert answer.headers["access-control-expose-headers"] == "Retry-After"
    refused = http.options(CHAT, headers=asked | {"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in refused.headers


def test_the_page_allows_nothing_from_elsewhere(http: httpx.Client) -> None:
    answer = http.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "content-security-policy" in http.get("/page/nothing.js").headers
