"""The configuration: types, overrides, messages, and every YAML file we ship."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smallgpt.config import ABLATION, CHAT, CLASSIFY, TEXT, TRAIN, Config, SentimentConfig
from smallgpt.config_file import config_from_dict, config_to_yaml, load_config, typed_keys
from smallgpt.utils.errors import UserError
from tests.helpers.commands import refusal

NOT_TEXT = ("???", "None", "none", "null")
KEYS = sorted(Config.__dataclass_fields__)
CONFIGS = Path(__file__).parent.parent / "config"
SHIPPED = sorted(CONFIGS.glob("*.yaml"))

# Every key that users' files may already hold.
EXISTING_KEYS = """{
    data_path: text.txt, train_percent: 0.7, block_size: 128, vocab_size: 7587, n_layer: 2,
    n_head: 2, n_embd: 64, dropout: 0.1, bias: False, compile: True, max_epoch: 3,
    tensorboard_path: board, device: cpu, eval_freq: 10, eval_steps: 20, train_batch: 4,
    test_batch: 5, grad_clip: 2.0, ddp: True, local_rank: 1, world_size: 2, lr: 0.002,
    warmup_steps: 6, decay_steps: 70, min_lr: 0.001, weight_decay: 0.2, beta1: 0.8, beta2: 0.9,
    checkpoint_root: kept, save_freq: 30, resume_from: kept/cpt3, seed: 4
}"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problem_of(path: Path | None, *overrides: str) -> str:
    """The message `load` stops with."""
    with pytest.raises(UserError) as stopped:
        load_config(path, list(overrides))
    return str(stopped.value)


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads((CONFIGS / "schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


# what we ship


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_config_is_valid_fits_the_schema_and_holds_no_unused_key(
    path: Path, validator: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    text = path.read_text("utf-8")
    classifies = "sentimental_data_path:" in text
    schema, command = (SentimentConfig, CLASSIFY) if classifies else (Config, TRAIN)
    config = load_config(path, [], schema, command)
    assert config.last_step(steps_per_epoch=1000.0) >= 1
    assert config.checkpoint_root.startswith("checkpoints/")
    assert capsys.readouterr().err == ""
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    validator.validate(yaml.safe_load(text))


def test_schema_holds_every_key_with_its_meaning_and_refuses_wrong_ones(validator: Any) -> None:
    properties = validator.schema["properties"]
    assert set(properties) == set(SentimentConfig.__dataclass_fields__)
    assert all(known["description"] for known in properties.values())
    validator.validate({"data_path": ["a.txt", "b.txt"], "max_steps": None, "bias": True})
    assert not validator.is_valid({"n_layers": 3})


PUBLISHED_BOTH = """
    block_size: 256, vocab_size: 7587, bias: True, train_percent: 0.8, seed: 114514, device: cuda,
    test_batch: 8, eval_freq: 500, eval_steps: 1000, save_freq: 4000, max_steps: 100000,
    grad_clip: 1.0, decay_steps: 100000, weight_decay: 0.1, beta1: 0.9, beta2: 0.95
"""
PUBLISHED = {
    "train90M.yaml": """
        n_layer: 12, n_head: 12, n_embd: 768, dropout: 0.2, train_batch: 80,
        lr: 0.0003, warmup_steps: 2000, min_lr: 0.000006
    """,
    "train300M.yaml": """
        n_layer: 26, n_head: 15, n_embd: 960, dropout: 0.05, train_batch: 24,
        lr: 0.0002, warmup_steps: 1000, min_lr: 0.00001
    """,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_keep_their_published_values(name: str) -> None:
    config = dataclasses.asdict(load_config(CONFIGS / name))
    expected = yaml.safe_load(f"{{{PUBLISHED[name]}, {PUBLISHED_BOTH}}}")
    assert {key: config[key] for key in expected} == expected
    chat = load_config(CONFIGS / name.replace("train", "chat"))
    assert chat.checkpoint_root == config["checkpoint_root"]


def test_keys_of_existing_files_are_all_accepted(tmp_path: Path) -> None:
    expected = yaml.safe_load(EXISTING_KEYS)
    config = dataclasses.asdict(load_config(write(tmp_path, EXISTING_KEYS)))
    assert {key: config[key] for key in expected} == expected


# types and limits


OPTIONAL = ("max_steps", "max_epoch", "resume_from", "tensorboard_path", "base_model")
TRUE, FALSE = ("yes", "on", "1", "True", "y"), ("no", "Off", "false", "0")


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        *(("lr", text, 0.0003) for text in ("3e-4", "3.0e-4", "0.0003", "3E-4", ".0003")),
        *(("bias", text, text in TRUE) for text in TRUE + FALSE),
        # A name may look like a number or a date.
        *(("checkpoint_root", text, text) for text in ("2026", "2026-11-23", "1.50", "yes")),
        *((key, text, None) for key in OPTIONAL for text in ("", "None", "none", "null")),
    ],
)
def test_a_value_is_the_same_in_a_file_and_typed(
    tmp_path: Path, key: str, written: str, value: Any
) -> None:
    in_file = load_config(write(tmp_path, f"{key}: {written}"))
    typed = load_config(None, [f"{key}={written}"])
    assert repr(getattr(in_file, key)) == repr(getattr(typed, key)) == repr(value)


# What the message must say: lines of YAML, the key to blame first.
IMPOSSIBLE = {
    "must be a number": [
        "lr: fast",
        "lr:",
        "lr: {a: 1}",
        "lr: nan",
        "lr: inf",
        "lr: true",
        "train_percent: 80%",
        "weight_decay: inf",
    ],
    "above 0": ["lr: -3e-4", "lr: 0", "top_p: 0", "train_percent: 0"],
    "be replaced by": [
        "lr: ???",
        "lr: ${nowhere}",
        "device: ${oc.env:HOME}/run",
        "data_path: ['${a}']",
    ],
    "a whole number": ["n_layer: 2.5", "n_layer: true", "n_layer: [1, 2]", "max_steps: 1e5"],
    "at least 1": [
        "n_layer: -1",
        "n_head: 0",
        "max_new_tokens: 0",
        "train_batch: 0",
        "eval_steps: 0",
        "save_freq: 0",
    ],
    "not divisible by n_head (7)": ["n_embd: 100\nn_head: 7"],
    "at least 8": ["block_size: 1"],
    "at least 0": [
        "vocab_size: -1",
        "dropout: -0.1",
        "temperature: -1",
        "top_k: -1",
        "seed: -1",
        "grad_clip: -1",
    ],
    "True or False": ["bias: maybe"],
    "one of gelu, gelu_new": ["activation: relu"],
    "below 1": ["dropout: 1", "train_percent: 1", "train_percent: 80", "beta1: 1"],
    "at most 4": ["ngram_order: 5"],
    "at least 0.001": ["repetition_penalty: 1e-320"],
    "text, or a list of them": ["data_path:", "data_path: [a.txt, [b.txt]]", "data_path: {a: 1}"],
    "must name a file": ["data_path: []", "data_path: ''", "data_path: [a.txt, '']"],
    "at most 1": ["unk_rate: 1.5"],
    "one of auto, float32": ["dtype: half"],
    "at most 9223372036854775807": ["seed: 100000000000000000000"],
    "at least 1, or empty": ["max_steps: 0", "max_epoch: 0"],
    "not divisible by accumulate (2)": ["train_batch: 5\naccumulate: 2"],
    "must not exceed lr": ["min_lr: 1"],
    "must not exceed decay_steps (10)": ["warmup_steps: 20\ndecay_steps: 10"],
    "must be text": ["checkpoint_root:"],
    "must name a folder": ["checkpoint_root: ''"],
}


@pytest.mark.parametrize(
    ("reason", "lines"), [(reason, lines) for reason in IMPOSSIBLE for lines in IMPOSSIBLE[reason]]
)
def test_impossible_value_stops_with_its_reason(
    tmp_path: Path, validator: Any, reason: str, lines: str
) -> None:
    path = write(tmp_path, lines)
    message = problem_of(path)
    assert message.startswith(f"{path}: {lines.partition(':')[0]}")
    assert reason in message
    beyond_schema = any(word in reason for word in ("name", "divisible", "exceed", "replaced"))
    assert validator.is_valid(yaml.safe_load(lines)) <= beyond_schema


def test_values_of_python_are_checked_too() -> None:
    for values in ({"n_layer": 0}, {"n_head": 7}, {"base_model": None}):
        with pytest.raises(UserError, match=r"^here: (n_layer|n_embd|base_model) is .*; it "):
            config_from_dict(values, "here", SentimentConfig)


# keys


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("learning_rate_min", "can be set: temperature, top_k, "),
        ("n_layers", "did you mean `n_layer`?"),
        ("n_haed", "did you mean `n_head`?"),
        ("lr.x", "did you mean `lr`?"),
    ],
)
def test_misspelt_key_suggests_the_right_one(tmp_path: Path, typed: str, advice: str) -> None:
    for message in (problem_of(None, f"{typed}=3"), problem_of(write(tmp_path, f"{typed}: 3"))):
        assert f"unknown key `{typed}`\n  -> {advice}" in message


