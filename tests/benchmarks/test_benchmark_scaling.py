"""The benchmark of scaling runs, and its figures make sense."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling
from benchmarks.scaling import Turn, bytes_a_step
from smallgpt.utils.errors import UserError
from tests.helpers.models import DIALOGUES
from tests.helpers.processes import REPOSITORY, python_environment


@pytest.mark.slow
def test_two_processes_are_measured_against_one(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join([DIALOGUES] * 5), encoding="utf-8")
    options = ["--size", "tiny", "--rows", "2", "--steps", "2", "--rounds", "2", "--data", text]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", *map(str, options)],
        cwd=REPOSITORY,
        env=python_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, done.stdout.splitlines())
    assert (line["scaling"], line["rows_a_process"], line["threads"]) == ("weak", 2, 1)
    assert line["gradient_bytes"] == 4 * line["parameters"]
    rounds = line["efficiency_of_rounds"]
    assert len(rounds) == 2
    assert line["efficiency"] == pytest.approx(sum(rounds) / 2, abs=0.001)
    assert line["tokens_per_second_two"] > 0
    assert line["efficiency_of_two_apart"] > 0
    assert line["all_reduce_seconds"] > 0
    if line["bytes_measured_in"] == "a network of their own":
        # Each sends its half of the sum and its half of the numbers once, and some headers.
        assert 1 < line["bytes_by_gradients"] < 1.3


def test_bytes_of_a_step_are_those_beyond_what_is_sent_at_rest() -> None:
    # 4 steps in 2 s each; 30 bytes a second at rest, between second 2 and 12.
    turns = [Turn(0, 2, 1000, 1460, 0), Turn(12, 14, 1760, 2220, 0)]
    assert bytes_a_step(turns, 4) == pytest.approx((2 * 460 - 4 * 30) / 8)
    assert bytes_a_step(turns[:1], 4) == 460 / 4


@pytest.mark.parametrize(
    ("options", "told"), [({"size": "13M"}, "12M"), ({"rows": 12}, "--at-once")]
)
def test_wrong_sizes_and_rows_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        scaling.main(**options)
