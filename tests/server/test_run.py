"""Signals, and connections on which nothing happens."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from smallgpt.server.run import SECONDS_WITHOUT_REQUEST, Server
from smallgpt.server.service import Service
from tests.helpers.models import HeldBot, ScriptedBot
from tests.helpers.server import client, eventually, serving


def test_a_signal_before_it_has_begun_ends_it() -> None:
    server = Server(object(), Service("tiny", ScriptedBot(["好"])), grace=5)
    with pytest.raises(SystemExit) as ended:
        server.handle_exit(signal.SIGTERM, None)
    assert ended.value.code == 0


def test_ctrl_c_says_what_it_waits_for(capfd: pytest.CaptureFixture[str]) -> None:
    bot = HeldBot(["好"])
    body = {"messages": [{"role": "user", "content": "早"}], "stream": True}
    with (
        serving(bot) as served,
        client(served) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        eventually(lambda: served.service.engine.running == 1)
        served.server.handle_exit(signal.SIGINT, None)
        bot.may_draw(9)
        assert answer.read().endswith(b"data: [DONE]\n\n")
    assert capfd.readouterr().err == "finishing 1 reply; Ctrl-C again ends at once\n"


@pytest.mark.parametrize("reads", [True, False])
def test_who_reads_slowly_is_waited_for(monkeypatch: pytest.MonkeyPatch, reads: bool) -> None:
    now, left, aborted = [0.0], [10_000], list[bool]()
    monkeypatch.setattr("smallgpt.server.run.time", SimpleNamespace(monotonic=lambda: now[0]))
    transport = SimpleNamespace(
        is_closing=lambda: True,
        get_write_buffer_size=lambda: left[0],
        abort=lambda: aborted.append(True),
    )
    answered = SimpleNamespace(response_complete=True)
    connection = Mock(transport=transport, cycle=answered)
    server = Server(object(), Service("tiny", ScriptedBot(["好"])), grace=5)
    server.server_state.connections = {connection}
    for _ in range(100):
        server._drop_idle()
        now[0] += SECONDS_WITHOUT_REQUEST / 10
        left[0] -= 10 * reads
    assert bool(aborted) is not reads
