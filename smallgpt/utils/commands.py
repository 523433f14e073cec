"""What a user types to start our programs, for messages that say what to do next."""

import shlex
import shutil
import sys
from pathlib import Path

SCRIPTS = {"train.py": "train", "chat.py": "chat", "sentimentalTrain.py": "sentiment train"}
"""The scripts of a clone, and the same as commands of `smallgpt`."""
_PACKAGE = Path(__file__).parents[1]
CONFIGS = next(
    filter(Path.is_dir, (_PACKAGE / "configs", _PACKAGE.parent / "config")), Path("config")
)
"""The configs that come with Small GPT: in the installed package, or in the clone."""


def config_names() -> list[str]:
    """By these names a command finds the files in `CONFIGS`."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def python_command() -> str:
    """What a user types to run this Python: `python` where that is it, else its path."""
    here, found = Path(sys.executable), shutil.which("python")
    if found and Path(found).samefile(here) and Path(found).parent == here.parent:
        return "python"
    inside = here.is_relative_to(Path.cwd())
    return shlex.quote(str(here.relative_to(Path.cwd()) if inside else here))


def script(name: str) -> str:
    """What a user types behind `python` for one of `SCRIPTS`, which `pip install` leaves out."""
    if _in_clone():
        return name
    if (started := Path(sys.argv[0])).name in SCRIPTS:
        return shlex.quote(str(started.with_name(name)))
    return f"-m smallgpt {SCRIPTS[name]}"


def with_config(name: str, config: str) -> str:
    """The command that runs one of `SCRIPTS` with a config of `CONFIGS`."""
    return f"python {script(name)} {f'config/{config}.yaml' if _in_clone() else config}"


def chat_with(model: Path) -> str:
    """The command that chats with a model."""
    return f"{python_command()} {script('chat.py')} {shlex.quote(str(model))}"


def _in_clone() -> bool:
    """Whether the user is where the scripts are: no other project has one of this name."""
    return Path("sentimentalTrain.py").is_file()


def training_of(root: Path, config: Path | None = None, other: str = "demo") -> str:
    """The command that trains what belongs into the folder of a run.

    A config of `CONFIGS` has a folder of its name; `config` is one of the user's own; `other` is
    the one of `CONFIGS` to train where neither says more, or the folder's is of the other kind.
    """
    name = root.name if root.parent.name == "checkpoints" else ""
    if name not in config_names() or (_classifies(other) and not _classifies(name)):
        if config:
            return f"python {script('train.py')} {shlex.quote(str(config))}"
        name = other
    make = "make demo, or " if name == "demo" and _in_clone() else ""
    return make + with_config("sentimentalTrain.py" if _classifies(name) else "train.py", name)


def _classifies(name: str) -> bool:
    """Whether a config of `CONFIGS` trains a classifier."""
    return name.startswith("sentiment") and not name.endswith("_language")
