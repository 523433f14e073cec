"""Clients that leave, stall, lie or attack; disks that are full; processes that are ended."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from smallgpt.cli.main import main
from smallgpt.server import guard, run
from smallgpt.server.feedback import FeedbackFile
from smallgpt.server.protocol import LONGEST_TEXT
from smallgpt.server.service import Limits, Service
from tests.helpers.models import ScriptedBot, save_tiny
from tests.helpers.processes import Forked, free_port, python_environment, running
from tests.helpers.server import PATIENCE, Served, client, eventually, serving, serving_all

CHAT, TEXT, CLASSIFY = "/v1/chat/completions", "/v1/completions", "/v1/classify"
FEEDBACK = "/v1/feedback"
TALK = {"messages": [{"role": "user", "content": "你好"}]}
VERDICT = {
    "model": "tiny",
    "messages": [*TALK["messages"], {"role": "assistant", "content": "早"}],
    "verdict": "up",
}
CORRECTION = {key: VERDICT[key] for key in ("model", "messages")} | {"correction": "早上好"}
JSON = "Content-Type: application/json"


def connect(url: str, **options: int) -> socket.socket:
    """A connection; options such as SO_RCVBUF=4096."""
    connection = socket.socket()
    for name, value in options.items():
        connection.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    connection.settimeout(PATIENCE)
    connection.connect(("127.0.0.1", int(url.rpartition(":")[2])))
    return connection


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    text = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""])
    return text.encode("latin-1")


def request(path: str, body: Any, *lines: str) -> bytes:
    data = json.dumps(body).encode()
    return head(path, JSON, f"Content-Length: {len(data)}", *lines) + data


def read(connection: socket.socket, until: bytes = b"\0") -> bytes:
    """What comes, to the end of the connection or until something has come."""
    said = b""
    while until not in said:
        part = connection.recv(65536)
        if not part:
            break
        said += part
    return said


def answer(url: str, asked: bytes) -> bytes:
    """All that a server says until it closes the connection."""
    with closing(connect(url)) as connection:
        connection.sendall(asked)
        return read(connection)


def status(said: bytes) -> int:
    return int(said.split(b" ", 2)[1])


def body(said: bytes) -> Any:
    return json.loads(said.partition(b"\r\n\r\n")[2])


def events(stream: bytes) -> list[Any]:
    return [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: {")]


def text_of(stream: bytes) -> str:
    choices = [choice for event in events(stream) for choice in event.get("choices", ())]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def answered(served: Served, status: int, path: str = CHAT) -> float:
    """How often a server has answered so; 499: the client was gone."""
    return served.metric("smallgpt_requests_total", path=path, status=str(status))


def held(bot: ScriptedBot) -> threading.Semaphore:
    """Each id of a reply waits for one permit."""
    permits = threading.Semaphore(0)
    bot.script.pause = lambda left: left and permits.acquire(timeout=PATIENCE)
    return permits


# Clients that leave or are slow


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_gives_the_slot_to_the_next(stream: bool) -> None:
    bot = ScriptedBot(["早上好", "晚安"])
    permits = held(bot)
    with serving(bot, limits=Limits(slots=1)) as served:
        leaving, next_one = connect(served.url), connect(served.url)
        leaving.sendall(request(CHAT, TALK | {"stream": stream}))
        permits.release(1)
        if stream:
            read(leaving, until="早".encode())
        eventually(lambda: served.service.engine.running == 1)
        next_one.sendall(request(CHAT, TALK, "Connection: close"))
        eventually(lambda: served.service.engine.waiting == 1)
        leaving.close()
        eventually(lambda: answered(served, 499) == 1)
        permits.release(1)  # the step that was under way ends, and no other is needed
        eventually(lambda: served.metric("smallgpt_requests_waiting") == 0)
        assert served.metric("smallgpt_requests_running") == 1
        permits.release(9)
        said = body(read(next_one))
        next_one.close()
        assert said["choices"][0]["message"]["content"] == "晚安"
        eventually(lambda: served.metric("smallgpt_requests_running") == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_the_queue_is_not_replied_to(stream: bool) -> None:
    bot = ScriptedBot(["早上好"])
    permits = held(bot)
    with serving(bot, limits=Limits(slots=1)) as served:
        stays, leaves = connect(served.url), connect(served.url)
        stays.sendall(request(CHAT, TALK, "Connection: close"))
        eventually(lambda: served.service.engine.running == 1)
        leaves.sendall(request(CHAT, TALK | {"stream": stream}))
        eventually(lambda: served.service.engine.waiting == 1)
        leaves.close()
        eventually(lambda: answered(served, 499) == 1)
        permits.release(9)
        said = body(read(stays))
        stays.close()
        eventually(lambda: served.metric("smallgpt_requests_waiting") == 0)
        assert said["choices"][0]["message"]["content"] == "早上好"
        assert bot.heard() == ["你好\n"]


@pytest.fixture
def talker(monkeypatch: pytest.MonkeyPatch) -> ScriptedBot:
    """Its replies, with log-probabilities, are more than the system keeps for a client."""

    def listen_with_small_buffers(host: str, port: int) -> socket.socket:
        listening = run.listen(host, port)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return listening

    monkeypatch.setattr("tests.helpers.server.listen", listen_with_small_buffers)
    return ScriptedBot(["早上好呀" * 100], block_size=500, max_new_tokens=410)


LONG = request(
    CHAT, TALK | {"stream": True, "logprobs": True, "top_logprobs": 20}, "Connection: close"
)


def test_a_slow_reader_gets_all_and_others_do_not_wait_for_it(talker: ScriptedBot) -> None:
    with serving(talker) as served, client(served) as http:
        slow = connect(served.url, SO_RCVBUF=4096)
        slow.sendall(LONG)
        eventually(lambda: served.metric("smallgpt_requests_running") == 1)
        assert http.post(CHAT, json=TALK).json()["usage"]["completion_tokens"] == 400
        eventually(lambda: served.metric("smallgpt_requests_running") == 0)
        eventually(lambda: answered(served, 200) == 1)  # and the slow one's is on its way
        said = read(slow)
        slow.close()
        assert said.count(b"data: [DONE]") == 1 and text_of(said) == "早上好呀" * 100
        eventually(lambda: answered(served, 200) == 2)


def test_who_reads_nothing_is_dropped(talker: ScriptedBot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SECONDS_TO_TAKE", 0.1)
    with serving(talker) as served:
        never = connect(served.url, SO_RCVBUF=4096)
        never.sendall(LONG)
        eventually(lambda: answered(served, 499) == 1)
        monkeypatch.setattr(run, "SECONDS_WITHOUT_REQUEST", 0.1)
        eventually(lambda: served.metric("smallgpt_requests_running") == 0)
        eventually(lambda: not served.server.server_state.connections)
        with closing(never):
            assert b"[DONE]" not in read(never)


def test_who_reads_nothing_does_not_keep_the_server(
    talker: ScriptedBot, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(talker) as served:
        never = connect(served.url, SO_RCVBUF=4096)
        never.sendall(LONG)
        eventually(lambda: served.metric("smallgpt_generated_characters_total") > 0)
        eventually(lambda: served.metric("smallgpt_requests_running") == 0)
        for _ in range(2):
            served.server.handle_exit(signal.SIGTERM, None)
    never.close()
    assert answered(served, 499) == 1
    assert "Traceback" not in capfd.readouterr().err


def test_half_a_request_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SECONDS_FOR_BODY", 0.1)
    bot = ScriptedBot(["早上好"])
    permits = held(bot)
    with serving(bot) as served:
        working, silent = connect(served.url), connect(served.url)
        working.sendall(request(CHAT, TALK, "Connection: close"))
        eventually(lambda: served.service.engine.running == 1)
        half_a_body = answer(served.url, head(CHAT, JSON, "Content-Length: 9", "Connection: close"))
        assert status(half_a_body) == 408
        monkeypatch.setattr(run, "SECONDS_WITHOUT_REQUEST", 0.3)
        with closing(connect(served.url)) as dripping, pytest.raises(OSError):
            while True:
                dripping.sendall(b"G")
                time.sleep(0.01)
        with closing(silent):
            assert not read_or_reset(silent)
        # One that waits for its answer for as long is none of them.
        permits.release(9)
        assert body(read(working))["choices"][0]["finish_reason"] == "stop"
        working.close()


def read_or_reset(connection: socket.socket) -> bytes:
    try:
        return read(connection)
    except ConnectionResetError:
        return b""


def test_small_packets_are_sent_at_once() -> None:
    with run.listen("127.0.0.1", 0) as listening:
        connection = connect(f"http://127.0.0.1:{listening.getsockname()[1]}")
        served, _ = listening.accept()
        with closing(connection), closing(served):
            assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_body_that_is_too_large_is_not_read(capfd: pytest.CaptureFixture[str]) -> None:
    megabyte = b"1" * (1 << 20)
    with serving(ScriptedBot(["早"])) as served:
        told = answer(
            served.url, head(CHAT, JSON, "Content-Length: 100000000", "Connection: close")
        )
        assert status(told) == 413 and body(told)["error"]["type"] == "invalid_request_error"
        with closing(connect(served.url)) as connection:  # it does not say how large it is
            connection.sendall(head(CHAT, JSON, "Transfer-Encoding: chunked"))
            for _ in range(2):
                connection.sendall(b"100000\r\n" + megabyte + b"\r\n")
            assert status(read(connection, until=b"\r\n\r\n")) == 413
        with closing(connect(served.url)) as connection:  # it sends all of it before it reads
            connection.sendall(head(CHAT, JSON, "Content-Length: 100000000"))
            for _ in range(100):
                connection.sendall(megabyte[:1_000_000])
            assert status(read(connection, until=b"\r\n\r\n")) == 413
            connection.sendall(head("/health", "Connection: close", method="GET"))
            assert b"HTTP/1.1 200 OK" in read(connection)
    assert "Traceback" not in capfd.readouterr().err


# Requests that lie


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: abc"],
        ["Content-Length: -1"],
        ["Content-Length: +1"],
        ["Content-Length: " + "9" * 5000],
        ["Content-Length: 1", "Content-Length: 2"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: identity"],
        ["Transfer-Encoding : chunked"],
        ["A header without a colon"],
        ["A: \0"],
        ["Host: localhost"],  # twice
    ],
)
def test_a_head_that_cannot_be_is_refused(tiny: Served, lines: list[str]) -> None:
    assert status(answer(tiny.url, head(CHAT, *lines))) == 400


def test_no_request_hides_in_the_body_of_another(tiny: Served) -> None:
    hidden = head("/health", method="GET")
    both = head(CHAT, JSON, f"Content-Length: {5 + len(hidden)}", "Transfer-Encoding: chunked")
    said = answer(tiny.url, both + b"0\r\n\r\n" + hidden)
    assert status(said) == 400 and said.count(b"HTTP/1.1") == 1
    # A body that is longer than it says is no second request either.
    said = answer(tiny.url, head(CHAT, JSON, "Content-Length: 2") + b"{}" + b"{}\r\n\r\n")
    assert said.count(b"HTTP/1.1 400") == 2 and b"Invalid HTTP request" in said


@pytest.mark.parametrize(
    "path",
    [
        "/page/../engine.py",
        "/page/../../../requirements.txt",
        "/page/%2e%2e/engine.py",
        "/page/..%2fengine.py",
        "/page/%2e%2e%2fengine.py",
        "/page/..%5cengine.py",
        "/page//etc/passwd",
        "/page/%2fetc%2fpasswd",
        "/page/%00",
        "/page/%ff",
        "/page/",
        "http://localhost/page/../engine.py",
        "//v1/models",
        "*",
        "/v1/models/a%2fb",
        "/v1/models/%0d%0aSet-Cookie:%20a=b",
    ],
)
def test_paths_lead_nowhere_else(tiny: Served, path: str) -> None:
    said = answer(tiny.url, head(path, "Connection: close", method="GET"))
    assert status(said) == 404 and body(said)["error"]["message"]
    assert b"\nset-cookie" not in said.lower() and b"import " not in said


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], 400),
        (["Host: localhost@evil.example"], 403),
        (["Host: evil.example#localhost"], 403),
        (["Host: localhost.:80"], 403),
        (["Host: 0x7f000001"], 403),
        (["Host: \xe4\xff"], 403),
        (["Host: 127.0.0.1", "Origin: null"], 403),
        (["Host: 127.0.0.1", "Origin: http://127.0.0.1:81"], 403),
        (["Host: 127.0.0.1", "Origin: http://127.0.0.1.evil.example"], 403),
        (["Host: 127.0.0.1", "Origin: http://evil.example/://127.0.0.1"], 403),
        (["Host: 127.0.0.1", "Origin: "], 403),
        (["Host: [::1]:8000", "Origin: http://[::1]:8000"], 401),
        (["Host: localhost", "Authorization: Bearer "], 401),
        (["Host: localhost", "Authorization: Bearer \xe9\xff"], 401),
        (["Host: localhost", "Authorization: Bearer key\xa0"], 401),
        (["Host: localhost", "Authorization: bearer  key"], 401),
        (["Host: localhost", "Authorization: Bearer ke", "Authorization: Bearer key"], 401),
        (["Host: localhost", "Authorization: Bearer key"], 200),
    ],
)
def test_hosts_origins_and_keys_that_try_it(
    guarded: Served, lines: list[str], expected: int
) -> None:
    for path in ("/v1/models", "/%76%31/models"):
        wanted = head(path, "Connection: close", *lines, method="GET")
        assert (
            status(answer(guarded.url, wanted.replace(b"Host: localhost\r\n", b"", 1))) == expected
        )


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    with serving(ScriptedBot(["早"]), key="key") as served:
        yield served


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving_all(tmp_path_factory.mktemp("faults")) as served:
        yield served


@pytest.fixture
def http(tiny: Served) -> Iterator[httpx.Client]:
    with client(tiny) as http:
        yield http
    assert tiny.service.engine.state == "ok"


def send(http: httpx.Client, path: str, text: str | bytes, kind: str = "application/json") -> Any:
    """The answer to a body as it is written here, which is never the server's fault."""
    said = http.post(path, content=text, headers={"Content-Type": kind})
    if said.status_code >= 400:
        assert said.json()["error"]["message"]
    return said


