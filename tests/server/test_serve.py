"""`smallgpt serve` as a user runs it."""

from __future__ import annotations

import shutil
import signal
import socket
from pathlib import Path

import pytest

from tests.helpers.commands import refused_command
from tests.helpers.server import PATIENCE, client, serve_command


@pytest.mark.parametrize("classified", [True], indirect=True)
def test_serving_a_run_from_the_first_line_to_sigterm(
    trained_run: Path, classified: Path, tmp_path: Path
) -> None:
    root, feedback = trained_run / "checkpoints", tmp_path / "feedback.jsonl"
    # Of a run, or of a checkpoint in one, the id is the name of the run's folder.
    options = ("--classifier", classified, "--feedback", feedback)
    with serve_command(root, tmp_path, *options) as (url, process):
        with client(url) as http:
            models = http.get("/v1/models").json()["data"]
            assert [model["id"] for model in models] == ["checkpoints", "run"]
            (verdict,) = http.post("/v1/classify", json={"input": "错错错"}).json()["data"]
            assert verdict["label"] in ("0", "1")
            card = http.get("/v1/models/checkpoints").json()
            assert card["step"] in (60, 120) and card["curve"]["training"]
            body = {"messages": [{"role": "user", "content": "早上好呀"}]}
            answer = http.post("/v1/chat/completions", json=body).json()
            assert answer["choices"][0]["message"]["content"] == "早上好！睡得好吗？"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err and feedback.exists()


def test_what_cannot_be_served(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SMALLGPT_API_KEY", raising=False)

    def refused(*options: str | Path) -> str:
        return refused_command("serve", saved, "--no-browser", *options)

    assert "SMALLGPT_API_KEY" in refused("--host", "0.0.0.0")
    assert "--api-key is empty" in refused("--api-key", "")
    assert "--api-key is empty" in refused("--api-key", "secret ")
    for host in ("chat.example.org:8000", "https://chat.example.org", "*.example.org", ""):
        assert "is no name" in refused("--allowed-host", host)
    for origin in ("*", "https://chat.example.org/", "chat.example.org", "https://Example.org"):
        assert "is no origin" in refused("--cors-origin", origin)
    assert "--grace" in refused("--grace", "inf")
    assert "nobody.invalid" in refused("--host", "nobody.invalid", "--api-key", "secret")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port}" in refused("--port", port)
    assert "both be called" in refused("--classifier", saved.parent)
    other = shutil.copytree(saved, tmp_path / "other")
    assert "not a classifier" in refused("--classifier", other)
    assert "cannot be written" in refused("--feedback", saved)
    assert "nothing-here" in refused_command("serve", tmp_path / "nothing-here")
    classifier = Path(__file__).parents[1] / "fixtures" / "2026-11" / "classifier" / "cpt2"
    assert "--classifier" in refused_command("serve", classifier)
