"""Whatever opens a model takes the same paths, and says the same of the same mistake."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import smallgpt
from smallgpt.checkpoints import checkpoint, legacy_pth
from smallgpt.checkpoints.open import find_checkpoint, open_checkpoint
from smallgpt.utils.errors import UserError
from tests.helpers.commands import Evil, refusal
from tests.helpers.commands import smallgpt as command
from tests.helpers.foreign import make_foreign
from tests.helpers.processes import REPOSITORY

EARLIER = REPOSITORY / "tests" / "fixtures" / "2026-11"
TEXT, REVIEWS = EARLIER / "dialogues.txt", EARLIER / "reviews.csv"
TINY = ["device=cpu", "dtype=float32", "max_steps=5", "decay_steps=9", "train_batch=2"]
TINY += ["warmup_steps=1", "save_freq=100"]
SHAPE = ["block_size=16", "n_layer=2", "n_head=2", "n_embd=8", f"data_path={TEXT}", "eval_freq=0"]


def train(path: Path, out: Path, key: str, *more: str) -> list[Any]:
    config = REPOSITORY / "config" / "demo.yaml"
    return ["train", config, *TINY, *SHAPE, f"{key}={path}", f"checkpoint_root={out}", *more]


def train_classifier(path: Path, out: Path, key: str) -> list[Any]:
    config = REPOSITORY / "config" / "sentimental_demo.yaml"
    given = [f"sentimental_data_path={REVIEWS}", f"data_path={TEXT}", f"checkpoint_root={out}"]
    return ["sentiment", "train", config, *TINY, *given, "block_size=16", f"{key}={path}"]


def chat_with_yaml(path: Path, out: Path) -> list[Any]:
    config = REPOSITORY / "config" / "demo.yaml"
    return ["chat", config, f"resume_from={path}", f"data_path={TEXT}", "device=cpu"]


ENTRIES: dict[str, Callable[[Path, Path], list[Any]]] = {
    "chat": lambda path, out: ["chat", path, f"data_path={TEXT}", "device=cpu"],
    "chat with a YAML file": chat_with_yaml,
    "evaluate": lambda path, out: ["evaluate", path, "--data", TEXT, "--device", "cpu"],
    "inspect": lambda path, out: ["inspect", path],
    "convert": lambda path, out: ["convert", path, "--to", "original", "--output", out],
    "push-ready": lambda path, out: ["push-ready", path, "--output", out],
    "predict": lambda path, out: ["sentiment", "predict", path, "早", "--device", "cpu"],
    "base_model": lambda path, out: train(path, out, "base_model"),
    "resume_from": lambda path, out: train(path, out, "resume_from", "optimizer=adamw"),
    "a classifier's base_model": lambda path, out: train_classifier(path, out, "base_model"),
    "a classifier's resume_from": lambda path, out: train_classifier(path, out, "resume_from"),
    "smallgpt.load": lambda path, out: ["load", path],
}
WANT_A_CLASSIFIER = ("predict", "a classifier's resume_from")
TAKE_BOTH = ("inspect", "push-ready", "a classifier's base_model", "smallgpt.load")


def opened(entry: str, path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said when it is opened; of an error, the message."""
    arguments = ENTRIES[entry](path, out)
    if arguments[0] != "load":
        result = command(*arguments, typed="早\n")
        assert result.exit_code in (0, 2), result.exception
        assert (result.exit_code == 2) == ("error: " in result.stderr)
        return result.stderr.removeprefix(">>> ")
    try:
        model = smallgpt.load(path)
        assert model.reply("早") if isinstance(model, smallgpt.Chatbot) else model.predict(["早"])
    except UserError as error:
        return f"error: {error}"
    return capsys.readouterr().err


