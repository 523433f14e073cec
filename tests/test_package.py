"""What `pip install .` installs, as far as pyproject.toml says it."""

from __future__ import annotations

import tomllib

from smallgpt import __version__
from smallgpt.utils.commands import CONFIGS, config_names
from tests.helpers.commands import smallgpt
from tests.helpers.processes import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def test_every_folder_of_the_package_is_in_it_and_the_configs_too() -> None:
    inside = REPOSITORY / "smallgpt"
    folders = {path.parent.relative_to(REPOSITORY) for path in inside.rglob("*.py")}
    expected = {".".join(folder.parts) for folder in folders} | {"smallgpt.box", "smallgpt.configs"}
    assert sorted(expected) == SETUPTOOLS["packages"]
    others = {"smallgpt.box": "models/box", "smallgpt.configs": CONFIGS.name}
    assert SETUPTOOLS["package-dir"] == others
    assert (inside / "py.typed").exists()
    for name in ("box", "configs"):
        assert not (inside / name).exists()  # it would go before config/ and models/


def test_there_is_one_version() -> None:
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "smallgpt.__version__"}
    assert "version" not in PROJECT["project"]
    assert smallgpt("--version").stdout == f"smallgpt {__version__}\n"


def test_help_names_the_configs() -> None:
    shown = "".join(smallgpt("train", "--help").stdout.split())
    assert {"demo", "sentimental_demo", "train90M"} <= set(config_names())
    assert all(name in shown.replace("│", "") for name in config_names())
