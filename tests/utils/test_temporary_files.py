"""What tests leave in the temporary directory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.helpers.processes import python_environment


def test_temporary_files_go_where_pytest_removes_them(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Ours and those of programs that we start, such as torchrun's logs."""
    program = "import tempfile; print(tempfile.gettempdir(), end='')"
    child = subprocess.run(
        [sys.executable, "-c", program],
        env=python_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    for place in (tempfile.gettempdir(), child.stdout):
        assert Path(place).is_relative_to(tmp_path_factory.getbasetemp())
