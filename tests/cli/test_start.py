"""A Python that cannot run the commands says so in one line."""

from __future__ import annotations

import ast
import os
import platform
import sys
from importlib import import_module
from pathlib import Path

import pytest

from smallgpt.cli.arguments import before_torch
from smallgpt.utils.errors import user_errors
from tests.helpers.processes import REPOSITORY, Run

PROGRAMS = ["train.py", "chat.py", "sentimentalTrain.py", "smallgpt/__main__.py"]
DEMO = REPOSITORY / "config" / "demo.yaml"


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_old_python(run: Run, program: str) -> None:
    pretend = "import runpy, sys; sys.version_info = (3, 8, 18, 'final', 0); sys.argv[1:] = []"
    path = str(REPOSITORY / program)
    done = run("-c", f"{pretend}; runpy.run_path({path!r}, run_name='__main__')")
    said = done.stderr.decode()
    assert (done.returncode, done.stdout, said.count("\n")) == (2, b"", 1)
    assert said.startswith("error: Small GPT needs Python 3.11 or newer, and ")
    assert " is Python 3.8: type the name of a newer one" in said


@pytest.mark.parametrize("program", PROGRAMS[:3])
@pytest.mark.parametrize("version", ["2, 7", "3, 6"])
def test_a_very_old_python(run: Run, program: str, version: str) -> None:
    """It reads none of the package; of what Python 2 does not know, these scripts hold nothing."""
    pretend = (
        f"import runpy, sys; sys.version_info = ({version}, 9); sys.modules['smallgpt'] = None"
    )
    path = REPOSITORY / program
    done = run("-c", f"{pretend}; runpy.run_path({str(path)!r}, run_name='__main__')")
    said = done.stderr.decode()
    assert (done.returncode, done.stdout, said.count("\n")) == (2, b"", 1)
    assert said.startswith("error: Small GPT needs Python 3.11 or newer")
    source = path.read_text("utf-8")
    assert source.isascii() and "__future__" not in source
    ast.parse(source, feature_version=(3, 4))
    assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.JoinedStr)]


@pytest.mark.parametrize("file", [*PROGRAMS, "smallgpt/__init__.py", "smallgpt/cli/__init__.py"])
def test_an_old_python_understands_what_comes_before(file: str) -> None:
    ast.parse((REPOSITORY / file).read_text("utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_packages(run: Run, program: str) -> None:
    done = run("-S", REPOSITORY / program, DEMO)
    said = done.stderr.decode()
    assert (done.returncode, done.stdout, said.count("\n")) == (2, b"", 1)
    assert " has no typer: " in said and "pip install -r requirements.txt" in said


def test_a_package_that_is_needed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @user_errors()
    def program(missing: str) -> None:
        import_module(missing)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit) as ended:
        program("torch")
    assert ended.value.code == 2
    assert " has no torch: run make demo, or " in capsys.readouterr().err
    python = Path(".venv", "bin", "python")
    python.parent.mkdir(parents=True)
    python.touch()
    with pytest.raises(SystemExit):
        program("torch")
    assert capsys.readouterr().err.endswith(f" has no torch: use {python}, or activate .venv\n")
    with pytest.raises(ModuleNotFoundError):  # of our own: a fault to be shown as it is
        program("smallgpt.nothing")


@pytest.mark.parametrize(
    ("system", "release", "set_by_user", "expected"),
    [
        ("linux", "6.8.0-generic", {}, "expandable_segments:True"),
        ("linux", "5.15.167.4-microsoft-standard-WSL2", {}, None),
        ("win32", "11", {}, None),
        ("linux", "6.8.0-generic", {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, None),
        ("linux", "6.8.0-generic", {"PYTORCH_ALLOC_CONF": ""}, ""),
    ],
)
def test_what_torch_reads_is_set_before_it_is_imported_unless_the_user_has_set_it(
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    release: str,
    set_by_user: dict[str, str],
    expected: str | None,
) -> None:
    environment = {"GOMP_SPINCOUNT": "7"} | set_by_user
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "release", lambda: release)
    before_torch()
    assert environment["GOMP_SPINCOUNT"] == "7"
    assert environment.get("PYTORCH_ALLOC_CONF") == expected
