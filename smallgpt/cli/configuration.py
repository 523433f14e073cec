"""`smallgpt config`: all keys, and the documents made from them."""

import dataclasses
import json
import textwrap
from typing import Annotated, Any

import typer

from smallgpt.config import (
    CHAT,
    CLASSIFY,
    TRAIN,
    TRAIN_FROM_BASE,
    TRAIN_ON_PREFERENCES,
    Config,
    SentimentConfig,
)
from smallgpt.config_file import allowed_values, json_schema, properties

INTRODUCTION = """# All keys

A config is a YAML file with one `key: value` a line; `key=value` on the command line wins over it.
What neither names has its default. A command says in one line which of the keys it does not use.

Editors that know JSON Schema complete and check the keys of a file that begins with

    # yaml-language-server: $schema=schema.json

where `schema.json` is the path of `config/schema.json` from there.

This page is made by `make docs` from `smallgpt/config.py`.
"""
TABLE = "| key | default | value | meaning | used by |\n|---|---|---|---|---|"


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
        return
    if markdown:
        typer.echo(INTRODUCTION)
    groups: dict[str, dict[str, str]] = {}  # `base_model` is there for each kind of training
    for cls in (Config, SentimentConfig):
        known = properties(cls)
        for field in dataclasses.fields(cls):
            shown = (_as_markdown if markdown else _as_text)(field, known[field.name])
            groups.setdefault(field.metadata["group"], {}).setdefault(field.name, shown)
    for group, keys in groups.items():
        typer.echo(f"## {group.capitalize()}\n\n{TABLE}" if markdown else f"{group}:")
        typer.echo("\n".join(keys.values()) + "\n")


def _as_text(field: dataclasses.Field[Any], known: dict[str, Any]) -> str:
    default = "" if field.default is None else field.default
    meaning = textwrap.indent(textwrap.fill(known["description"], 90), " " * 6)
    return f"  {field.name}: {default}".ljust(40) + f"  # {allowed_values(known)}\n{meaning}"


def _as_markdown(field: dataclasses.Field[Any], known: dict[str, Any]) -> str:
    default = "empty" if field.default is None else f"`{field.default}`"
    meaning = known["description"].replace("<", "&lt;")
    users = field.metadata["used_by"]
    kinds = (TRAIN, TRAIN_FROM_BASE, TRAIN_ON_PREFERENCES)
    train = next((kind for kind in kinds if kind in users), TRAIN)
    used_by = ", ".join(c for c in (train, CHAT, CLASSIFY) if c in users)
    return f"| `{field.name}` | {default} | {allowed_values(known)} | {meaning} | {used_by} |"
