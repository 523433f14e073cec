"""YAML and `key=value` -> a checked config.

Pydantic converts and checks the values by the fields of `config.py`, and makes a JSON Schema of
them.
"""

import dataclasses
import difflib
import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml
from typing_extensions import TypeVar

from smallgpt.config import (
    ABLATION,
    CHAT,
    CLASSIFY,
    TRAIN,
    TRAIN_FROM_BASE,
    TRAIN_ON_PREFERENCES,
    Config,
    ModelConfig,
    SamplingConfig,
    SentimentConfig,
    check_shares,
)
from smallgpt.utils.commands import CONFIGS, config_names, script
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.paths import exists, not_found, without_tilde

_AS_YAML = {"data_path": "[]", "mix_path": "[]", "lora_targets": "[]", "label_map": "{}"}
"""Keys whose value on the command line is YAML where it stands in these."""
_CHINESE_COLON = "`：` is the Chinese colon: write `: `, with a space"


def typed_keys(overrides: Iterable[str]) -> frozenset[str]:
    """The keys that `key=value` arguments change."""
    return frozenset(argument.partition("=")[0] for argument in overrides)


_REPLACED_BY = {
    ("max_steps", "max_epoch", "min_steps", "max_minutes"): {"max_steps", "max_epoch"},
    ("warmup",): {"warmup_steps"},
    ("decay",): {"decay_steps"},
}
"""Keys of a file that do not count where one of these is typed, which says the same."""

C = TypeVar("C", bound=Config, default=Config)
S = TypeVar("S", bound=ModelConfig | SamplingConfig)


def load_config(
    path: str | Path | None,
    overrides: Iterable[str] | None = None,
    schema: type[C] = Config,  # type: ignore[assignment]
    command: str = "",
) -> C:
    """Read a YAML file (None: the defaults), apply `key=value` overrides, and check everything.

    `path` may be the name of a config that comes with Small GPT. `schema` says what keys there are.
    A file for other commands than `command` is refused, and a note names the keys it does not use.
    """
    typed = _parse_overrides(overrides or [])
    in_file = _read_yaml(find_config(Path(path))) if path is not None else {}
    if command:
        _refuse_other_kind(str(path), in_file, schema, command)
    for keys, alternatives in _REPLACED_BY.items():
        if alternatives & typed.keys():
            in_file = {key: value for key, value in in_file.items() if key not in keys}
    merged = in_file | typed
    config = config_from_dict(merged, str(path), schema, typed)
    if command:  # for those that are not about a whole run a file holds more than they use
        _note_unused(command, merged if command in (TRAIN, CLASSIFY) else typed, config)
    return config


def find_config(named: Path) -> Path:
    """The YAML file that a user means: one of `CONFIGS` where a bare name is no file here."""
    name = str(named).removesuffix(".yaml")
    return CONFIGS / f"{name}.yaml" if name in config_names() and not named.is_file() else named


def _refuse_other_kind(
    file: str, given: Mapping[str, Any], schema: type[Config], asked: str
) -> None:
    """Refuse a file whose keys are those of a classifier and not of dialogues, or the reverse."""
    fields, both = SentimentConfig.__dataclass_fields__, Config.__dataclass_fields__
    users = {key: fields[key].metadata["used_by"] for key in given if key in fields}
    for_reviews = [key for key in users if key not in both]
    for_dialogues = [key for key, used in users.items() if TRAIN in used and CLASSIFY not in used]
    own, other, command = for_dialogues, for_reviews, CLASSIFY
    if schema is SentimentConfig:
        only_chat = all(CHAT in used for used in users.values())
        own, other, command = for_reviews, for_dialogues, CHAT if only_chat else TRAIN
    if own or not other:
        return
    keys = ", ".join(other[:4]) + (" …" if len(other) > 4 else "")
    right = f"python {script(command)} {shlex.quote(file)}"
    if (asked, command) == (CHAT, CLASSIFY):
        root = shlex.quote(str(given.get("checkpoint_root", Config.checkpoint_root)))
        right = f'python -m smallgpt sentiment predict {root} "…", as a classifier does not chat'
    raise UserError(f"{file} is a config for {command}: it sets {keys}", f"type: {right}")


def config_from_dict(
    values: Mapping[str, Any], where: str, schema: type[S], typed: Collection[str] = ()
) -> S:
    """The config of values as they stand in a file or were typed, checked; or a part of one.

    `where` names the source of all keys but those that were `typed`, for messages.
    """
    # Imported here: where a config is only passed on, as in the model, nothing is validated.
    from pydantic import ValidationError

    def place(key: str) -> str:
        return "command line" if key in typed else where

    values = {key: _given(key, value, place(key), schema) for key, value in values.items()}
    try:
        config: S = _adapter(schema).validate_python(values)  # type: ignore[arg-type]
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        wanted = allowed_values(properties(schema)[key])
        raise UserError(f"{place(key)}: {key} is {values[key]!r}; it must be {wanted}") from None
    if not isinstance(config, Config):
        return config
    for wrong, key, reason in config.conflicts():
        if wrong:
            raise UserError(f"{place(key)}: {key} is {getattr(config, key)!r}; it {reason}")
    check_shares(config, processes=1, where=f"{place('train_batch')}: ")
    return config