@given(st.sampled_from(KEYS), st.data())
def test_a_key_with_one_letter_missing_suggests_a_key_that_fits(
    key: str, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(key) - 1))
    typed = key[:at] + key[at + 1 :]
    if len(typed) < 3 or typed in KEYS:
        return
    with pytest.raises(UserError, match="did you mean") as stopped:
        config_from_dict({typed: 1}, "here", Config)
    suggestion = stopped.value.advice.split("`")[1]
    assert typed in {suggestion[:i] + suggestion[i + 1 :] for i in range(len(suggestion))}


CLASSIFIERS = ("sentimental", "sentiment_full.", "sentiment_full_domains.")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_for_another_command_is_refused_by_name(path: Path) -> None:
    classifies, chats = path.name.startswith(CLASSIFIERS), path.name.startswith("chat")
    right = CLASSIFY if classifies else CHAT if chats else TRAIN
    for command, schema in ((TRAIN, Config), (CHAT, Config), (CLASSIFY, SentimentConfig)):
        if (command == CLASSIFY) == classifies:
            load_config(path, [], schema, command)
            continue
        said = refusal(lambda: load_config(path, ["lr=1"], schema, command))  # noqa: B023
        assert f"{path} is a config for {right}: it sets " in said
        judges = classifies and command == CHAT
        wanted = "smallgpt sentiment predict checkpoints/" if judges else f"python {right} {path}"
        assert f"\n  -> type: python -m {wanted}" in said if judges else f"type: {wanted}" in said


