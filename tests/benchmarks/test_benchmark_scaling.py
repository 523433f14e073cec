"""The benchmark of scaling runs and its figures make sense; the arithmetic on paper is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import scaling, scaling_paper
from benchmarks.scaling import Turn, bytes_a_step
from benchmarks.scaling_paper import efficiency, rows_needed, sent_bytes, task
from smallgpt.config import load_config
from tests.helpers.commands import refusal
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


def test_rows_that_cannot_be_computed_in_equal_parts_are_refused() -> None:
    assert "--at-once" in refusal(lambda: scaling.main(rows=12))


def test_the_paper_is_about_the_shipped_300m_model() -> None:
    it = task(load_config(REPOSITORY / scaling_paper.CONFIG))
    layer = 12 * 960**2 + 13 * 960  # weights, then biases and norms
    assert it.named == 26 * layer + 2 * 960 + 7587 * 960 == 295_149_120
    assert it.parameters == 295_149_120 + 256 * 960
    assert it.embeddings == (7587 + 256) * 960
    assert (it.rows, it.positions) == (48, 256)
    # 6 x 295.149 M x 12,288 positions are 21.76 TFLOP; 124.8 TFLOP/s take 174.4 ms.
    assert it.step_seconds() == pytest.approx(0.1744, rel=1e-3)


@pytest.mark.parametrize(
    ("compute", "communication", "with_overlap", "without"),
    [
        (0.3, 0.1, 0.3 / 0.305, 0.75),  # hidden, but for the twentieth that is ready last
        (0.3, 0.3, 0.75, 0.5),  # 0.2 of it hidden
        (0.3, 3.0, 0.3 / 3.1, 0.3 / 3.3),
        (1.0, 0.0, 1.0, 1.0),
    ],
)
def test_efficiency_on_paper(
    compute: float, communication: float, with_overlap: float, without: float
) -> None:
    assert efficiency(compute, communication, tail=0.05) == pytest.approx((with_overlap, without))


def test_bytes_and_rows_on_paper() -> None:
    assert [sent_bytes(n, 800) for n in (1, 2, 8)] == [0, 800, 1400]
    # 0.7 s of communication are hidden but for a ninth of the computing in 0.9 s: 0.7 - 0.6 = 0.1.
    assert rows_needed(0.7, 0.0, row_seconds=0.1) == 9
    assert rows_needed(0.7, 0.5, row_seconds=0.1) == 32  # 0.35 s cannot be hidden: 9 x 0.35 = 3.15


def test_the_documents_tables_are_the_programs() -> None:
    document = (REPOSITORY / "docs" / "scaling.md").read_text("utf-8")
    assert scaling_paper.report(None) in document


def test_a_measured_step_takes_the_place_of_the_assumed_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    scaling.main(paper=True, step_seconds=0.48)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "One GPU takes 480 ms for 48 rows (as given); gradients: 1.182 GB."
    # 2 GPUs: 0.24 s of computing, 1.1816 GB sent; at 25 Gbit/s 0.3781 s, of which 0.16 s hidden;
    # at 100 Gbit/s 0.0945 s hidden but for 2.55 %; by NVLink 5.9 ms.
    first = next(line for line in lines if line.startswith("| 2 | 24 | 48 |"))
    assert first == "| 2 | 24 | 48 | 240 | 1.18 | 52 / 39 | 99 / 72 | 100 / 91 | 100 / 98 |"
