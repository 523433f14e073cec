"""What is served: a chatbot with its engine, a classifier with its thread, a file of feedback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from fastapi import Request

from smallgpt.chat.chatbot import Chatbot
from smallgpt.server.classifier import ClassifierThread
from smallgpt.server.engine import Engine, State
from smallgpt.server.errors import ApiError
from smallgpt.server.feedback import FeedbackFile
from smallgpt.server.metrics import Metrics
from smallgpt.server.replies import Replies, deliver_in, unavailable


@dataclass(frozen=True)
class Limits:
    """slots: replies drawn at once; queue: requests that may wait; seconds: of one request."""

    slots: int = 8
    queue: int = 64
    seconds: float = 300.0


@dataclass
class Service:
    """One of these stands behind the application.

    name: the chat model's id; bot: whose weights may still be on their way; key: that clients must
    send; on_state: called when the engine is ready, and when it has ended.
    """

    name: str
    bot: Chatbot
    limits: Limits = Limits()
    classifier: ClassifierThread | None = None
    feedback: FeedbackFile | None = None
    key: str | None = None
    on_state: Callable[[State], object] = lambda state: None
    created: int = field(default_factory=lambda: int(time.time()))

    def start(self) -> None:
        """Begin to draw replies, for the event loop that this is called in."""
        # Fewer slots could never draw as many as the model was configured to choose from.
        slots = max(self.limits.slots, self.bot.sampling.best_of)
        self.engine = Engine(
            self.bot.model,
            slots,
            self.limits.queue,
            self.limits.seconds,
            self.bot.await_weights,
            deliver_in(asyncio.get_running_loop()),
            lambda busy: self.metrics.slots_busy.observe(busy),
            self.on_state,
        )
        self.metrics = Metrics(slots, lambda: self.engine.running, lambda: self.engine.waiting)
        self.engine.start()

    @staticmethod
    def of(request: Request) -> Service:
        """Of the application that a request came to."""
        return cast(Service, request.app.state.service)

    def chat_model(self, name: str | None) -> str:
        """The id of the chat model, which a request may leave out.

        Raises:
            ApiError: there is no such model.
        """
        if name is not None and name != self.name:
            raise unknown_model(name, [self.name])
        return self.name

    def replies(self, request: Request) -> Replies:
        """The replies to a request, none yet."""
        client = request.client.host if request.client else ""
        return Replies(self.engine, self.metrics, self.bot.tokenizer, client)

    def check_ready(self) -> None:
        """Raises an ApiError while the models are loaded, and when the server shuts down."""
        if self.engine.state != "ok":
            raise unavailable(self.engine.state)


def unknown_model(name: str, served: list[str]) -> ApiError:
    """A request is for a model that is not served."""
    there = ", ".join(served) or "none of its kind"
    message = f"There is no model {name[:100]!r}; served: {there}."
    return ApiError(404, message, "model", "model_not_found")
