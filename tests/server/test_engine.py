"""One thread draws for all: who joins when, what each is handed, and how it ends."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from smallgpt.chat.best_of import best, generators_from
from smallgpt.chat.chatbot import Chatbot
from smallgpt.config import SamplingConfig
from smallgpt.model.generate import Request, generate
from smallgpt.model.gpt import GPT
from smallgpt.server.engine import (
    Drawn,
    Engine,
    Generation,
    Outbox,
    QueueFullError,
    State,
    UnavailableError,
)
from smallgpt.tokenizer.characters import PAD, SEP
from tests.helpers.models import ScriptedBot, random_model, vocabulary
from tests.helpers.server import PATIENCE, eventually


class Asked:
    """A request, and what the engine handed out for it."""

    def __init__(self, request: Request, client: str = "", choose: Any = None) -> None:
        self.drawn = list[Drawn]()
        self.generation = Generation(request, self.drawn.extend, client, choose)

    def ids(self, number: int = 0) -> list[int]:
        return [d.token for d in self.drawn if d.number == number and d.token is not None]

    @property
    def ended(self) -> list[str]:
        return [drawn.ended for drawn in self.drawn if drawn.ended]


class Gate:
    """Holds a scripted model before each id until it is opened."""

    def __init__(self, bot: ScriptedBot) -> None:
        self._open, self.reached = threading.Semaphore(0), threading.Semaphore(0)
        bot.script.pause = self._wait

    def _wait(self, left: int) -> None:
        if left:  # not the pass that warms up
            self.reached.release()
            assert self._open.acquire(timeout=PATIENCE)

    def open(self, times: int = 100_000) -> None:
        self._open.release(times)


def hand_out(outbox: Outbox) -> None:
    for generation, drawn in outbox:
        generation.receive(drawn)


@contextmanager
def running(
    model: GPT,
    slots: int = 1,
    queue: int = 99,
    time_limit: float = PATIENCE,
    on_step: Callable[[int], object] = lambda busy: None,
    on_state: Callable[[State], object] = lambda state: None,
) -> Iterator[Engine]:
    engine = Engine(model, slots, queue, time_limit, lambda: None, hand_out, on_step, on_state)
    engine.start()
    eventually(lambda: engine.state != "loading")
    try:
        yield engine
    finally:
        engine.stop()
        engine.join(PATIENCE)


def asking(bot: Chatbot, text: str, client: str = "", seed: int = 0) -> Asked:
    request, _ = bot.request([text], torch.Generator().manual_seed(seed))
    return Asked(request, client)


def done(asked: Sequence[Asked]) -> Callable[[], bool]:
    return lambda: all(one.ended for one in asked)


def test_a_reply_does_not_depend_on_what_is_drawn_beside_it() -> None:
    model, numbers = random_model(1, tied=False), torch.Generator().manual_seed(0)

    def draw_request() -> tuple[Request, Request]:
        length, most, count, seed = (
            int(torch.randint(1, high, (), generator=numbers)) for high in (20, 12, 4, 1000)
        )
        context = torch.randint(0, 24, (length,), generator=numbers).tolist()
        sampling = SamplingConfig(temperature=1.0, max_new_tokens=most)
        generators = generators_from(torch.Generator().manual_seed(seed), count)
        alone = generators_from(torch.Generator().manual_seed(seed), count)
        stop = {SEP, PAD}
        return (
            Request(context, sampling, generators, stop),
            Request(context, sampling, alone, stop),
        )

    pairs = [draw_request() for _ in range(40)]
    asked = [Asked(request, f"client {number % 3}") for number, (request, _) in enumerate(pairs)]
    busy = list[int]()
    with running(model, slots=4, on_step=busy.append) as engine:
        for one in asked:
            engine.submit(one.generation)
        eventually(done(asked))
        eventually(lambda: engine.running + engine.waiting == 0)
    assert max(busy) > 2
    for one, (_, alone) in zip(asked, pairs, strict=True):
        for number, generator in enumerate(alone.generators):
            single = Request(alone.context, alone.sampling, [generator], alone.stop)
            assert one.ids(number) == list(generate(model, single))


def test_clients_take_turns_and_each_is_served_in_order() -> None:
    bot = ScriptedBot(["你好"])
    gate = Gate(bot)
    texts = [("a", "早"), ("a", "上"), ("a", "好"), ("b", "安"), ("c", "晚"), ("b", "天")]
    asked = [asking(bot, text, client) for client, text in texts]
    with running(bot.model) as engine:
        engine.submit(asked[0].generation)
        gate.reached.acquire()
        for one in asked[1:]:
            engine.submit(one.generation)
        assert (engine.running, engine.waiting) == (1, 5)
        gate.open()
        eventually(done(asked))
    assert bot.heard() == [f"{text}\n" for text in "早上安晚好天"]


def test_nobody_overtakes_one_that_needs_many_slots() -> None:
    bot = ScriptedBot(["你好"])
    gate = Gate(bot)
    first, many, small = (asking(bot, text, text) for text in "早上好")
    many.generation.request.generators = [torch.Generator() for _ in range(2)]
    with running(bot.model, slots=2) as engine:
        engine.submit(first.generation)
        gate.reached.acquire()
        engine.submit(many.generation)
        engine.submit(small.generation)
        gate.open()
        eventually(done([first, many, small]))
    assert bot.heard() == ["早\n", "上\n", "好\n"]


def test_beyond_the_queue_requests_are_turned_away() -> None:
    bot = ScriptedBot(["你好"])
    gate = Gate(bot)
    asked = [asking(bot, "早") for _ in range(4)]
    with running(bot.model, queue=2) as engine:
        engine.submit(asked[0].generation)
        gate.reached.acquire()
        for one in asked[1:3]:
            engine.submit(one.generation)
        with pytest.raises(QueueFullError) as refused:
            engine.submit(asked[3].generation)
        assert refused.value.seconds >= 1
        gate.open()
        eventually(done(asked[:3]))
        engine.submit(asked[3].generation)
        eventually(done(asked))
    with pytest.raises(ValueError, match="slots"):
        engine.submit(Asked(Request([3], SamplingConfig(), [torch.Generator()] * 2)).generation)


@pytest.mark.parametrize("time_limit", [1e6, math.inf])
def test_how_soon_there_is_room_in_the_queue(
    monkeypatch: pytest.MonkeyPatch, time_limit: float
) -> None:
    """By the time that requests take when their turn has come, not by what they waited before."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("smallgpt.server.engine.time", clock)
    bot = ScriptedBot(["你好"])

    def a_second_an_id(left: int) -> None:
        now[0] += bool(left)

    bot.script.pause = a_second_an_id
    asked = [asking(bot, "早") for _ in range(200)]
    with running(bot.model, queue=199, time_limit=time_limit) as engine:
        for one in asked:
            engine.submit(one.generation)
        eventually(done(asked))
        gate = Gate(bot)
        engine.submit(asking(bot, "早").generation)
        gate.reached.acquire()
        for _ in range(199):
            engine.submit(asking(bot, "早").generation)
        with pytest.raises(QueueFullError) as refused:
            engine.submit(asking(bot, "早").generation)
        engine.stop()
        gate.open()
    # Each takes three seconds: two characters, and the end.
    assert 590 < refused.value.seconds < 610


