"""Commands in this process, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from smallgpt.cli.main import app
from smallgpt.utils.errors import UserError


def smallgpt(*arguments: str | Path, typed: str = "") -> Result:
    """The `smallgpt` command, in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments], input=typed.encode())


def refused_command(*arguments: str | Path, typed: str = "") -> str:
    """What a command that must be refused says: nothing but one message, and exit code 2."""
    result = smallgpt(*arguments, typed=typed)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def refusal(action: Callable[[], object]) -> str:
    """What the `UserError` says that `action` must raise."""
    with pytest.raises(UserError) as error:
        action()
    return str(error.value)


class Evil:
    """Pickled, it is an order to create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)
