"""A problem the user can put right: one message, an exit code, no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from smallgpt.utils.errors import UserError, user_errors
from tests.helpers.processes import python_environment, run_on_a_full_disk


def test_a_user_error_shows_problem_and_advice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, user_errors():
        raise UserError("lr: -1 must be positive", "set lr: 3e-4")
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", "error: lr: -1 must be positive\n  -> set lr: 3e-4\n")
    assert str(UserError("no advice")) == "no advice"


def test_control_c_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    @user_errors()
    def command() -> None:
        raise KeyboardInterrupt

    for _ in range(2):  # as a decorator it serves more than once
        with pytest.raises(SystemExit) as stop:
            command()
        assert stop.value.code == 130
        assert capsys.readouterr() == ("", "interrupted\n")


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(5, "Input/output error")])
def test_mistakes_of_ours_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)), user_errors():
        raise error


PRINT = "from smallgpt.utils.errors import user_errors\nwith user_errors():\n    {}"


@pytest.mark.parametrize("statement", ["print('a')", "for i in range(100_000): print(i)"])
def test_a_reader_that_goes_away_is_no_error(statement: str) -> None:
    command = [sys.executable, "-c", PRINT.format(statement)]
    with subprocess.Popen(
        command, env=python_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("statement", ["print('a')", "for i in range(100_000): print(i)"])
def test_a_full_disk_is_told_in_words(statement: str) -> None:
    done = run_on_a_full_disk("-c", PRINT.format(statement))
    assert done.returncode == 2
    assert done.stderr == (
        b"error: the output cannot be written: No space left on device\n"
        b"  -> make room on the disk\n"
    )
