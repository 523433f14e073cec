"""deploy/: the systemd unit and the image, as far as they can be checked without running them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import refused_command
from tests.helpers.models import ScriptedBot
from tests.helpers.processes import REPOSITORY
from tests.helpers.server import serving

UNIT = REPOSITORY / "deploy" / "smallgpt@.service"
CONTAINERFILE = REPOSITORY / "deploy" / "Containerfile"
MODEL = "checkpoints/demo"


@pytest.fixture(autouse=True)
def _a_key_and_no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMALLGPT_API_KEY", "secret")
    monkeypatch.chdir(tmp_path)


def joined_lines(file: Path) -> str:
    return re.sub(r"\s*\\\n\s*", " ", file.read_text("utf-8"))


def settings_of_the_unit() -> dict[str, str]:
    """Its settings that stand there once."""
    return dict(re.findall(r"^(\w+)=(.*)$", joined_lines(UNIT), re.MULTILINE))


def check_that_serve_knows(words: list[str]) -> None:
    """A command that is right but for its model, which is not there."""
    assert Path(words[0]).name == "python" and words[1:4] == ["-m", "smallgpt", "serve"]
    assert MODEL in words
    assert MODEL in refused_command(*words[3:])


def test_systemd_knows_every_setting(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    python = settings_of_the_unit()["ExecStart"].split()[0]
    text = UNIT.read_text("utf-8").replace(python, sys.executable)  # it must be there
    (tmp_path / UNIT.name).write_text(text, "utf-8")
    done = subprocess.run(
        [program, "verify", tmp_path / UNIT.name], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_starts_the_server_and_waits_for_its_replies() -> None:
    unit = settings_of_the_unit()
    words = shlex.split(unit["ExecStart"].replace("%i", "8000"))
    check_that_serve_knows(words)
    grace = float(words[words.index("--grace") + 1])
    assert (unit["KillSignal"], unit["Restart"]) == ("SIGTERM", "on-failure")
    assert float(unit["TimeoutStopSec"]) >= grace + 10
    assert unit["RestartPreventExitStatus"] == "2"


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("hadolint is not installed: requirements-dev.txt has it for Linux on x86-64")
    done = subprocess.run([program, CONTAINERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def instruction(name: str) -> str:
    (found,) = re.findall(rf"^{name} (.*)$", joined_lines(CONTAINERFILE), re.MULTILINE)
    return str(found)


def test_the_image_copies_what_is_there_and_starts_the_server() -> None:
    copied = re.findall(r"^COPY (\S+) (\S+)$", joined_lines(CONTAINERFILE), re.MULTILINE)
    assert [(REPOSITORY / source).exists() for source, _ in copied] == [True] * 3
    assert int(instruction("USER")) > 0
    assert json.loads(instruction("CMD")) == ["box"]
    check_that_serve_knows([*json.loads(instruction("ENTRYPOINT")), MODEL])


def test_the_images_health_check_fails_while_the_server_ends() -> None:
    (check,) = re.findall(r"^HEALTHCHECK .* CMD (.*)$", joined_lines(CONTAINERFILE), re.MULTILINE)

    def healthy(url: str) -> bool:
        command = [word.replace("http://127.0.0.1:8000", url) for word in json.loads(check)]
        command[0] = sys.executable
        return not subprocess.run(command, capture_output=True, timeout=60, check=False).returncode

    with serving(ScriptedBot(["好"])) as served:
        assert healthy(served.url)
        served.service.engine.drain()
        assert not healthy(served.url)
    assert not healthy(served.url)