def in_messages(text: str) -> str:
    return f'{{"messages": [{{"role": "user", "content": {text}}}]}}'


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"{",
        b'"\xff"',
        in_messages('"你\xff"').encode("utf-16")[3:],
        in_messages('"好"').encode("gbk"),
        '{"messages": "\\ud800"}',
        in_messages('"\\ud800"'),
        in_messages('[{"type": "text", "text": "\\udfff"}]'),
        in_messages('[{"type": "text", "text": "好", "\\ud800": 1}]'),
        '{"\\ud800": 1}',
        '{"a-b": 1}',
        "[" * 100_000,
        '{"messages":' * 80_000,
        '{"tools":' + "[" * 900 + "]" * 900 + "}",
        in_messages("null"),
        in_messages("[]"),
        in_messages('"' + "好" * (LONGEST_TEXT + 1) + '"'),
        in_messages(json.dumps([{"type": "text", "text": "好" * 30_000}] * 2)),
        json.dumps({"messages": TALK["messages"] * 1001}),
        json.dumps({"messages": [1] * 300_000}),
        json.dumps(TALK | dict.fromkeys(map(str, range(70_000)))),
        json.dumps(TALK | {"stop": "\ud800"}),
        json.dumps(TALK | {"model": "tiny\r\nSet-Cookie: a=b"}),
        json.dumps(TALK | {"model": "\ud800"}),
    ],
    ids=range(27),
)
def test_bodies_that_cannot_be_are_refused(http: httpx.Client, text: str | bytes) -> None:
    said = send(http, CHAT, text)
    assert said.status_code in (400, 404) and "set-cookie" not in said.headers


