"""Problems the user can fix: one message, an exit code, no traceback; nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
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
prints = pytest.mark.parametrize("statement", ["print('a')", "for i in range(100_000): print(i)"])


@prints
def test_a_reader_that_goes_away_is_no_error(statement: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", PRINT.format(statement)]
    with os.fdopen(write) as output:
        done = subprocess.run(
            command, env=python_environment(), stdout=output, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@prints
def test_a_full_disk_is_told_in_words(statement: str) -> None:
    done = run_on_a_full_disk("-c", PRINT.format(statement))
    assert done.returncode == 2
    assert done.stderr == (
        b"error: the output cannot be written: No space left on device\n"
        b"  -> make room on the disk\n"
    )


def test_temporary_files_go_where_pytest_removes_them(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Ours and those of programs that we start, such as torchrun's logs."""
    command = [sys.executable, "-c", "import tempfile; print(tempfile.gettempdir(), end='')"]
    child = subprocess.run(
        command, env=python_environment(), capture_output=True, text=True, check=True
    )
    for place in (tempfile.gettempdir(), child.stdout):
        assert Path(place).is_relative_to(tmp_path_factory.getbasetemp())