def test_who_leaves_frees_the_slot_before_the_next_step() -> None:
    bot = ScriptedBot(["你好你好", "早上"])
    gate = Gate(bot)
    leaves, waits, stays = (asking(bot, text) for text in "早上好")
    busy = list[int]()
    with running(bot.model, on_step=busy.append) as engine:
        for one in (leaves, waits, stays):
            engine.submit(one.generation)
        gate.reached.acquire()
        engine.cancel(waits.generation)
        engine.cancel(leaves.generation)
        gate.open()
        eventually(done([stays]))
        eventually(lambda: engine.running + engine.waiting == 0)
    # The step in which it left, and those of the one that stayed.
    assert busy == [1, 1, 1, 1]
    assert len(leaves.ids()) == 1 and not leaves.ended and not waits.drawn
    assert vocabulary().decode(stays.ids()) == "早上"
    assert bot.heard() == ["早\n", "好\n"]


def test_one_of_several_replies_can_leave() -> None:
    model = random_model(1, tied=False)
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=8)

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(3)]

    asked = Asked(Request([5, 6], sampling, generators()))

    def leave(busy: int) -> None:
        if len(asked.ids(1)) == 1:
            engine.cancel(asked.generation, 1)

    with running(model, slots=3, on_step=leave) as engine:
        engine.submit(asked.generation)
        eventually(lambda: len(asked.ended) == 2)
        eventually(lambda: engine.running == 0)
    assert len(asked.ids(1)) == 2 and {d.number for d in asked.drawn if d.ended} == {0, 2}
    for number in (0, 2):
        alone = Request([5, 6], sampling, [generators()[number]])
        assert asked.ids(number) == list(generate(model, alone))


