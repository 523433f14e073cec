"""The benchmark of fine-tuning runs, and its plain side is the same classifier."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.helpers.processes import REPOSITORY


def test_it_prints_one_line_with_both_ratios() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.sentiment", "--size", "tiny"),
            *("--reviews", "48", "--rounds", "1", "--steps", "1"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert result["ratio"] > 1
    for name in ("plain_epoch_s", "ours_epoch_s", "frozen_epoch_s", "frozen_states_s"):
        assert result[name] > 0
