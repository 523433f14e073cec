"""The model that comes with Small GPT: it is whole, small and good, and every command finds it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

import smallgpt
from smallgpt.checkpoints import checkpoint
from smallgpt.checkpoints import open as opening
from smallgpt.data.prepare import write
from smallgpt.demo import smalltalk
from smallgpt.evaluation.small_talk import fitting_replies
from tests.helpers.commands import python_here, refused_command
from tests.helpers.commands import smallgpt as smallgpt_command
from tests.helpers.processes import REPOSITORY, Run
from tests.helpers.reviews import write_reviews
from tests.helpers.server import client, serve_command

BOX = REPOSITORY / "models" / "box"
MOST_BYTES = 26_000_000


def test_it_is_small_and_can_only_chat() -> None:
    assert sum(file.stat().st_size for file in BOX.iterdir()) <= MOST_BYTES
    tensors = safetensors.torch.load_file(BOX / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    said = refused_command("train", "demo", f"resume_from={BOX}", f"data_path={BOX / 'README.md'}")
    assert "this checkpoint can chat, not resume" in said


def test_its_card_says_what_it_is_not_and_how_good_it_is() -> None:
    card = (BOX / "README.md").read_text("utf-8")
    about = (REPOSITORY / "models" / "about_box.md").read_text("utf-8")
    assert about.strip() in card
    assert "not a counsellor" in card and "不是心理咨询师" in card and "12356" in card
    picked = re.search(r"R10@1\) on test\.txt \| (\d+\.\d) %", card)
    fitting = re.search(r"fit in held-out small talk \| (\d+\.\d) %", card)
    loops = re.search(r"replies that loop \| (\d+\.\d) %", card)
    assert picked and fitting and loops
    assert float(picked[1]) > 50 and float(fitting[1]) >= 90 and float(loops[1]) < 1
    manifest = json.loads((BOX / "manifest.json").read_text("utf-8"))
    assert f"| validation perplexity | {manifest['perplexity']:.4f} |" in card


def test_it_knows_small_talk() -> None:
    good, total = fitting_replies(BOX, 40, 5, "cpu", "auto").total
    assert good >= 0.85 * total


@pytest.mark.parametrize("arguments", [(), ("box",), ("temperature=0.3",)])
def test_chat_needs_no_name(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = python_here(tmp_path, REPOSITORY / "chat.py", *arguments, typed="早上好\n你好\nexit\n")
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2 and all(result.stdout.splitlines())
    assert not list(tmp_path.iterdir())


def test_chat_from_a_pipe_in_a_process_of_its_own(run: Run) -> None:
    done = run(REPOSITORY / "chat.py", typed="早上好\nexit\n".encode())
    assert done.returncode == 0, done.stderr.decode()
    assert len(done.stdout.decode().splitlines()) == 1


def test_it_is_served(tmp_path: Path) -> None:
    with serve_command(None, tmp_path) as (url, process):
        with client(url) as http:
            assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["box"]
            body = {"model": "box", "messages": [{"role": "user", "content": "早上好"}]}
            answer = http.post("/v1/chat/completions", json=body).json()
            assert answer["choices"][0]["message"]["content"]
            assert http.get("/v1/models/box").json()["parameters"] > 10_000_000
        process.terminate()
        process.communicate()


def test_both_trainings_begin_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As config/finetune.yaml and config/sentimental_demo.yaml say."""
    monkeypatch.chdir(tmp_path)
    write((text.split("\n") for text in smalltalk.generate(20, 3)), {Path("mine.txt"): 1.0})
    write_reviews(Path("mine.csv"))
    quick = ("max_steps=1", "eval_freq=0", "train_batch=2", "tensorboard_path=", "device=cpu")
    tuned = smallgpt_command("train", "finetune", "data_path=mine.txt", *quick)
    assert tuned.exit_code == 0, tuned.stderr
    before, after = checkpoint.load(BOX), checkpoint.load(Path("checkpoints/finetune/cpt1"))
    assert after.tokenizer.characters[: len(before.tokenizer) - 3] == before.tokenizer.characters
    for name, weight in before.weights.items():
        assert (after.weights[name][: len(weight)] - weight).abs().max() < 0.01, name
    judged = smallgpt_command(
        "sentiment", "train", "sentimental_demo", "sentimental_data_path=mine.csv", *quick
    )
    assert judged.exit_code == 0, judged.stderr
    assert f"base: {opening.find_checkpoint('box')}" in judged.stderr


def test_what_is_called_so_here_comes_first(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opening.find_checkpoint("box").resolve() == BOX
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "box")
    assert opening.find_checkpoint("box") == Path("box")
    shutil.copytree("box", "run/cpt1")
    shutil.rmtree("box")
    Path("box").mkdir()  # no model
    assert opening.find_checkpoint("box").resolve() == BOX
    Path("run").rename("box/box")
    monkeypatch.chdir("box")
    assert opening.find_checkpoint("box") == Path("box/cpt1")
    assert smallgpt.load("box").reply("早上好") == smallgpt.load(trained).reply("早上好")
    # Without a name it is ours all the same.
    shutil.rmtree("box")
    Path("box").mkdir()
    assert smallgpt_command("chat", typed="exit\n").exit_code == 0


def test_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening, "_PACKAGE", tmp_path / "smallgpt")
    said = refused_command("chat")
    assert "the model that comes with Small GPT is missing" in said
    assert "git checkout -- models/box" in said