def test_bodies_that_are_odd_are_answered(http: httpx.Client) -> None:
    for text in (
        '{"messages": [], ' + json.dumps(TALK)[1:],  # of a key given twice, the last counts
        json.dumps(TALK | {"messages": TALK["messages"] * 1000}),
        json.dumps(TALK | {"messages": [{"role": "user", "content": ""}, *TALK["messages"]]}),
        in_messages('"' + "好" * LONGEST_TEXT + '"'),
        in_messages('"\\u0000\\ud83d\\ude00\\uffff"'),
        "\ufeff" + json.dumps(TALK),
        json.dumps(TALK | {"stop": ["早" * 256] * 16}),
        json.dumps(TALK | {"metadata": {"a": "\ud800"}}),
    ):
        assert send(http, CHAT, text).status_code == 200
    assert send(http, CHAT, json.dumps(TALK), "application/json; charset=gbk").status_code == 200


def test_the_other_paths_refuse_the_same(http: httpx.Client) -> None:
    for path, field in ((TEXT, "prompt"), (CLASSIFY, "input")):
        for value in ('"\\ud800"', '["\\udfff"]', "NaN", "[1]", "{}", "null", '[["早"]]'):
            assert send(http, path, f'{{"{field}": {value}}}').status_code == 400
        assert send(http, path, json.dumps({field: "好" * (LONGEST_TEXT + 1)})).status_code == 400
        assert send(http, path, "[" * 100_000).status_code == 400
    assert send(http, TEXT, '{"prompt": []}').status_code == 400
    assert send(http, TEXT, json.dumps({"prompt": ["好" * 20_000] * 2})).status_code == 400
    for many in ({"input": ["早"] * 257}, {"input": ["早"] * 17, "explain": True}):
        assert send(http, CLASSIFY, json.dumps(many)).status_code == 400
    fine: dict[str, Any]
    for fine in ({"input": []}, {"input": ["", " ", "\0"], "explain": True}, {"input": "龘" * 99}):
        assert send(http, CLASSIFY, json.dumps(fine)).status_code == 200
    change: dict[str, Any]
    for change in ({"verdict": "x"}, {"messages": []}, {"model": "other"}, {"verdict": "\ud800"}):
        assert send(http, FEEDBACK, json.dumps(VERDICT | change)).status_code in (400, 404)


