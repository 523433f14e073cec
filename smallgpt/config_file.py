"""Reading and writing the YAML of a run, with `key=value` arguments that override it.

OmegaConf reads it against the dataclass in config.py, so types are checked and `3e-4` is a number.
"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from smallgpt.config import Config, Where
from smallgpt.errors import UserError

C = TypeVar("C", bound=Config)


@overload
def load(path: str | Path | None, overrides: list[str] | None = None) -> Config: ...
@overload
def load(path: str | Path | None, overrides: list[str] | None, schema: type[C]) -> C: ...


def load(
    path: str | Path | None, overrides: list[str] | None = None, schema: type[Config] = Config
) -> Config:
    """Read a YAML file, apply `key=value` overrides, and check everything.

    Args:
        path: None takes the defaults.
        schema: the class of the config, which says what keys there are.

    Raises:
        UserError: the file cannot be read, is not a flat YAML mapping, has an unknown key, a value
            of the wrong type, or a value that cannot work.
    """
    values = _read_yaml(Path(path)) if path is not None else {}
    _check_keys(values, str(path), schema)
    typed = _parse_overrides(overrides or [], schema)
    return _build(
        {**values, **typed}, lambda key: "command line" if key in typed else str(path), schema
    )


def from_dict(values: dict[str, Any], where: str, schema: type[C]) -> C:
    """Check `values` (key -> value) against the schema; `where` names their source in messages."""
    _check_keys(values, where, schema)
    return _build(values, lambda key: where, schema)


def keys_of(schema: type[Config]) -> list[str]:
    """The keys that a config of this class has."""
    return [field.name for field in dataclasses.fields(schema)]


class _Quoted(str):
    """A string that YAML writes in quotes: readers disagree on what else `0.` or `1e3` is."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    _Quoted, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def to_yaml(config: Config) -> str:
    """The config as YAML that `load` reads back unchanged."""
    values = dataclasses.asdict(config)
    for key, value in values.items():
        if isinstance(value, str):
            values[key] = _Quoted(value)
        elif isinstance(value, list):
            values[key] = [_Quoted(item) for item in value]
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        if path.is_dir():
            raise UserError(f"{path} is a directory, not a YAML file")
        # Interpolations such as ${oc.env:HOME} are resolved later, by the schema.
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        known = ", ".join(sorted(str(p) for p in Path("config").glob("*.yaml")))
        raise UserError(
            f"config file {path} not found", f"shipped configs: {known}" if known else ""
        ) from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            f"{path} is not valid YAML: {_one_line(error)}", "write one `key: value` a line"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}", "save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is not a mapping", "write one `key: value` a line")
    return {str(key): value for key, value in loaded.items()}


def _parse_overrides(overrides: list[str], schema: type[Config]) -> dict[str, Any]:
    """Values stay the strings that were typed; the schema turns them into numbers and so on."""
    values: dict[str, Any] = {}
    for argument in overrides:
        key, equals, text = argument.partition("=")
        if not equals:
            raise UserError(
                f"command line: {argument!r} is not of the form key=value",
                "write for example lr=3e-4, without spaces around the =",
            )
        _check_keys({key: text}, "command line", schema)
        values[key] = text
        if key == "data_path" and text.startswith("["):
            try:
                values[key] = yaml.load(text, Loader=yaml.BaseLoader)  # every element a string
            except yaml.YAMLError:
                raise UserError(
                    f"command line: {argument!r} is not a list", "write data_path=[a.txt,b.txt]"
                ) from None
    return values


def _check_keys(values: dict[str, Any], where: str, schema: type[Config]) -> None:
    known = keys_of(schema)
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            advice = (
                f"did you mean `{nearest[0]}`?" if nearest else f"known keys: {', '.join(known)}"
            )
            raise UserError(f"{where}: unknown key `{key}`", advice)


def _build(values: dict[str, Any], where: Where, schema: type[C]) -> C:
    """Merge known keys into the schema, which checks and converts types, and check the values."""
    merged = OmegaConf.structured(schema)
    OmegaConf.set_readonly(merged, False)
    may_be_empty = {f.name for f in dataclasses.fields(schema) if "None" in str(f.type)}
    for key, value in values.items():
        if value == "???":  # OmegaConf's sign for a value still to come; it would be passed over
            raise UserError(f"{where(key)}: {key}: ??? must be replaced by a value")
        empty = key in may_be_empty and value in ("", "None", "none", "null")
        try:
            OmegaConf.update(merged, key, None if empty else value)
        except (OmegaConfBaseException, UnicodeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{where(key)}: {key}: {value!r} does not fit: {reason}") from None
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # an interpolation ${...} that leads nowhere
        key = error.full_key or "config"
        raise UserError(f"{where(key)}: {key}: {_one_line(error)}") from None
    assert isinstance(config, schema)
    config = _with_plain_paths(config, where)
    config.check(where)
    return config


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _with_plain_paths(config: C, where: Where) -> C:
    """`data_path` is a string or a list of strings."""
    paths = config.data_path
    many = isinstance(paths, (list, tuple))
    if not all(isinstance(p, str) and p for p in (paths if many else [paths])) or not paths:
        raise UserError(
            f"{where('data_path')}: data_path: {paths!r} is not a file name or a list of them",
            "write data_path: a.txt or data_path: [a.txt, b.txt]; put numbers in quotes",
        )
    return dataclasses.replace(config, data_path=list(paths) if many else paths)
