"""What the command lines share: their arguments, and how a function becomes a program."""

import io
import shlex
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer

from smallgpt.utils.commands import config_names, script
from smallgpt.utils.errors import user_errors
from smallgpt.utils.paths import without_tilde

ConfigFile = Annotated[
    Path,
    typer.Argument(
        help=f"YAML file of the run, or the name of one of these: {', '.join(config_names())}.",
        metavar="CONFIG",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Keys of the YAML to change for this run.", metavar="[key=value]..."),
]
CheckpointPath = Annotated[
    Path,
    typer.Argument(help="A checkpoint directory, or the folder of a run.", metavar="CHECKPOINT"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
F = TypeVar("F", bound=Callable[..., Any])

TRAINING_SPINS, CHAT_SPINS = "1000", "10000"
"""How often threads that wait for each other look before they sleep; set before torch is imported.

On a machine that is busy with something else as well, training is half as fast again where they
soon sleep. The many short products of a reply need more patience (docs/log.md).
"""


def command(app: typer.Typer, name: str | None = None) -> Callable[[F], F]:
    """Make a function a command of `app`: a `UserError` is shown without a traceback, and `~` is
    the home folder in every path, also behind `--option=`, where the shell leaves it alone."""
    # `run_program` is inside `user_errors` too, but typer has its own way with Ctrl-C.
    return lambda function: app.command(name)(user_errors()(_at_home(function)))


def _at_home(function: F) -> F:
    def expanded(value: Any) -> Any:
        if isinstance(value, list):
            return [expanded(item) for item in value]
        return Path(without_tilde(str(value))) if isinstance(value, Path) else value

    @wraps(function)
    def call(**arguments: Any) -> Any:
        return function(**{name: expanded(value) for name, value in arguments.items()})

    return cast(F, call)


def typed(name: str, config: Path, overrides: list[str]) -> str:
    """What the user typed, for the message that says how to go on: without resume_from."""
    kept = [o for o in overrides if not o.startswith("resume_from=")]
    return f"{script(name)} {shlex.join([str(config), *kept])}"


def run_script(command: Callable[..., Any]) -> None:
    """Run one function as a whole command line program (train.py, chat.py)."""
    script = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    script.command()(command)
    run_program(script)


def run_program(program: typer.Typer) -> None:
    """Run a program; to a pipe or file it writes UTF-8, to a terminal what that shows, else `?`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="replace")
        else:
            sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="\n")
    with user_errors():
        program()
