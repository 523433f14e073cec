"""One thread draws the replies to all requests (continuous batching). Knows ids, not text.

Each turn of its loop schedules (who waits may join, who left or took too long goes), steps (one
forward pass for all), and hands out what was drawn. After "Orca: A Distributed Serving System for
Transformer-Based Generative Models" (Yu et al., OSDI 2022).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from smallgpt.model.cache import KeyValueCache
from smallgpt.model.generate import Batch, Reply, Request, read
from smallgpt.model.gpt import GPT

State = Literal["loading", "ok", "draining", "failed", "ended"]
Ending = Literal["", "stop", "length", "time_limit", "shutdown", "failed"]


class UnavailableError(Exception):
    """Nothing is taken in: the engine is in this state."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.state = state


class QueueFullError(Exception):
    """As many requests wait as may; another is welcome in about `seconds`."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


@dataclass(frozen=True)
class Drawn:
    """An id of one of a generation's replies, or the end of one, or of all.

    number: of the reply, None for all; token: None where only the end is told; ended: why it did,
    "" where it goes on; log_probability and alternatives: as of `Reply`, if they are wanted.
    """

    number: int | None
    token: int | None
    ended: Ending
    log_probability: float | None = None
    alternatives: dict[int, float] = field(default_factory=dict)


@dataclass(eq=False)
class Generation:
    """A request on its way through the engine.

    Args:
        request: what to reply to.
        receive: is given what was drawn, by `Engine`'s `hand_out`.
        client: who asks: clients take turns.
        choose: of all replies, when they have ended, the one to hand out; None hands out all as
            they are drawn.
    """

    request: Request
    receive: Callable[[Sequence[Drawn]], None]
    client: str = ""
    choose: Callable[[Sequence[Reply]], Sequence[int]] | None = None
    begun: float = 0.0
    deadline: float = 0.0
    replies: list[Reply] = field(default_factory=list)
    """Empty while it waits."""

    @property
    def cached(self) -> int:
        """Ids of the context that had been read before."""
        return self.replies[0].cached if self.replies else 0


Outbox = list[tuple[Generation, list[Drawn]]]


class Engine:
    """Draws replies in a thread of its own, from `start` until it has drained or failed.

    Args:
        model: in evaluation mode.
        slots: replies drawn at once.
        queue: requests that may wait for others to end.
        time_limit: seconds from a request's arrival to the end of its replies.
        await_weights: returns when the model has its weights.
        hand_out: called in the engine's thread, once a step at most; must not wait.
        on_step: called after each step with the number of replies in it.
        on_state: called when requests are taken in, and when the thread ends; `error` says what it
            failed of.
    """

    def __init__(
        self,
        model: GPT,
        slots: int,
        queue: int,
        time_limit: float,
        await_weights: Callable[[], object],
        hand_out: Callable[[Outbox], object],
        on_step: Callable[[int], object] = lambda busy: None,
        on_state: Callable[[State], object] = lambda state: None,
    ) -> None:
        self.slots, self.queue, self.time_limit = slots, queue, time_limit
        self.state: State = "loading"
        self.error: BaseException | None = None
        self._model, self._await_weights = model, await_weights
        self._hand_out, self._on_step, self._on_state = hand_out, on_step, on_state
        self._changed = threading.Condition()  # guards all below
        self._waiting = dict[str, deque[Generation]]()  # by client; the next one's turn first
        self._running = dict[Request, Generation]()
        self._leaving = list[tuple[Generation, int | None]]()
        self._stopped = False
        self._seconds = 1.0  # that a request takes in its slots, a moving average
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin; requests are taken in when the weights are there."""
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout)

    @property
    def running(self) -> int:
        """Requests whose replies are drawn."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for slots."""
        return sum(map(len, list(self._waiting.values())))

    def submit(self, generation: Generation) -> None:
        """Let a request wait for its turn.

        Raises:
            UnavailableError: the model is not there yet, or not any more.
            QueueFullError: come back later.
            ValueError: it wants more replies than there are slots.
        """
        if len(generation.request.generators) > self.slots:
            raise ValueError("more replies than slots")
        with self._changed:
            if self.state != "ok":
                raise UnavailableError(self.state)
            if self.waiting >= self.queue + self._batch.free:  # these many need not wait
                turns = self.waiting / self.slots
                raise QueueFullError(max(1, round(turns * self._seconds)))
            generation.deadline = time.monotonic() + self.time_limit
            self._waiting.setdefault(generation.client, deque()).append(generation)
            self._changed.notify()

    def cancel(self, generation: Generation, number: int | None = None) -> None:
        """Draw no more of a generation, or of one of its replies that has begun. Its slot is free
        before the next step; nothing more is handed out then."""
        with self._changed:
            self._leaving.append((generation, number))
            self._changed.notify()

    def drain(self) -> None:
        """Take nothing more in, and end when all that was taken in is done."""
        with self._changed:
            if self.state in ("ok", "loading"):
                self.state = "draining"
            self._changed.notify()

    def stop(self) -> None:
        """End before the next step; what is not done is told so."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self.drain()

    def _run(self) -> None:
        ending: Ending = "shutdown"
        try:
            self._await_weights()
            config, weight = self._model.config, self._model.wte.weight
            # All memory at once: a cache that grows is copied.
            cache = KeyValueCache(config, weight, self.slots, config.block_size)
            self._batch = Batch(self._model, cache)
            read(self._model, cache, [0], [[0]])  # starts the threads that compute
            cache.keep_prefix(0, [])
            with self._changed:
                if self.state == "loading":
                    self.state = "ok"
            self._on_state(self.state)
            while self._schedule():
                self._step()
        except BaseException as error:
            self.error, ending = error, "failed"
        with self._changed:
            self.state = "failed" if self.error else "ended"
            left = [*self._running.values(), *(g for one in self._waiting.values() for g in one)]
            self._running.clear()
            self._waiting.clear()
        self._hand_out([(generation, [Drawn(None, None, ending)]) for generation in left])
        self._on_state(self.state)

    def _schedule(self) -> bool:
        """Let go who leaves, let join who may, waiting for them here; False when all is done."""
        with self._changed:
            while True:
                self._let_go()
                late = self._end_late()
                self._let_join()
                if late or self._running or self._stopped or self.state == "draining":
                    break
                self._changed.wait()
            done = self._stopped or (self.state == "draining" and not self._running)
        self._hand_out(late)
        return not done

    def _let_go(self) -> None:
        for generation, number in self._leaving:
            if generation.request in self._running:
                one = None if number is None else generation.replies[number]
                self._batch.leave(generation.request, one)
                self._forget_ended(generation)
            elif generation in self._waiting.get(generation.client, ()):
                self._remove_waiting(generation)
        self._leaving.clear()

    def _remove_waiting(self, generation: Generation) -> None:
        others = self._waiting.pop(generation.client)
        others.remove(generation)
        if others:  # of another client it is the turn next
            self._waiting[generation.client] = others

    def _end_late(self) -> Outbox:
        """End the requests whose time is over, and what to tell them."""
        now = time.monotonic()
        waiting = (one for several in self._waiting.values() for one in several)
        late = [one for one in (*self._running.values(), *waiting) if one.deadline < now]
        for generation in late:
            if self._running.pop(generation.request, None):
                self._batch.leave(generation.request)
            else:
                self._remove_waiting(generation)
        return [(generation, [Drawn(None, None, "time_limit")]) for generation in late]

    def _let_join(self) -> None:
        while self._waiting:
            generation = next(iter(self._waiting.values()))[0]
            if len(generation.request.generators) > self._batch.free:
                return  # nobody overtakes it, or it would wait for ever
            self._remove_waiting(generation)
            generation.begun = time.monotonic()
            generation.replies = self._batch.join(generation.request)
            self._running[generation.request] = generation

    def _step(self) -> None:
        """One pass for all, handed out."""
        busy = self.slots - self._batch.free
        drawn = dict[Generation, list[Drawn]]()
        for reply, token in self._batch.step():
            generation = self._running[reply.request]
            if generation.choose is None:
                drawn.setdefault(generation, []).append(_drawn(generation, reply, token))
            elif generation not in drawn and all(reply.ended for reply in generation.replies):
                drawn[generation] = _chosen(generation)
        with self._changed:
            for generation in drawn:
                self._forget_ended(generation)
        self._on_step(busy)
        if drawn:
            self._hand_out(list(drawn.items()))

    def _forget_ended(self, generation: Generation) -> None:
        if not self._batch.has(generation.request):
            del self._running[generation.request]
            self._seconds += 0.1 * (time.monotonic() - generation.begun - self._seconds)


def _drawn(generation: Generation, reply: Reply, token: int | None) -> Drawn:
    number = generation.replies.index(reply)
    if token is None or not reply.log_probabilities:
        return Drawn(number, token, reply.ended)
    return Drawn(number, token, reply.ended, reply.log_probabilities[-1], reply.alternatives[-1])


def _chosen(generation: Generation) -> list[Drawn]:
    """The best reply, as if it had been the only one."""
    assert generation.choose is not None
    ids = list(generation.choose(generation.replies))
    reply = next(reply for reply in generation.replies if reply.ids == ids)
    each = zip(ids, reply.log_probabilities, reply.alternatives, strict=True)
    drawn = [Drawn(0, token, "", value, others) for token, value, others in each]
    return [*drawn, Drawn(0, None, reply.ended)]