def _given(key: str, value: Any, where: str, schema: type[Any]) -> Any:
    """The value of a key that must exist; None where it is optional and left empty."""
    known = schema.__dataclass_fields__
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        advice = f"did you mean `{nearest[0]}`?" if nearest else f"can be set: {', '.join(known)}"
        if "：" in key:
            advice = _CHINESE_COLON
        elif key in SentimentConfig.__dataclass_fields__ and schema is Config:
            advice = f"leave it out: only {CLASSIFY} uses it"
        raise UserError(f"{where}: unknown key `{key}`", advice)
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and (text == "???" or "${" in text):
            raise UserError(f"{where}: {key}: {text} must be replaced by a value")
    if isinstance(value, dict) and None in (*value, *value.values()):
        advice = "write {label: class, …} with a space behind each colon: {1: 差评, 5: 好评}"
        raise UserError(f"{where}: {key}: a label or its class is missing", advice)
    optional = type(None) in get_args(known[key].type)
    if optional and value in ("", "None", "none", "null"):
        return None
    if known[key].metadata.get("path"):
        if isinstance(value, list):
            return [without_tilde(path) if isinstance(path, str) else path for path in value]
        return without_tilde(value) if isinstance(value, str) else value
    return value


def config_to_yaml(config: Config) -> str:
    """The config as YAML that `load_config` reads back unchanged."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def _note_unused(command: str, given: Iterable[str], config: Config) -> None:
    if command == TRAIN and config.base_model:
        command = TRAIN_ON_PREFERENCES if config.preference_loss else TRAIN_FROM_BASE
    given = set(given) - {"ddp", "local_rank", "world_size"}  # old files hold these, used or not
    fields = [field for field in dataclasses.fields(config) if field.name in given]
    unused = [field.name for field in fields if command not in field.metadata["used_by"]]
    if command in (CLASSIFY, ABLATION) and not str(config.base_model).endswith(".pth"):
        unused += sorted(given & {"data_path"})  # only the text of a .pth
    if unused and os.environ.get("RANK", "0") == "0":  # torchrun starts several processes
        note(f"{command} does not use {', '.join(unused)}")


class _Loader(yaml.SafeLoader):
    """Leaves values as they are written, for the schema to convert; no key may stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"duplicate key {name}")
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith(":null")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parse_yaml(text: str | bytes, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, yaml.reader.ReaderError) and error.encoding != "unicode":
            raise UserError(
                f"{where} is not text in UTF-8", "give a YAML file that is saved as UTF-8"
            ) from None
        raise UserError(
            f"{where} is not valid YAML: {' '.join(str(error).split())}",
            "write one `key: value` a line, a list as [a, b], quotes around a name that has [ in "
            "it, and save the file as UTF-8",
        ) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        known = f"give a file, or the name of a shipped config: {', '.join(config_names())}"
        if isinstance(error, FileNotFoundError):
            raise not_found(path, advice=known) from None
        if isinstance(error, IsADirectoryError):
            known = (
                f"a model is named with resume_from={path} or base_model={path}, behind the config"
            )
        raise UserError(f"{path} cannot be read: {error.strerror}", known) from None
    try:
        loaded = _parse_yaml(data, str(path))
        if not isinstance(loaded, dict) or not loaded:
            problem = f"{path} is not a config: it has no `key: value` lines"
            raise UserError(problem, "write one `key: value` a line")
    except UserError as error:
        text = data.decode("utf-8-sig", "replace")
        if wide := re.search(r"^ *[a-z_]+ *：.*", text, re.MULTILINE | re.ASCII):
            problem = f"{path}: there is no key in `{wide[0].strip()[:40]}`"
            raise UserError(problem, _CHINESE_COLON) from None
        raise error
    return {str(key): value for key, value in loaded.items()}


def _parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for argument in overrides:
        key, equals, text = argument.partition("=")
        if not equals:
            raise UserError(
                f"command line: {argument!r} is not of the form key=value",
                "write for example lr=3e-4, without spaces around the =",
            )
        as_yaml = text[:1] + text[-1:] == _AS_YAML.get(key) and not exists(Path(text))
        values[key] = _parse_yaml(text, f"command line: {argument!r}") if as_yaml else text
    return values


# The same fields as a JSON Schema, for documents, editors and messages.


def properties(schema: type[Any]) -> dict[str, dict[str, Any]]:
    """The JSON Schema of each key of a config of this class, with its meaning."""
    found: dict[str, dict[str, Any]] = {}
    for cls in reversed(schema.__mro__[:-1]):  # pydantic reads the docstrings of own fields only
        for key, known in _adapter(cls, True).json_schema()["properties"].items():
            found[key] = found.get(key, {}) | known
    for known in found.values():
        known["description"] = " ".join(known["description"].split())
        del known["title"]
    return found


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a YAML file of any command, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        # `base_model` is in both; the one of `Config` is the more general.
        "properties": properties(SentimentConfig) | properties(Config),
        "additionalProperties": False,
    }


def allowed_values(known: dict[str, Any]) -> str:
    """What a value must be, in words; `known` is the JSON Schema of its key."""
    if "anyOf" in known:
        return ", or ".join(map(allowed_values, known["anyOf"]))
    if "enum" in known:
        return f"one of {', '.join(known['enum'])}"
    nouns = {
        "boolean": "True or False",
        "integer": "a whole number",
        "number": "a number",
        "string": "text",
        "array": "a list of them",
        "object": "a mapping {label: text, …}",
        "null": "empty",
    }
    words = {
        "exclusiveMinimum": "above",
        "minimum": "of at least",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    limits = " and ".join(f"{words[name]} {known[name]}" for name in words if name in known)
    return f"{nouns[known['type']]} {limits}".rstrip()


@cache
def _adapter(schema: Any, docstrings: bool = False) -> Any:
    from pydantic import TypeAdapter

    # Docstrings are read from the source: no command that only loads a config waits for that.
    schema.__pydantic_config__ = {"use_attribute_docstrings": docstrings, "allow_inf_nan": False}
    return TypeAdapter(schema)
