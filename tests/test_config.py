"""The configuration: types, overrides, messages, and every YAML file we ship."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.config import (
    Config,
    SentimentConfig,
    config_from_dict,
    config_keys,
    config_to_yaml,
    load_config,
)
from smallgpt.utils.errors import UserError

SHIPPED = sorted((Path(__file__).parent.parent / "config").glob("*.yaml"))

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


def problem_of(path: Path, *overrides: str) -> str:
    """The message `load` stops with."""
    with pytest.raises(UserError) as stopped:
        load_config(path, list(overrides))
    return str(stopped.value)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write(tmp_path, "seed: 1\n")


# what we ship


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path: Path) -> None:
    classifies = "sentimental_data_path:" in path.read_text("utf-8")
    schema = SentimentConfig if classifies else Config
    config = load_config(path, [], schema)
    assert config.last_step(steps_per_epoch=1000.0) >= 1
    assert config.checkpoint_root.startswith("checkpoints/")


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
    config = dataclasses.asdict(load_config(SHIPPED[0].parent / name))
    expected = yaml.safe_load(f"{{{PUBLISHED[name]}, {PUBLISHED_BOTH}}}")
    assert {key: config[key] for key in expected} == expected


def test_training_and_chat_of_one_model_share_their_folder() -> None:
    for size in ("90M", "300M"):
        train, chat = (
            load_config(SHIPPED[0].parent / f"{what}{size}.yaml") for what in ("train", "chat")
        )
        assert chat.checkpoint_root == train.checkpoint_root


def test_keys_of_existing_files_are_all_accepted(tmp_path: Path) -> None:
    expected = yaml.safe_load(EXISTING_KEYS)
    config = dataclasses.asdict(load_config(write(tmp_path, EXISTING_KEYS)))
    assert {key: config[key] for key in expected} == expected


# types


@pytest.mark.parametrize("number", ["3e-4", "3.0e-4", "0.0003", "3E-4", "'3e-4'"])
def test_scientific_notation_is_a_number_in_yaml(tmp_path: Path, number: str) -> None:
    assert load_config(write(tmp_path, f"lr: {number}")).lr == pytest.approx(0.0003)


@pytest.mark.parametrize("number", ["3e-4", "3.0e-4", "0.0003"])
def test_scientific_notation_is_a_number_in_overrides(plain: Path, number: str) -> None:
    assert load_config(plain, [f"lr={number}"]).lr == pytest.approx(0.0003)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("lr: fast", "lr"),
        ("lr:", "lr"),
        ("lr: {a: 1}", "lr"),
        ("n_layer: 2.5", "n_layer"),
        ("n_layer: true", "n_layer"),
        ("n_layer: [1, 2]", "n_layer"),
        ("max_steps: 1e5", "max_steps"),
        ("bias: maybe", "bias"),
        ("train_percent: 80%", "train_percent"),
        ("checkpoint_root:", "checkpoint_root"),
        ("data_path:", "data_path"),
        ("data_path: []", "data_path"),
        ("data_path: [a.txt, '']", "data_path"),
        ("data_path: [a.txt, 3]", "data_path"),
        ("data_path: {a: 1}", "data_path"),
        ("lr: ???", "lr"),
        ("lr: ${nowhere}", "lr"),
        ("lr: ${oc.env:SMALLGPT_NOT_SET}", "lr"),
    ],
)
def test_wrong_type_names_file_and_key(tmp_path: Path, line: str, key: str) -> None:
    path = write(tmp_path, line)
    assert problem_of(path).startswith(f"{path}: {key}: ")


@pytest.mark.parametrize("nothing", ["", "None", "none", "null"])
def test_optional_keys_can_be_empty(plain: Path, nothing: str) -> None:
    keys = ("max_steps", "max_epoch", "resume_from", "tensorboard_path")
    overridden = load_config(plain, [f"{key}={nothing}" for key in keys])
    written = load_config(write(plain.parent, "\n".join(f"{key}: {nothing}" for key in keys)))
    for key in keys:
        assert getattr(overridden, key) is None
        assert getattr(written, key) is None


# values that cannot work


@pytest.mark.parametrize(
    ("lines", "key", "reason"),
    [
        ("n_embd: 100\nn_head: 7", "n_embd", "not divisible by n_head (7)"),
        ("n_head: 0", "n_head", "at least 1"),
        ("n_layer: -1", "n_layer", "at least 1"),
        ("block_size: 1", "block_size", "at least 8"),
        ("vocab_size: -1", "vocab_size", "negative"),
        ("lr: -3e-4", "lr", "positive"),
        ("lr: 0", "lr", "positive"),
        ("lr: .nan", "lr", "finite"),
        ("lr: .inf", "lr", "finite"),
        ("weight_decay: .inf", "weight_decay", "finite"),
        ("grad_clip: -1", "grad_clip", "negative"),
        ("min_lr: 1", "min_lr", "must not exceed lr"),
        ("warmup_steps: 20\ndecay_steps: 10", "warmup_steps", "must not exceed decay_steps (10)"),
        ("train_percent: 0", "train_percent", "between 0 and 1"),
        ("train_percent: 1", "train_percent", "between 0 and 1"),
        ("train_percent: 80", "train_percent", "between 0 and 1"),
        ("dropout: 1", "dropout", "but not 1"),
        ("dropout: -0.1", "dropout", "from 0"),
        ("beta1: 1", "beta1", "but not 1"),
        ("unk_rate: 1.5", "unk_rate", "from 0 to 1"),
        ("train_batch: 0", "train_batch", "at least 1"),
        ("train_batch: 5\naccumulate: 2", "train_batch", "not divisible by accumulate (2)"),
        ("max_steps: 0", "max_steps", "at least 1"),
        ("max_epoch: 0", "max_epoch", "at least 1"),
        ("eval_steps: 0", "eval_steps", "at least 1"),
        ("save_freq: 0", "save_freq", "at least 1"),
        ("temperature: -1", "temperature", "negative"),
        ("top_k: -1", "top_k", "negative"),
        ("top_p: 0", "top_p", "above 0"),
        ("repetition_penalty: 0", "repetition_penalty", "positive"),
        ("max_new_tokens: 0", "max_new_tokens", "at least 1"),
        ("dtype: half", "dtype", "one of auto, float32"),
        ("seed: -1", "seed", "negative"),
        ("seed: 100000000000000000000", "seed", "less than"),
        ("checkpoint_root: ''", "checkpoint_root", "name a folder"),
    ],
)
def test_impossible_value_stops_with_its_reason(
    tmp_path: Path, lines: str, key: str, reason: str
) -> None:
    path = write(tmp_path, lines)
    message = problem_of(path)
    assert message.startswith(f"{path}: {key}: ")
    assert reason in message


# keys


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("learning_rate_min", None),
        ("n_layers", "n_layer"),
        ("n_haed", "n_head"),
        ("warmup_step", "warmup_steps"),
        ("chekpoint_root", "checkpoint_root"),
        ("datapath", "data_path"),
        ("lr.x", "lr"),
    ],
)
def test_misspelt_key_suggests_the_right_one(plain: Path, typed: str, meant: str | None) -> None:
    advice = f"did you mean `{meant}`?" if meant else ""
    for message in (
        problem_of(plain, f"{typed}=3"),
        problem_of(write(plain.parent, f"{typed}: 3")),
    ):
        assert f"unknown key `{typed}`" in message
        assert advice in message


@settings(deadline=None)
@given(st.sampled_from(config_keys(Config)), st.data())
def test_a_key_with_one_letter_missing_suggests_a_key_that_fits(
    key: str, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(key) - 1))
    typed = key[:at] + key[at + 1 :]
    if len(typed) < 3 or typed in config_keys(Config):
        return
    with pytest.raises(UserError, match="did you mean") as stopped:
        config_from_dict({typed: 1}, "here", Config)
    suggestion = stopped.value.advice.split("`")[1]
    assert typed in {suggestion[:i] + suggestion[i + 1 :] for i in range(len(suggestion))}


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
        (b"\x89PNG\r\n\x1a\n\x00\xff" * 20, "not UTF-8"),
        ("学习率: 1".encode("gb18030"), "not UTF-8"),
        ("- lr\n- 3", "not a mapping"),
        ("只是一句话", "unknown key"),
        ("42", "run.yaml"),
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


def test_directory_and_missing_file(tmp_path: Path) -> None:
    assert "is a directory" in problem_of(tmp_path)
    assert "not found" in problem_of(tmp_path / "missing.yaml")
    assert "cannot be read" in problem_of(tmp_path / ("long" * 1000))


def test_missing_file_names_the_shipped_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(SHIPPED[0].parent.parent)
    assert "config/demo.yaml" in problem_of(tmp_path / "missing.yaml")


@pytest.mark.parametrize("content", ["", "# nothing but a comment\n", "\ufeff", "---\n"])
def test_empty_file_is_all_defaults(tmp_path: Path, content: str) -> None:
    assert load_config(write(tmp_path, content)) == Config()


@pytest.mark.parametrize("content", ["\ufefflr: 1e-3\n", "lr: 1e-3\r\nseed: 3\r\n"])
def test_files_of_other_systems(tmp_path: Path, content: str) -> None:
    assert load_config(write(tmp_path, content)).lr == 1e-3


# overrides


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("[a.txt,b.txt]", ["a.txt", "b.txt"]),
        ("[a b.txt, 数据=1.txt]", ["a b.txt", "数据=1.txt"]),
        ("[2024,1e3]", ["2024", "1e3"]),
        ("a=b.txt", "a=b.txt"),
        ("我的 数据/对话.txt", "我的 数据/对话.txt"),
        ("2024", "2024"),
        ("2024-01-01", "2024-01-01"),
        ("a: b #c", "a: b #c"),
        ("C:\\x.txt", "C:\\x.txt"),
    ],
)
def test_override_takes_a_path_as_it_was_typed(plain: Path, typed: str, value: Any) -> None:
    assert load_config(plain, [f"data_path={typed}"]).data_path == value


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="$[\\"), min_size=1))
def test_override_keeps_any_text(text: str) -> None:
    if text in ("???", "None", "none", "null"):
        return
    config = load_config(SHIPPED[0], [f"data_path={text}", f"resume_from={text}"])
    assert (config.data_path, config.resume_from) == (text, text)


def test_override_wins_over_the_file_and_the_last_one_over_the_first(plain: Path) -> None:
    config = load_config(plain, ["seed=2", "bias=False", "seed=3", "resume_from="])
    assert (config.seed, config.bias, config.resume_from) == (3, False, None)


@pytest.mark.parametrize(
    "argument", ["lr", "", "=3", "lr = 3", "--lr=3", "lr=", "lr=fast", "data_path=[a", "seed=-1"]
)
def test_bad_override_is_blamed_on_the_command_line(plain: Path, argument: str) -> None:
    assert problem_of(plain, argument).startswith("command line: ")


def test_bad_value_in_the_file_is_blamed_on_the_file(plain: Path) -> None:
    path = write(plain.parent, "n_embd: 100")
    assert problem_of(path, "n_head=7").startswith(f"{path}: n_embd: ")


# round trip

# No $, which would begin an interpolation, and no character that is none on a screen.
SCREEN_TEXT = st.characters(exclude_categories=["C", "Zl", "Zp"], exclude_characters="$")
PATH = st.text(SCREEN_TEXT, min_size=1).filter(
    lambda text: text not in ("???", "None", "none", "null")
)


@settings(deadline=None, max_examples=30)
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


@pytest.mark.parametrize("path", ["0.", "1e3", "yes", "null", "~", "2026-11-23", "a: b", "语料 #1"])
def test_written_strings_stay_strings(path: str, tmp_path: Path) -> None:
    config = Config(data_path=path, resume_from=f"x{path}")
    assert load_config(write(tmp_path, config_to_yaml(config))) == config
    listed = Config(data_path=[path, "b.txt"])
    assert load_config(write(tmp_path, config_to_yaml(listed))) == listed


def test_data_paths_are_a_list_with_the_home_folder_filled_in() -> None:
    assert Config(data_path="~/a.txt").data_paths() == [Path.home() / "a.txt"]
    assert Config(data_path=["a", "b"]).data_paths() == [Path("a"), Path("b")]


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