def test_requests_that_take_too_long_are_ended() -> None:
    bot = ScriptedBot(["你好"])
    gate = Gate(bot)
    slow, waits = asking(bot, "早"), asking(bot, "好")
    with running(bot.model) as engine:
        engine.submit(slow.generation)
        gate.reached.acquire()
        engine.time_limit = -1  # is over at once
        engine.submit(waits.generation)
        slow.generation.deadline = waits.generation.deadline
        gate.open()
        eventually(done([slow, waits]))
        assert slow.ended == waits.ended == ["time_limit"] and not waits.ids()
        eventually(lambda: engine.running + engine.waiting == 0)
        assert engine.state == "ok"
        # The slot is free, and the next may take as long as it is allowed to.
        engine.time_limit = PATIENCE
        after = asking(bot, "安")
        engine.submit(after.generation)
        eventually(done([after]))
        assert after.ended == ["stop"]


def test_draining_finishes_what_was_taken_in() -> None:
    bot, states = ScriptedBot(["你好"]), list[State]()
    gate = Gate(bot)
    asked = [asking(bot, "早") for _ in range(3)]
    with running(bot.model, on_state=states.append) as engine:
        for one in asked:
            engine.submit(one.generation)
        gate.reached.acquire()
        engine.drain()
        with pytest.raises(UnavailableError, match="draining"):
            engine.submit(asking(bot, "好").generation)
        gate.open()
        engine.join(PATIENCE)
        assert [one.ended for one in asked] == [["stop"]] * 3
    assert (states, engine.state, engine.error) == (["ok", "ended"], "ended", None)
    with pytest.raises(UnavailableError, match="ended"):
        engine.submit(asking(bot, "好").generation)


def test_stopping_tells_those_that_are_not_done() -> None:
    bot = ScriptedBot(["你好"])
    gate = Gate(bot)
    asked = [asking(bot, "早") for _ in range(3)]
    with running(bot.model) as engine:
        for one in asked:
            engine.submit(one.generation)
        gate.reached.acquire()
        engine.stop()
        gate.open()
        engine.join(PATIENCE)
    assert [one.ended for one in asked] == [["shutdown"]] * 3


def test_a_failure_is_told_and_kept() -> None:
    bot, states = ScriptedBot(["你好"]), list[State]()
    asked = [asking(bot, "早") for _ in range(3)]
    with running(bot.model, on_state=states.append) as engine:
        gate = Gate(bot)
        for one in asked:
            engine.submit(one.generation)
        gate.reached.acquire()
        bot.script.pause = lambda left: 1 // 0
        gate.open()
        engine.join(PATIENCE)
        assert [one.ended for one in asked] == [["failed"]] * 3
        assert isinstance(engine.error, ZeroDivisionError) and states == ["ok", "failed"]


def test_a_talk_that_goes_on_is_not_read_again() -> None:
    model, sampling = random_model(1, tied=False), SamplingConfig(max_new_tokens=3)
    bot, read = Chatbot(model, vocabulary(), sampling), list[int]()
    model.register_forward_pre_hook(lambda _, given: read.append(len(given[0])))
    with running(model, slots=2) as engine:
        first = asking(bot, "早上好呀")
        engine.submit(first.generation)
        eventually(done([first]))
        other = asking(bot, "晚安")
        engine.submit(other.generation)
        eventually(done([other]))
        said = vocabulary().decode(first.ids())
        request, prompt = bot.request(["早上好呀", said, "好"], torch.Generator())
        second = Asked(request)
        read.clear()
        engine.submit(second.generation)
        eventually(done([second]))
    # The last id of a reply is only read when the next one is drawn.
    assert second.generation.cached == len("早上好呀\n") + len(first.ids()) - 1
    assert read[0] == len(prompt.ids) - second.generation.cached


def test_the_best_of_several_replies_is_the_chatbots() -> None:
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=8, best_of=4)
    bot = Chatbot(random_model(1, tied=False), vocabulary(), sampling, seed=7)
    expected = bot.conversation().reply("早上好")
    ended = list[list[str]]()

    def choose(replies: Any) -> list[int]:
        ended.append([reply.ended for reply in replies])
        return best(bot.model, replies, bot.sampling.mmi_weight)

    request, _ = bot.request(["早上好"], torch.Generator().manual_seed(7))
    asked = Asked(request, choose=choose)
    with running(bot.model, slots=4) as engine:
        engine.submit(asked.generation)
        eventually(done([asked]))
        eventually(lambda: engine.running == 0)
    assert vocabulary().decode(asked.ids()) == expected
    assert all(drawn.log_probability is not None for drawn in asked.drawn[:-1])
    # It was chosen once, although the last replies ended in the same step.
    (reasons,) = ended
    assert reasons.count("length") > 1
