"""What the command lines share: their arguments, and how a function becomes a program."""

import shlex
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer

from smallgpt.cli import streams
from smallgpt.utils.atomic import is_device
from smallgpt.utils.commands import config_names, script
from smallgpt.utils.errors import UserError, user_errors
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
Force = Annotated[
    bool, typer.Option("--force", help="Replace files that are there already, not the inputs.")
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


def check_output(inputs: list[Path], outputs: list[Path], force: bool) -> None:
    """Refuse outputs that would replace something.

    A device or a pipe is written to; an existing file is replaced only with --force.
    """
    if len({output.resolve() for output in outputs}) < len(outputs):
        raise UserError(f"{outputs[0]} is to be two files", "name another for one of them")
    for output in outputs:
        if output.is_dir() or any(
            output.exists() and i.exists() and output.samefile(i) for i in inputs
        ):
            raise UserError(f"{output} is an input, or a directory", "name another file")
        if output.exists() and not force and not is_device(output):
            raise UserError(f"{output} is there already", "name another, or add --force")


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
    """Run a program, with an exit code for what the user can fix."""
    streams.prepare()
    with user_errors():
        program()