def test_the_text_of_dialogues_is_not_that_of_reviews(capsys: pytest.CaptureFixture[str]) -> None:
    for base, said in (("checkpoints/demo", "does not use data_path\n"), ("x.pth", "")):
        typed = ["data_path=my.csv", f"base_model={base}"]
        load_config(CONFIGS / "sentimental_demo.yaml", typed, SentimentConfig, CLASSIFY)
        assert capsys.readouterr().err.endswith(said)


def test_a_key_of_classifiers_among_those_of_dialogues(tmp_path: Path) -> None:
    path = write(tmp_path, "n_layer: 2\nfrozen: True")
    said = refusal(lambda: load_config(path, [], Config, TRAIN))
    assert "unknown key `frozen`\n  -> leave it out: only sentimentalTrain.py uses it" in said
    load_config(path, [], SentimentConfig, CLASSIFY)


@pytest.mark.parametrize(
    ("command", "values", "unused"),
    [
        (TRAIN, {"lr": 1, "ngram_order": 2, "temperature": 1, "ddp": 0, "world_size": 3}, []),
        (TRAIN, {"n_layer": 3, "base_model": "x", "dropout": 0.1, "lr": 1}, ["n_layer"]),
        (CLASSIFY, {"use_mask": 1, "n_embd": 24, "top_k": 3, "lr": 1}, ["top_k", "n_embd"]),
        (CHAT, {"lr": 1, "warmup_steps": 2, "seed": 1, "block_size": 8}, ["block_size"]),
        (ABLATION, {"use_mask": True, "frozen": True, "seed": 1}, ["frozen"]),
        (TEXT, {"text_column": "x", "split_seed": 1, "lr": 1}, ["lr"]),
    ],
)
def test_keys_that_a_command_does_not_use_are_named_in_one_line(
    command: str,
    values: dict[str, Any],
    unused: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schema = SentimentConfig if command in (CLASSIFY, ABLATION, TEXT) else Config
    typed = [f"{key}={value}" for key, value in values.items()]
    assert typed_keys(typed) == set(values)
    half = len(typed) // 2  # in the file, of which chat.py and others use a part; the rest typed
    path = write(tmp_path, "\n".join(typed[:half]).replace("=", ": "))
    load_config(path, typed[half:], schema, command)
    said = capsys.readouterr().err
    assert said.count("\n") == bool(unused)
    named = said.rpartition(" does not use ")[2].strip()
    assert [name for name in named.split(", ") if name] == unused
    monkeypatch.setenv("RANK", "1")
    load_config(path, typed[half:], schema, command)
    assert capsys.readouterr().err == ""


# files that are no configuration


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [1", "not valid YAML"),
        ("\tlr: 3", "not valid YAML"),
        ("lr: 1\nlr: 2", "duplicate key lr"),
        ("lr: !!python/object/apply:os.system [echo]", "not valid YAML"),
        ("? [a]\n: 3", "not valid YAML"),
        (b"\x00\x00", "not valid YAML"),
        (b"\x89PNG\r\n\x1a\n\x00\xff" * 20, "not text in UTF-8"),
        ("学习率: 1".encode("gb18030"), "not text in UTF-8"),
        ("seed: !!int one", "not valid YAML"),
        ("- lr\n- 3", "has no `key: value` lines"),
        ("[" * 700, "not valid YAML"),
        ("只是一句话", "has no `key: value` lines"),
        ("42", "has no `key: value` lines"),
        *((empty, "has no `key: value` lines") for empty in ("", "# a\n", "\ufeff", "---\n", "{}")),
        *(
            (wide, "`：` is the Chinese colon: write `: `")
            for wide in (
                "data_path：my.txt",
                "seed: 1\nlr：0.1",
                "\ufefflr ： 1",
                "lr：1\nseed: 2",
                "{lr：1}",
            )
        ),
    ],
)
def test_unusable_file_stops_with_its_name(
    tmp_path: Path, content: str | bytes, words: str
) -> None:
    path = write(tmp_path, content)
    message = problem_of(path)
    assert str(path) in message
    assert words in message
    assert "\n" not in message.replace("\n  -> ", "")


