"""What the command lines share: their arguments, and how a function becomes a program."""

import os
import platform
import shlex
import sys
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer

from smallgpt.cli import streams
from smallgpt.utils.atomic import is_device
from smallgpt.utils.commands import SCRIPTS, config_names, script, with_config
from smallgpt.utils.errors import UserError, user_errors
from smallgpt.utils.paths import exists, without_tilde


def _example(name: str) -> str:
    """How a command that is called `name` may begin."""
    config = "sentimental_demo" if "senti" in name else "demo"
    return with_config(name, config) if name in SCRIPTS else f"{name} {config}"


@user_errors()
def _config_first(context: typer.Context, config: Path) -> Path:
    """Refuse a `key=value` where the config should stand."""
    if is_override(config):
        raise config_first(_example(context.command_path), str(config))
    return config


def config_first(command: str, override: str) -> UserError:
    """The error where a `key=value` stands before the config."""
    return UserError("a config comes first", f"write: {command} {shlex.quote(override)}")


def is_override(argument: Path) -> bool:
    """Whether it is a `key=value` that stands where the config belongs."""
    key, equals, _ = str(argument).partition("=")
    return bool(equals) and key.isidentifier() and not exists(argument)


_CONFIG_HELP = f"YAML file of the run, or the name of one of these: {', '.join(config_names())}."
ConfigFile = Annotated[
    Path,
    typer.Argument(help=_CONFIG_HELP, metavar="CONFIG", callback=_config_first),
]
OptionalConfigFile = Annotated[
    Path | None, typer.Argument(help=_CONFIG_HELP, metavar="CONFIG", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Keys of the YAML to change for this run.", metavar="[key=value]..."),
]
CheckpointPath = Annotated[
    Path,
    typer.Argument(
        help="A checkpoint directory, the folder of a run, or box, which comes with Small GPT.",
        metavar="CHECKPOINT",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace files that are there already, not the inputs.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
F = TypeVar("F", bound=Callable[..., Any])

TRAINING_SPINS, CHAT_SPINS = "1000", "10000"
"""How often threads that wait for each other look before they sleep.

On a machine that is busy with something else as well, training is half as fast again where they
soon sleep. The many short products of a reply need more patience (docs/log.md).
"""


def before_torch(spins: str = TRAINING_SPINS) -> None:
    """Set what torch reads once it is imported; what the user has set stays."""
    os.environ.setdefault("GOMP_SPINCOUNT", spins)
    let_gpu_memory_grow()


def let_gpu_memory_grow() -> None:
    """Let torch extend a piece of GPU memory in place, so that batches of many sizes leave no gaps.

    Not on Windows, where it cannot; nor in WSL, where it fails on some cards
    (github.com/pytorch/pytorch/issues/192330).
    """
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is its older name
    in_wsl = "microsoft" in platform.release().lower()
    if sys.platform == "linux" and not in_wsl and not any(name in os.environ for name in names):
        os.environ[names[0]] = "expandable_segments:True"


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
    """Run one function as a whole command line program (train.py, chat.py, a benchmark)."""
    config = signature(command).parameters.get("config")
    if config and config.default is Parameter.empty and not sys.argv[1:]:
        with user_errors():
            example = _example(Path(sys.argv[0]).name)
            raise UserError("no config is given", f"write: {example} (--help says more)")
    script = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    script.command()(command)
    run_program(script)


def run_program(program: typer.Typer) -> None:
    """Run a program, with an exit code for what the user can fix."""
    streams.prepare()
    with user_errors():
        program()
