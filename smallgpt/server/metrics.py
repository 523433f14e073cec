"""What the server counts, for Prometheus."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
_SPEEDS = (1, 2, 5, 10, 20, 30, 40, 60, 80, 100, 150, 200, 300, 500, 1000)


class Metrics:
    """The figures of one server.

    Args:
        slots: replies drawn at once.
        running, waiting: how many requests are, right now.
    """

    def __init__(
        self, slots: int, running: Callable[[], float], waiting: Callable[[], float]
    ) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        prefix, registry = "smallgpt_", self.registry
        Gauge(
            prefix + "requests_running", "Requests whose replies are drawn.", registry=registry
        ).set_function(running)
        Gauge(
            prefix + "requests_waiting", "Requests that wait for a slot.", registry=registry
        ).set_function(waiting)
        self.requests = Counter(
            prefix + "requests",
            "Answers under /v1/; 499: the client left first.",
            ["path", "status"],
            registry=registry,
        )
        self.prompt_characters = Counter(
            prefix + "prompt_characters", "Characters of contexts.", registry=registry
        )
        self.generated_characters = Counter(
            prefix + "generated_characters", "Characters of replies.", registry=registry
        )
        self.time_to_first_character = Histogram(
            prefix + "time_to_first_character_seconds",
            "From a request's arrival to its first character.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.characters_per_second = Histogram(
            prefix + "characters_per_second",
            "Of a request's replies, behind the first character.",
            buckets=_SPEEDS,
            registry=registry,
        )
        self.slots_busy = Histogram(
            prefix + "slots_busy",
            "Slots with a reply, each step.",
            buckets=[*range(1, slots + 1)],
            registry=registry,
        )

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)