@pytest.mark.parametrize("kind", ["text/plain", "", "multipart/form-data", "application/x-ndjson"])
def test_another_content_type_is_named(http: httpx.Client, kind: str) -> None:
    said = send(http, CHAT, json.dumps(TALK), kind)
    assert said.status_code == 400 and "Content-Type" in said.json()["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "NO-SUCH"])
def test_other_methods_are_refused(http: httpx.Client, method: str) -> None:
    said = http.request(method, CHAT)
    assert said.status_code == 405 and said.headers["allow"] == "POST"


NUMBERS = "temperature top_p frequency_penalty presence_penalty repetition_penalty mmi_weight"
COUNTS = "top_k no_repeat_ngram max_repeats best_of max_tokens max_completion_tokens n top_logprobs"


@pytest.mark.parametrize("field", [*NUMBERS.split(), *COUNTS.split(), "seed"])
def test_numbers_that_cannot_be_are_refused(http: httpx.Client, field: str) -> None:
    wrong = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400, "-1" + "0" * 400]
    wrong += ["true", '"1"', "[1]", "{}", '"\\ud800"', "-3" if field != "seed" else "1.5"]
    for value in wrong:
        said = send(http, CHAT, json.dumps(TALK)[:-1] + f', "{field}": {value}}}')
        assert said.status_code == 400 and said.json()["error"]["param"] == field, value
    too_many_digits = send(http, CHAT, json.dumps(TALK)[:-1] + f', "{field}": {"9" * 5000}}}')
    assert too_many_digits.status_code == 400


