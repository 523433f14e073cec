"""`smallgpt serve`: an API and a page for a trained chatbot and a trained classifier."""

import ipaddress
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from smallgpt.cli.arguments import CHAT_SPINS, Device, before_torch
from smallgpt.config import Dtype
from smallgpt.utils.errors import UserError


def serve(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="A checkpoint directory, or the folder of a run; its name is the model's id. "
            "Without it, box, the model that comes with Small GPT.",
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="A classifier to serve as well.", metavar="PATH")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")
    ] = 8000,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the page.")] = False,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="SMALLGPT_API_KEY",
            show_envvar=False,
            help="What clients must send as bearer token. Others on this machine can see what you "
            "type here, but not the environment variable SMALLGPT_API_KEY, which does the same.",
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name by which browsers may call this server, besides localhost and IP "
            "addresses; may be given several times."
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="A site whose pages may use the API, such as https://chat.example.org; may be "
            "given several times."
        ),
    ] = None,
    slots: Annotated[int, typer.Option(min=1, max=256, help="Replies generated at once.")] = 8,
    queue: Annotated[
        int, typer.Option(min=0, help="Requests that may wait; beyond them the answer is 429.")
    ] = 64,
    time_limit: Annotated[
        float, typer.Option(min=0.1, help="Seconds a request may take, waiting included.")
    ] = 300.0,
    grace: Annotated[
        float,
        typer.Option(min=0, max=86_400, help="Seconds to finish replies in, once told to end."),
    ] = 30.0,
    feedback: Annotated[
        Path | None,
        typer.Option(
            help="Append people's verdicts on replies, and corrections, to this file.",
            metavar="FILE",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Precision of the chat model's weights.")] = "auto",
) -> None:
    """Serve a model: a page to chat on, and an API like OpenAI's (docs/serving.md).

    Example: smallgpt serve checkpoints/demo

    Ctrl-C or SIGTERM finishes the replies that have begun, and ends.
    """
    _check(api_key, allowed_host or (), cors_origin or ())
    if not (api_key or _is_loopback(host)):
        advice = "set SMALLGPT_API_KEY (or --api-key), or leave out --host"
        raise UserError(f"--host {host} lets others in, and there is no key", advice)
    before_torch(CHAT_SPINS)
    from smallgpt.chat import chatbot
    from smallgpt.checkpoints.open import box, find_checkpoint, is_classifier
    from smallgpt.sentiment import predictor
    from smallgpt.server.classifier import ClassifierThread
    from smallgpt.server.feedback import FeedbackFile
    from smallgpt.server.run import Address
    from smallgpt.server.run import serve as run
    from smallgpt.server.service import Limits, Service

    path = path or box()
    if classifier and _name(classifier) == _name(path):
        advice = "rename the folder of one"
        raise UserError(f"{path} and {classifier} would both be called {_name(path)}", advice)
    file = FeedbackFile(feedback) if feedback else None
    judge = None
    if classifier:
        folder = find_checkpoint(classifier)
        judge = ClassifierThread(_name(classifier), folder, predictor.load(folder, device), queue)
    found = find_checkpoint(path)
    if is_classifier(found):
        advice = f"name a model to chat with, and add --classifier {path}"
        raise UserError(f"{path} is a classifier", advice)
    # The weights are read while the server already says that it is loading.
    bot = chatbot.load(found, device=device, dtype=dtype, wait=False)
    limits = Limits(slots, queue, time_limit)
    service = Service(_name(path), bot, limits, judge, file, api_key)
    address = Address(host, port, allowed_host or (), cors_origin or ())
    run(service, address, grace, browser=not no_browser and sys.stdout.isatty())


def _check(key: str | None, hosts: Sequence[str], origins: Sequence[str]) -> None:
    """Refuse what no request could ever match."""
    if key is not None and not re.fullmatch("[!-~]([ -~]*[!-~])?", key):
        advice = "take letters and digits, such as those that `openssl rand -hex 24` prints"
        raise UserError("--api-key is empty, or has characters that no header can have", advice)
    for host in hosts:
        if not host or set(host) & set("/:*@ "):
            advice = "give the name alone, such as chat.example.org"
            raise UserError(f"--allowed-host {host} is no name", advice)
    for origin in origins:
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/*@\sA-Z]+", origin):
            advice = "write it as browsers do, such as https://chat.example.org"
            raise UserError(f"--cors-origin {origin} is no origin", advice)


def _name(path: Path) -> str:
    """The model's id: the folder's name; of a checkpoint in a run, that of the run's."""
    from smallgpt.checkpoints.run_folder import is_name

    path = path.resolve()
    return (path.parent if is_name(path.name) else path).name or "model"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
