"""The benchmark of generation runs, on a tiny model, and its figures make sense."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import generation
from tests.helpers.commands import refusal


class InThisProcess(contextlib.nullcontext[None]):
    """A contestant without a process of its own."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        super().__init__()
        self._made = make(*arguments)

    def __enter__(self) -> Any:
        return self

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._made, method)(*arguments)


def test_quick(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "1")  # so that what it sets is undone
    monkeypatch.setattr(generation, "DTYPES", ("int8",))
    monkeypatch.setattr(generation, "CONTEXTS", (20,))
    monkeypatch.setattr(generation, "read_bandwidth", lambda: 1e10)
    monkeypatch.setattr(generation, "Contestant", InThisProcess)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: None)  # imports torch
    generation.main(quick=True, rounds=1)
    cases = {case["case"]: case for case in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(cases) == ["plain", "ours", "first", "startup"]
    plain, ours, first, startup = cases.values()
    assert plain["context"] == ours["context"] == 20
    assert ours["dtype"] == "int8"
    assert ours["times_plain"] == pytest.approx(
        plain["seconds_a_character"] / ours["seconds_a_character"], rel=0.01
    )
    layers, head = 2 * 12 * 64 * 64, 200 * 64
    assert ours["weight_bytes"] == layers + 2 * head
    assert ours["share_of_bandwidth_limit"] == pytest.approx(
        ours["weight_bytes"] / 1e10 / ours["seconds_a_character"], rel=0.01
    )
    assert first["seconds"] > 0
    assert startup["ratio"] == pytest.approx(
        startup["prompt_seconds"]
        / (startup["import_torch_seconds"] + startup["read_weights_seconds"]),
        rel=0.01,
    )


def test_an_unknown_size_is_refused() -> None:
    assert "use 90M or 300M" in refusal(lambda: generation.main(size=["7B"]))