ALLOWED: dict[str, Any] = {
    "temperature": st.sampled_from([0, 5e-324, 1e-30, 0.5, 1, 100]),
    "top_p": st.sampled_from([5e-324, 1e-30, 0.5, 1]),
    "top_k": st.sampled_from([0, 1, 3, 2**31]),
    "frequency_penalty": st.sampled_from([-2, -5e-324, 0, 2]),
    "presence_penalty": st.sampled_from([-2, 0, 1e-300, 2]),
    "repetition_penalty": st.sampled_from([0.001, 1, 1000]),
    "no_repeat_ngram": st.sampled_from([0, 1, 2, 2**31]),
    "max_repeats": st.sampled_from([0, 1, 2**31]),
    "mmi_weight": st.sampled_from([0, 5e-324, 1]),
    "max_tokens": st.sampled_from([1, 2, 2**31]),
    "seed": st.sampled_from([-(2**63), -1, 0, 2**63 - 1]),
    "stop": st.sampled_from([[], "早", ["上好", "\n", "a" * 256]]),
    "stream": st.booleans(),
}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sampling=st.fixed_dictionaries({}, optional=ALLOWED),
    several=st.sampled_from([{}, {"n": 8}, {"best_of": 3}, {"logprobs": True, "top_logprobs": 20}]),
)
@example(sampling={"top_p": 1e-320}, several={})
@example(sampling={"top_p": 5e-324, "temperature": 100}, several={"n": 8})
@example(sampling={"no_repeat_ngram": 1, "max_tokens": 2**31}, several={"best_of": 3})
def test_no_parameters_end_the_engine(
    http: httpx.Client, sampling: dict[str, Any], several: dict[str, Any]
) -> None:
    said = http.post(CHAT, json=TALK | sampling | several)
    assert said.status_code == 200
    if sampling.get("stream"):
        assert said.text.endswith("data: [DONE]\n\n")