def test_directory_and_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    missing = problem_of(tmp_path / "missing.yaml")
    assert "not found" in missing and "a shipped config: chat300M, chat90M, demo, " in missing
    assert "cannot be read: Is a directory" in problem_of(tmp_path)
    assert "cannot be read" in problem_of(tmp_path / ("long" * 1000))


@pytest.mark.parametrize(
    ("content", "changed"),
    [
        *((text, {"lr": 1e-3}) for text in ("\ufefflr: 1e-3\n", "lr: 1e-3\r\n# of Windows\r\n")),
        ("lr: 1e-3".encode("utf-16"), {"lr": 1e-3}),
    ],
)
def test_files_of_other_systems(
    tmp_path: Path, content: str | bytes, changed: dict[str, Any]
) -> None:
    assert load_config(write(tmp_path, content)) == Config(**changed)


# overrides


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("[a.txt,b.txt]", ["a.txt", "b.txt"]),
        ("[a b.txt, 数据=1.txt]", ["a b.txt", "数据=1.txt"]),
        ("[2024,1e3]", ["2024", "1e3"]),
        ("[2024]聊天.txt", "[2024]聊天.txt"),
    ],
)
def test_override_takes_a_list_of_paths(typed: str, value: Any) -> None:
    assert load_config(None, [f"data_path={typed}"]).data_path == value


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="["), min_size=1))
@example("a=b.txt")
@example("我的 数据/对话.txt")
@example("2024")
@example("2024-01-01")
@example("a: b #c")
@example("C:\\x.txt")
@example("5$.txt")
def test_override_keeps_any_text(text: str) -> None:
    if text in NOT_TEXT or "${" in text or text.startswith("~"):  # the home folder
        return
    config = load_config(None, [f"data_path={text}", f"resume_from={text}"])
    assert (config.data_path, config.resume_from) == (text, text)


STARS = {"1": "差评", "5.0": "好评"}


