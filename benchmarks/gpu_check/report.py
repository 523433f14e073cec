"""What a check found: rows of a table, and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallgpt.utils import atomic

Figures = dict[str, Any]
"""What a check has measured: plain values."""
FAILED, MISSED, NOT_RUN = "FAIL", "target missed", "not run"
_WIDTHS = (11, 40, 34, 26)


@dataclass(frozen=True)
class Row:
    """A line of the table. `verdict`: pass, FAIL, target missed, not run, or empty for a figure
    that is only reported."""

    what: str
    measured: str
    wanted: str = ""
    verdict: str = ""


def must(what: str, measured: str, wanted: str, holds: bool) -> Row:
    """A row on which the exit code depends: what is right, and what fits."""
    return Row(what, measured, wanted, "pass" if holds else FAILED)


def target(what: str, measured: str, wanted: str, holds: bool) -> Row:
    """A speed, which was not measured on such a card before."""
    return Row(what, measured, wanted, "pass" if holds else MISSED)


def not_run(what: str, why: str) -> Row:
    """What could not be measured here."""
    return Row(what, why, "", NOT_RUN)


def line(*columns: str) -> str:
    """A line of the table: check, what, measured, wanted, verdict."""
    *padded, last = columns
    return " ".join(f"{c:<{w}}" for c, w in zip(padded, _WIDTHS, strict=True)) + f" {last}"


def write(file: Path, result: Mapping[str, Any]) -> None:
    """Replace `file` by this JSON object."""
    with atomic.file(file) as new:
        new.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