# Feedback


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """To write more into a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("opinion", [VERDICT, CORRECTION], ids=["verdict", "correction"])
def test_on_a_full_disk_the_feedback_is_as_before(
    tiny: Served, http: httpx.Client, opinion: dict[str, Any]
) -> None:
    assert tiny.service.feedback
    file = tiny.service.feedback.path
    assert http.post(FEEDBACK, json=opinion).status_code == 204
    before = file.read_bytes()
    for room in (0, 10):
        with largest_file(len(before) + room):
            said = http.post(FEEDBACK, json=opinion)
        assert said.status_code == 507 and "cannot be written" in said.json()["error"]["message"]
        assert file.read_bytes() == before
    assert http.post(FEEDBACK, json=opinion).status_code == 204
    lines = file.read_text("utf-8").removeprefix(before.decode()).splitlines()
    (added,) = map(json.loads, lines)
    assert {key: added[key] for key in opinion} == opinion


def test_what_the_disk_did_not_take_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = FeedbackFile(tmp_path / "feedback.jsonl")

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        file.append("tiny", [], "up")
    assert file.path.read_bytes() == b""


def test_a_line_that_was_cut_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    path.write_bytes(b'{"verdict": "down"}\n{"verd')
    FeedbackFile(path).append("tiny", [], "up")
    whole, cut, new = path.read_bytes().splitlines()
    assert (whole, cut) == (b'{"verdict": "down"}', b'{"verd')
    assert json.loads(new)["verdict"] == "up"


def test_two_servers_share_a_file_of_feedback(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    program = (
        "import sys; from pathlib import Path; from smallgpt.server.feedback import FeedbackFile\n"
        "for _ in range(40): FeedbackFile(Path(sys.argv[1])).append(sys.argv[2] * 5000, [], 'up')"
    )
    writing = [
        subprocess.Popen([sys.executable, "-c", program, path, name], env=python_environment())
        for name in "ab"
    ]
    assert [process.wait(PATIENCE) for process in writing] == [0, 0]
    models = [json.loads(line)["model"] for line in path.read_text("utf-8").splitlines()]
    assert sorted(models) == ["a" * 5000] * 40 + ["b" * 5000] * 40


# The end of a process


def serve_slowly(release: str, port: str, grace: str) -> None:
    """A server whose replies go on for long until a file is there; an empty one ends them at once,
    any other is what the model fails of."""
    bot, file = ScriptedBot(["早上好呀" * 100], block_size=500, max_new_tokens=410), Path(release)

    def pause(left: int) -> None:
        if not left:
            return
        if not file.exists():
            time.sleep(0.05)
        elif reason := file.read_text("utf-8"):
            raise RuntimeError(reason)

    bot.script.pause = pause
    service = Service("tiny", bot, Limits(slots=2))
    run.serve(service, run.Address(port=int(port)), float(grace))


class Slow:
    """`serve_slowly` in a process of its own, with two streams that have begun and a request that
    waits."""

    def __init__(self, process: Forked, release: Path) -> None:
        self.process, self.release, self.url = process, release, process.address()
        self.streams = [connect(self.url) for _ in range(3)]
        self.begun = [b""] * 3
        for number, stream in enumerate(self.streams):
            stream.sendall(request(CHAT, TALK | {"stream": True}, "Connection: close"))
            if number < 2:
                self.begun[number] = read(stream, until="早".encode())
        with client(self.url) as http:
            eventually(lambda: "smallgpt_requests_waiting 1.0" in http.get("/metrics").text)

    def rest(self) -> list[bytes]:
        """All that the streams said."""
        pairs = zip(self.begun, self.streams, strict=True)
        return [first + read(stream) for first, stream in pairs]


@contextmanager
def slow_server(folder: Path, grace: float, port: int = 0) -> Iterator[Slow]:
    release = folder / "release"
    with running(folder, serve_slowly, str(release), str(port), str(grace)) as process:
        slow = Slow(process, release)
        try:
            yield slow
        finally:
            for stream in slow.streams:
                stream.close()


def test_sigterm_cuts_no_reply_within_the_grace(tmp_path: Path) -> None:
    with slow_server(tmp_path, grace=PATIENCE) as slow, client(slow.url) as http:
        slow.process.signal(signal.SIGTERM)
        eventually(lambda: http.get("/health").json()["status"] == "draining")
        refused = http.post(CHAT, json=TALK)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        assert http.get("/health").status_code == 503
        slow.release.touch()
        for said in slow.rest():
            assert said.count(b"data: [DONE]") == 1 and text_of(said) == "早上好呀" * 100
        assert slow.process.exit_code() == 0
        assert slow.process.err.read_text("utf-8") == "finishing 3 replies\n"


@pytest.mark.parametrize("how", ["the grace is over", "a second signal"])
def test_what_is_not_finished_in_time_is_told_so(tmp_path: Path, how: str) -> None:
    with slow_server(tmp_path, grace=0.2 if how == "the grace is over" else 1000) as slow:
        slow.process.signal(signal.SIGTERM)
        if how == "a second signal":
            with client(slow.url) as http:
                eventually(lambda: http.get("/health").json()["status"] == "draining")
            slow.process.signal(signal.SIGTERM)
        for said in slow.rest():
            assert b"[DONE]" not in said and events(said)[-1]["error"]["code"] == "shutdown"
        assert slow.process.exit_code() == 0


def test_after_sigkill_another_takes_the_port_at_once(tmp_path: Path) -> None:
    port = free_port()
    with slow_server(tmp_path, PATIENCE, port) as slow:
        slow.process.signal(signal.SIGKILL)
        assert slow.process.exit_code() == -signal.SIGKILL
        with slow_server(tmp_path, PATIENCE, port) as again:
            assert text_of(again.begun[0]) == "早"


def test_a_model_that_fails_ends_the_process_with_its_error(tmp_path: Path) -> None:
    with slow_server(tmp_path, grace=PATIENCE) as slow:
        slow.release.write_text("as asked", "utf-8")
        for said in slow.rest():
            assert b"[DONE]" not in said and events(said)[-1]["error"]["code"] == "failed"
        assert slow.process.exit_code() == 1
        said_of_it = slow.process.err.read_text("utf-8")
        assert "Traceback" in said_of_it and "RuntimeError: as asked" in said_of_it


def test_a_model_that_fails_is_seen_by_health() -> None:
    bot = ScriptedBot(["早上好"])

    def fail(left: int) -> None:
        if left:
            raise RuntimeError("as asked")

    bot.script.pause = fail
    with serving(bot) as served, client(served) as http:
        failed, after = (http.post(CHAT, json=TALK) for _ in range(2))
        for said in (failed, after):
            assert (said.status_code, said.json()["error"]["code"]) == (503, "failed")
            assert "as asked" not in said.text
        health = http.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        assert served.metric("smallgpt_requests_running") == 0


def serve_checkpoint(path: str) -> None:
    sys.argv = ["smallgpt", "serve", path, "--port", "0", "--no-browser"]
    main()


def test_damaged_weights_are_said_and_end_the_process(root: Path) -> None:
    path = save_tiny(root, 1)
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    with running(root, serve_checkpoint, str(path)) as process:
        assert process.exit_code() == 2
        assert process.out.read_text("utf-8") == ""
        said = process.err.read_text("utf-8")
        assert "model.safetensors" in said and "Traceback" not in said