@pytest.mark.parametrize("text", ["{1: 差评, 5.0: 好评}", '{"1": 差评, "5.0": "好评"}'])
def test_a_map_of_labels_is_the_same_in_a_file_and_typed(tmp_path: Path, text: str) -> None:
    typed = load_config(None, [f"label_map={text}"], SentimentConfig)
    file = load_config(write(tmp_path, f"label_map: {text}"), [], SentimentConfig)
    assert typed.label_map == file.label_map == STARS
    assert load_config(write(tmp_path, config_to_yaml(typed)), [], SentimentConfig) == typed
    assert load_config(None, ["label_map="], SentimentConfig).label_map is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{1:差评,5:好评}", "space behind each colon"),
        ("{1：差评，5：好评}", "space behind each colon"),
        ("{1: 差评, 5: }", "a label or its class is missing"),
        ("{1: 差评, 5: 差评}", "at least two classes"),
        ("{1: 差评, 1: 好评}", "duplicate key 1"),
        ("{1: [差评], 5: 好评}", "must be a mapping {label: text, …}"),
        ("好评", "must be a mapping {label: text, …}"),
    ],
)
def test_a_wrong_map_of_labels(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(None, [f"label_map={text}"], SentimentConfig)
    assert said in str(error.value) and str(error.value).startswith("command line: ")


def test_override_wins_over_the_file_and_the_last_one_over_the_first(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\nresume_from: latest")
    config = load_config(path, ["seed=2", "bias=False", "seed=3", "resume_from="])
    assert (config.seed, config.bias, config.resume_from) == (3, False, None)


@pytest.mark.parametrize(
    "argument",
    ["lr", "", "=3", "lr = 3", "--lr=3", "lr=", "lr=fast", "lr=.inf", "data_path=[a,{]", "seed=-1"],
)
def test_bad_override_is_blamed_on_the_command_line(tmp_path: Path, argument: str) -> None:
    path = write(tmp_path, "n_embd: 100")
    assert problem_of(path, argument).startswith("command line: ")
    assert problem_of(path, "n_head=7").startswith(f"{path}: n_embd is 100; it is not ")


# round trip

# No character that is none on a screen.
PATH = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1).filter(
    lambda text: text not in NOT_TEXT and "${" not in text and text[0] != "~"
)


@settings(max_examples=30)
@given(
    values=st.fixed_dictionaries(
        {
            "lr": st.floats(1e-9, 1e3),
            "min_lr": st.just(0.0),
            "seed": st.integers(0, 2**63 - 1),
            "bias": st.booleans(),
            "data_path": PATH | st.lists(PATH, min_size=1, max_size=3),
            "resume_from": st.none() | PATH,
            "max_steps": st.none() | st.integers(1, 10**9),
        }
    )
)
def test_written_config_is_read_back_unchanged(
    values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = dataclasses.replace(Config(), **values)
    folder = tmp_path_factory.getbasetemp()
    assert load_config(write(folder, config_to_yaml(config))) == config


@pytest.mark.parametrize(
    "path", ["0.", "1e3", "yes", "null", "a~", "2026-11-23", "a: b", "语料 #1"]
)
def test_written_strings_stay_strings(path: str, tmp_path: Path) -> None:
    for data_path in (path, [path, "b.txt"]):
        config = Config(data_path=data_path, resume_from=f"x{path}")
        assert load_config(write(tmp_path, config_to_yaml(config))) == config


def test_data_paths_are_a_list() -> None:
    assert Config(data_path="a.txt").data_paths() == [Path("a.txt")]
    assert Config(data_path=["a", "b"]).data_paths() == [Path("a"), Path("b")]


PATH_KEYS = [k for k, f in SentimentConfig.__dataclass_fields__.items() if "path" in f.metadata]


def test_the_home_folder_is_filled_in_wherever_a_path_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for key in PATH_KEYS:
        home = str(tmp_path / "runs" / "mine")
        for config in (
            load_config(None, [f"{key}=~/runs/mine"], SentimentConfig),
            load_config(write(tmp_path, f"{key}: ~/runs/mine"), [], SentimentConfig),
        ):
            assert getattr(config, key) == home
        given = "runs/~mine" if key != "resume_from" else "latest"
        assert getattr(load_config(None, [f"{key}={given}"], SentimentConfig), key) == given
    many = ", ".join(["b.txt"] * 60)  # longer than the name of any file
    assert len(load_config(None, [f"data_path=[{many}]"]).data_paths()) == 60
    several = load_config(None, ["data_path=[~/a.txt, b~.txt]"])
    assert several.data_paths() == [tmp_path / "a.txt", Path("b~.txt")]
    assert len(PATH_KEYS) == 7
    assert load_config(None, ["checkpoint_root=~nobody-here/x"]).checkpoint_root[0] == "~"


@pytest.mark.parametrize(
    ("max_steps", "max_epoch", "last"),
    [(None, None, 50), (7, None, 7), (None, 2, 21), (7, 2, 7), (70, 2, 21), (None, 1, 10)],
)
def test_last_step_is_the_nearest_limit(
    max_steps: int | None, max_epoch: int | None, last: int
) -> None:
    config = Config(max_steps=max_steps, max_epoch=max_epoch, decay_steps=50)
    assert config.last_step(steps_per_epoch=10.4) == last


def test_config_cannot_be_changed_behind_ones_back() -> None:
    config: Any = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0