def with_manifest(path: Path, **facts: Any) -> None:
    file = path / "manifest.json"
    manifest = json.loads(file.read_text("utf-8")) | facts
    file.write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}), "utf-8")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each kind: here/cpt4, run/ with a best one, new/ without, theirs/, x.pth."""
    folder = tmp_path_factory.mktemp("models")
    for name, step in {"here": 4, "run": 4, "new": 4, "run/": 8, "new/": 8}.items():
        path = shutil.copytree(EARLIER / "adamw" / "cpt4", folder / name.strip("/") / f"cpt{step}")
        with_manifest(path, step=step, validation_loss=None if "new" in name else step / 4)
    shutil.copytree(EARLIER / "classifier", folder / "classifier")
    make_foreign(folder / "theirs", "characters", activation_function="gelu")
    legacy_pth.write(open_checkpoint(folder / "here" / "cpt4"), folder / "x.pth")
    text = Path(shutil.copy(TEXT, folder))
    legacy_pth.directory_beside(folder / "x.pth", [text])
    return folder


GOOD = {"here/cpt4": "", "run": "taking cpt4, the best", "new": "taking cpt8, the newest"}
GOOD |= {"theirs": "", "x.pth": ""}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("entry", ENTRIES)
def test_each_kind_of_path_is_opened_everywhere(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], entry: str, name: str
) -> None:
    path = models / name
    said = opened(entry, path, tmp_path / "out", capsys)
    if entry in WANT_A_CLASSIFIER:
        assert "is a language model, not a classifier\n  -> make one of it" in said
    elif name == "theirs" and entry == "resume_from":
        assert "this checkpoint can chat, not resume" in said
    elif name == "theirs" and entry == "push-ready":
        assert "is another program's model" in said
    else:
        assert "error: " not in said
    if GOOD[name]:
        assert f"{path} is the folder of a run: {GOOD[name]}" in said


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_same_mistake_has_the_same_message(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], entry: str
) -> None:
    missing, empty, damaged = (tmp_path / name for name in ("missing", "empty", "damaged"))
    empty.mkdir()
    (empty / ".lock").touch()  # as a run that failed leaves it
    unfinished = tmp_path / "cpt4"
    unfinished.mkdir()
    kind = "classifier/cpt2" if entry in WANT_A_CLASSIFIER else "here/cpt4"
    shutil.copytree(models / kind, damaged)
    (damaged / "tokenizer.json").write_text("{}")
    file = models / "here" / "cpt4" / "model.safetensors"
    training = "make demo, or python train.py config/demo.yaml"
    if entry in WANT_A_CLASSIFIER:
        training = "python sentimentalTrain.py config/sentimental_demo.yaml"
    mistakes = {
        missing: f"checkpoint {missing} not found\n  -> train one: {training}",
        file: f"{file} is a file, not a checkpoint directory\n  -> give the directory",
        empty: f"there is no checkpoint in {empty} yet\n  -> train one: {training}",
        unfinished: f"{unfinished} is not a checkpoint: it has no manifest.json\n  -> give the",
        damaged: f"{damaged / 'tokenizer.json'} is damaged or edited: its checksum is not",
        tmp_path / "no.pth": f"{tmp_path / 'no.pth'} not found\n  -> put it there",
    }
    if entry not in WANT_A_CLASSIFIER:
        evil = tmp_path / "evil.pth"
        torch.save({"state_dict": Evil(tmp_path / "it ran")}, evil)
        mistakes[evil] = f"{evil} is refused: it is not a file of tensors and plain values only"
    if entry not in (*WANT_A_CLASSIFIER, *TAKE_BOTH):
        path = models / "classifier"
        said = f"{path / 'cpt2'} is a classifier (0, 1), not a model to talk with\n  -> use it"
        mistakes[path] = said
    key = "base_model: " if entry.endswith("base_model") else ""
    for path, expected in mistakes.items():
        said = opened(entry, path, tmp_path / "out", capsys)
        assert f"error: {key}{expected}" in said
        if key and path.suffix == ".pth" and not path.exists():
            assert "set base_model=checkpoints/demo" in said and "chat" not in said
    assert not (tmp_path / "it ran").exists()


def test_latest_and_best_are_names_only_with_a_root(models: Path) -> None:
    for word, name in {"latest": "cpt8", "auto": "cpt8", "best": "cpt4"}.items():
        assert find_checkpoint(word, root=models / "run") == models / "run" / name
        assert f"checkpoint {word} not found" in refusal(lambda: open_checkpoint(word))  # noqa: B023
    for word in ("latest", "best"):
        message = refusal(lambda: find_checkpoint(word, root=models / "none"))  # noqa: B023
        assert f"no checkpoint in {models / 'none'}" in message
        assert "train one first: make demo, or python train.py" in message
    assert find_checkpoint("some/where", root=models / "run") == Path("some/where")
    assert find_checkpoint("~/x") == Path.home() / "x"


def test_a_pth_without_its_text_says_how_to_convert_it(models: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(models / "x.pth", tmp_path))
    message = refusal(lambda: smallgpt.load(path))
    assert f"smallgpt convert {path} --text … --output {tmp_path / 'x'}" in message
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"]


def test_the_directory_that_was_opened_is_known(models: Path) -> None:
    assert open_checkpoint(models / "run").path == models / "run" / "cpt4"
    assert open_checkpoint(models / "x.pth").path == models / "x"
    assert open_checkpoint(str(models / "theirs")).path == models / "theirs"


def test_inspect_tells_what_was_checked(models: Path) -> None:
    whole, theirs = command("inspect", models / "run"), command("inspect", models / "theirs")
    assert whole.stdout.startswith(f"{models / 'run' / 'cpt4'}: whole, all checksums right\n")
    assert "has no checksums to check" in theirs.stdout.splitlines()[0]
    assert "trained on: unknown" in theirs.stdout


# Checkpoints and a cache that the earlier code made.


@pytest.mark.parametrize("name", ["adamw", "muon", "ngrams", "legacy"])
def test_earlier_language_models_talk_and_go_on(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(EARLIER / name, tmp_path / "run"))
    expected = json.loads((EARLIER / "expected.json").read_text("utf-8"))[name]
    logits = open_checkpoint(run).model()(torch.tensor([[5, 3, 4, 1, 9]]))[0, -1, :8]
    torch.testing.assert_close(logits, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert smallgpt.load(run).reply("早上好")
    optimizer = "muon" if name == "muon" else "adamw"
    more = ["train_percent=0.7", f"optimizer={optimizer}"]
    if name == "ngrams":
        more += ["ngram_order=3", "ngram_rows=20", "ngram_embd=4"]
    result = command(*train(Path("latest"), run, "resume_from", *more))
    assert result.exit_code == 0, result.stderr
    assert f"going on from {run / 'cpt4'}" in result.stderr
    assert ("knows no place in this text" in result.stderr) == (name == "legacy")
    assert checkpoint.load(run / "cpt5").training_state()["completed"] == 5


def test_an_earlier_classifier_judges_and_goes_on(tmp_path: Path) -> None:
    run = Path(shutil.copytree(EARLIER / "classifier", tmp_path / "run"))
    expected = json.loads((EARLIER / "expected.json").read_text("utf-8"))["classifier"]
    assert smallgpt.load(run, kind="classifier").predict(["今天很好"])[
        0
    ].probabilities == pytest.approx(expected)
    result = command(*train_classifier(Path("latest"), run, "resume_from"))
    assert result.exit_code == 0, result.stderr
    assert f"going on from {run / 'cpt2'}" in result.stderr


def test_an_earlier_cache_is_used(tmp_path: Path) -> None:
    from smallgpt.data.corpus import open_corpus

    shutil.copy(TEXT, tmp_path)
    cache = shutil.copytree(EARLIER / ".smallgpt_cache", tmp_path / ".smallgpt_cache")
    before = {file: file.stat() for file in cache.rglob("*")}
    corpus = open_corpus([tmp_path / TEXT.name])
    assert corpus.tokenizer.decode(corpus.dialogue(0)) == TEXT.read_text("utf-8").split("\n\n")[0]
    after = {file: file.stat() for file in cache.rglob("*")}
    assert {f: (s.st_ino, s.st_mtime_ns) for f, s in before.items()} == {
        f: (s.st_ino, s.st_mtime_ns) for f, s in after.items()
    }
