"""Commands in this process, and what is refused."""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from smallgpt.cli.main import app
from smallgpt.utils.errors import UserError
from tests.helpers.processes import REPOSITORY, python_environment


def smallgpt(*arguments: str | Path, typed: str | bytes = "") -> Result:
    """The `smallgpt` command, in this process."""
    given = typed.encode() if isinstance(typed, str) else typed
    return CliRunner().invoke(app, [str(a) for a in arguments], input=given)


def python_here(folder: Path, *arguments: str | Path, typed: str = "") -> Result:
    """`python ARGUMENTS` in `folder`, but in this process: a script, or `-m` and a module."""
    words = [str(a) for a in arguments]
    program = typer.Typer()

    @program.command()
    def run() -> None:
        if words[0] == "-m":
            patch.delitem(sys.modules, words[1], raising=False)  # or runpy warns
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", words[1:] if words[0] == "-m" else words)
        patch.setenv("GOMP_SPINCOUNT", "1")  # so that what a program sets is undone
        patch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        patch.setattr(os, "fsync", lambda descriptor: None)  # no waiting for the disk
        return CliRunner().invoke(program, input=typed.encode())


def make_here(folder: Path, *arguments: str) -> tuple[str, str]:
    """Do what `make ARGUMENTS` does in `folder`, but Python in this process; its output and
    messages. The first time the folder is given what a target needs, and an environment."""
    if not (folder / "Makefile").exists():
        for name in ("Makefile", "train.py", "sentimentalTrain.py", "requirements.txt"):
            shutil.copy(REPOSITORY / name, folder)
        shutil.copytree(REPOSITORY / "config", folder / "config")
        (folder / ".venv" / "bin").mkdir(parents=True)
        for name in ("bin/python", ".run"):
            (folder / ".venv" / name).touch()
        (folder / ".venv" / "bin" / "python").chmod(0o755)
    listed = subprocess.run(
        ["make", "-n", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in python_environment().items() if not k.startswith("MAKE")},
    )
    out = err = ""
    for line in listed.stdout.replace("\\\n", "").splitlines():
        words = shlex.split(line)
        if words[0] == ".venv/bin/python":
            done = python_here(folder, *words[1:])
            assert done.exit_code == 0, done.output
            out += done.stdout
            err += done.stderr
        else:
            ran = subprocess.run(line, shell=True, cwd=folder, capture_output=True, check=True)
            out += ran.stdout.decode()
            err += ran.stderr.decode()
    return out, err


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
