"""`smallgpt config`: all keys, and the documents made from them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from itertools import groupby
from typing import Annotated, NamedTuple

import typer

from smallgpt.config import (
    CHAT,
    CLASSIFY,
    TRAIN,
    Config,
    SentimentConfig,
    allowed_values,
    docstrings,
    json_schema,
)

INTRODUCTION = """# All keys

A config is a YAML file with one `key: value` a line; `key=value` on the command line wins over it.
What neither names has its default. A command says in one line which of the keys it does not use.

Editors that know JSON Schema complete and check the keys of a file that begins with

    # yaml-language-server: $schema=schema.json

where `schema.json` is the path of `config/schema.json` from there.

This page is made by `make docs` from `smallgpt/config.py`.
"""


def configuration(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/configuration.md instead.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print config/schema.json instead.")
    ] = False,
) -> None:
    """Print every key of a config: default, allowed values and meaning."""
    if schema:
        typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join(_as_markdown() if markdown else _as_text()))


class _Key(NamedTuple):
    group: str
    name: str
    default: str
    values: str
    meaning: str
    used_by: str


def _keys() -> list[_Key]:
    """All keys by group; `base_model` is there for each kind of training."""
    found = dict[tuple[str, str], _Key]()
    for schema in (Config, SentimentConfig):
        meanings = docstrings(schema)
        for name, field in schema.__dataclass_fields__.items():
            group, commands = field.metadata["group"], field.metadata["used_by"]
            default = "" if field.default is None else str(field.default)
            used_by = ", ".join(c for c in (TRAIN, CHAT, CLASSIFY) if c in commands)
            values = allowed_values(schema, name)
            key = _Key(group, name, default, values, meanings[name], used_by)
            found.setdefault((group, name), key)
    groups = [group for group, _ in found]
    return sorted(found.values(), key=lambda key: groups.index(key.group))


def _as_text() -> Iterator[str]:
    for group, keys in groupby(_keys(), lambda key: key.group):
        yield f"{group}:"
        for key in keys:
            yield f"  {key.name}: {key.default}".ljust(40) + f"  # {key.values}"
            yield textwrap.fill(key.meaning, 96, initial_indent=" " * 6, subsequent_indent=" " * 6)
        yield ""


def _as_markdown() -> Iterator[str]:
    yield INTRODUCTION
    for group, keys in groupby(_keys(), lambda key: key.group):
        yield f"## {group.capitalize()}\n"
        yield "| key | default | value | meaning | used by |\n|---|---|---|---|---|"
        for _, name, default, values, meaning, used_by in keys:
            shown = f"`{default}`" if default else "empty"
            yield f"| `{name}` | {shown} | {values} | {meaning.replace('<', '&lt;')} | {used_by} |"
        yield ""
