"""The real server: in a thread of this process, on any chatbot; or as the command, in its own."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
import torch

from smallgpt.chat.chatbot import Chatbot, Source
from smallgpt.config import SentimentConfig
from smallgpt.model.classifier import Classifier
from smallgpt.runtime import Runtime
from smallgpt.sentiment.predictor import Predictor
from smallgpt.server.app import application
from smallgpt.server.classifier import ClassifierThread
from smallgpt.server.feedback import FeedbackFile
from smallgpt.server.run import Server, listen
from smallgpt.server.service import Limits, Service
from tests.helpers.models import TINY, random_model, vocabulary
from tests.helpers.processes import started

PATIENCE = 60.0
"""Seconds until what must come is missed."""


def eventually(holds: Callable[[], Any]) -> None:
    """Wait until something holds."""
    until = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.01)


@dataclass
class Served:
    """A server that answers at `url`."""

    url: str
    service: Service
    server: Server

    def metric(self, name: str, **labels: str) -> float:
        """A figure of /metrics by now; 0 where it has not been counted."""
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def serving(
    bot: Chatbot,
    name: str = "tiny",
    limits: Limits | None = None,
    hosts: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
    port: int = 0,
    wait: bool = True,
    **parts: Any,
) -> Iterator[Served]:
    """Serve a chatbot in a thread; `parts` are further ones of the `Service`. With `wait` it has
    its weights."""
    if bot.source is None:
        bot.source = Source(Path("checkpoints", name, "cpt1"), 123_456, "float32", "cpu")
    service = Service(name, bot, limits or Limits(), **parts)
    listening = listen("127.0.0.1", port)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = Server(application(service, hosts, origins), service, grace=5)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        eventually(lambda: server.started and (not wait or service.engine.state != "loading"))
        yield Served(url, service, server)
    finally:
        service.engine.stop()
        server.end()
        thread.join()
        service.engine.join()
        listening.close()


@contextmanager
def serving_all(folder: Path) -> Iterator[Served]:
    """Serve all there is: a model and a classifier, both untrained, and a file of feedback."""
    tokenizer = vocabulary()
    marked, here = tokenizer.with_marks(), Runtime(torch.device("cpu"), torch.float32, "a test")
    config = SentimentConfig(block_size=32, n_layer=1, n_head=2, n_embd=16, vocab_size=len(marked))
    predictor = Predictor(Classifier(config, 2), marked, ["bad", "good"], config, here)
    with serving(
        Chatbot(random_model(3), tokenizer, TINY),
        classifier=ClassifierThread("judge", folder, predictor, 64),
        feedback=FeedbackFile(folder / "feedback.jsonl"),
    ) as served:
        yield served


@contextmanager
def serve_command(
    checkpoint: Path | None, folder: Path, *options: str | Path, **variables: str
) -> Iterator[tuple[str, Popen[str]]]:
    """`smallgpt serve` in a process of its own: its address, once it answers, and the process."""
    named = [checkpoint] if checkpoint else []
    command: list[str | Path] = [sys.executable, "-m", "smallgpt", "serve", *named]
    port = () if "--port" in options else ("--port", "0")
    with started([*command, "--no-browser", *port, *options], folder, **variables) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " on http" in line, process.communicate(timeout=PATIENCE)
        yield line.split()[-1], process


def client(served: Served | str, **settings: Any) -> httpx.Client:
    """Of a server."""
    url = served if isinstance(served, str) else served.url
    return httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False, **settings)
