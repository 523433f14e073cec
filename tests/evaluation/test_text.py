"""`evaluate --data`: its figures against plain computations, the table, the file, two models."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smallgpt.checkpoints import checkpoint
from smallgpt.config import Config
from smallgpt.config_file import config_from_dict
from smallgpt.evaluation.measures import chance_of_difference, intervals, read_prompts
from smallgpt.evaluation.report import on_text
from smallgpt.training import pretrain
from smallgpt.training.choice import Choices
from smallgpt.utils.errors import UserError
from tests.helpers.models import DIALOGUES, random_model, vocabulary
from tests.helpers.processes import SMALL


def evaluated(paths: list[Path], *files: Path, **options: Any) -> tuple[list[str], dict[str, Any]]:
    """What `--data` prints, line by line, and what `--json` writes; with two prompts."""
    output, prompts = (files[0].with_suffix(suffix) for suffix in (".json", ".prompts"))
    prompts.write_text("我失恋了，好难过\n早上好\t你好\t睡得好吗\n", encoding="utf-8")
    few: dict[str, Any] = {
        "pairs": 12,
        "replies": 3,
        "device": "cpu",
        "prompts": prompts,
        "output": output,
    }
    said = on_text(paths, list(files), **few | options)
    return said.splitlines(), json.loads(output.read_text("utf-8"))


@pytest.fixture
def pairs_text(tmp_path: Path) -> Path:
    """Fifteen dialogues with different replies."""
    lines = [f"{c}天气\n{c}{c}好呀\n" for c in "你我好吗的是早上晚安天气不错呀"]
    file = tmp_path / "pairs.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def plain_loss(path: Path, dialogues: list[str]) -> tuple[float, int]:
    """Mean loss, dialogue by dialogue, over the targets that the model knows; and their number."""
    stored = checkpoint.load(path)
    model, losses = stored.model(), []
    for dialogue in dialogues:
        ids = [*stored.tokenizer.encode(dialogue), 2]
        with torch.no_grad():
            scores = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
        losses += [-scores[i, id_].item() for i, id_ in enumerate(ids[1:]) if id_ != 0]
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize(
    "text",
    [DIALOGUES, "晚安\n晚安，猫\n\n你好\n鱼你好\n鱼\n"],
    ids=["its own text", "with unknown characters"],
)
def test_loss_on_a_text(trained: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    _, found = evaluated([trained], file)
    expected, targets = plain_loss(trained, text.strip().split("\n\n"))
    assert found["validation_loss"] == pytest.approx(expected, rel=0.02)  # bfloat16 on some
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=0.2)
    assert found["bits_per_character"] == pytest.approx(expected / math.log(2), rel=0.02)
    assert found["characters"] == targets
    assert "r10_at_1" not in found and found["pairs"] == 0  # no ten different replies


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_in_the_precision_of_chat(pairs_text: Path, tied: bool) -> None:
    model = random_model(tied=tied)
    assert isinstance(model.config, Config)
    folder = pairs_text.parent
    path = checkpoint.save(folder, 1, model.config, vocabulary(), model.state_dict(), {}, {})
    expected, _ = plain_loss(path, pairs_text.read_text("utf-8").strip().split("\n\n"))
    shares = list[float]()
    for dtype, tolerance in (("float32", 1e-4), ("bfloat16", 0.02), ("int8", 0.02)):
        _, found = evaluated([path], pairs_text, dtype=dtype)
        assert found["validation_loss"] == pytest.approx(expected, rel=tolerance), dtype
        shares.append(found["r10_at_1"])
    assert shares == pytest.approx([shares[0]] * 3, abs=0.17)


def test_two_losses_are_over_the_same_characters(trained: Path, tmp_path: Path) -> None:
    """Though one model knows more of them: a fine-tuned one knows those of its text too."""
    file, mine = tmp_path / "text.txt", tmp_path / "mine.txt"
    file.write_text("晚安\n晚安，猫\n\n你好\n鱼你好\n鱼\n", encoding="utf-8")
    mine.write_text("鱼\n鱼\n\n好\n你好鱼\n", encoding="utf-8")
    keys = {"data_path": str(mine), "base_model": str(trained), "checkpoint_root": str(tmp_path)}
    quick = SMALL | {"max_steps": 1, "train_batch": 2, "train_percent": 0.5}
    tuned = pretrain.run(config_from_dict(quick | keys, "test", Config))
    assert {"鱼"} == set(checkpoint.load(tuned).tokenizer.characters) - set(
        checkpoint.load(trained).tokenizer.characters
    )
    for first, second in ((tuned, trained), (trained, tuned)):
        _, found = evaluated([first, second], file)
        expected, targets = plain_loss(trained, file.read_text("utf-8").strip().split("\n\n"))
        base = found if first == trained else found["compared_with"]
        assert base["validation_loss"] == pytest.approx(expected, rel=0.02)
        assert found["characters"] == found["compared_with"]["characters"] == targets
    assert evaluated([tuned], file)[1]["characters"] == targets + 2


def test_several_texts_are_one(trained: Path, tmp_path: Path) -> None:
    first, second, both = (tmp_path / name for name in ("1.txt", "2.txt", "both.txt"))
    parts = DIALOGUES.split("\n\n")
    first.write_text("\n\n".join(parts[:2]) + "\n", encoding="utf-8")
    second.write_text("\n\n".join(parts[2:]), encoding="utf-8")
    both.write_text(DIALOGUES, encoding="utf-8")
    assert evaluated([trained], first, second)[0] == evaluated([trained], both)[0]


def test_the_table_says_what_the_file_says(trained: Path, pairs_text: Path) -> None:
    lines, found = evaluated([trained], pairs_text)
    assert lines[0] == f"A: {trained}"
    table = lines[2 : lines.index("", 2)]
    assert all(len(line) <= 80 for line in table)
    cells = {line[:41].strip(): re.split(" {2,}", line[41:].strip()) for line in table}
    assert cells["loss, nats a character"] == [f"{found['validation_loss']:.4f}"]
    assert cells["right reply of ten (R10@1; chance: 10 %)"] == [f"{100 * found['r10_at_1']:.1f} %"]
    assert cells["pairs"] == ["12"]
    assert cells["distinct-2"] == [
        f"{figures['distinct_2']:.3f}" for figures in (found, found["true_replies"])
    ]
    assert cells["as long as max_new_tokens allows"] == [
        f"{100 * found['reached_limit_share']:.1f} %"
    ]


def test_the_file_holds_the_replies(trained: Path, pairs_text: Path) -> None:
    _, found = evaluated([trained], pairs_text)
    said = pairs_text.read_text("utf-8").strip().split("\n\n")
    for sample, true_reply in zip(found["samples"], found["true_replies"]["samples"], strict=True):
        assert "\n".join([*sample["messages"], true_reply]) in said
    replies = [sample["reply"] for sample in found["samples"]]
    assert found["replies"] == len(replies) == 3 and all(replies)
    assert found["mean_length"] == pytest.approx(sum(map(len, replies)) / 3)
    assert found["prompts"][1]["messages"] == ["早上好", "你好", "睡得好吗"]
    assert (found["seed"], found["dialogues"], found["data"]) == (0, 15, [str(pairs_text)])
    assert found == evaluated([trained], pairs_text)[1]
    _, other = evaluated([trained], pairs_text, seed=1)
    assert found["samples"] != other["samples"]


def test_two_models_side_by_side(trained: Path, saved: Path, pairs_text: Path) -> None:
    """The same pairs for both, which both can score."""
    lines, found = evaluated([trained, saved], pairs_text)
    _, other = evaluated([saved, trained], pairs_text)
    assert found["compared_with"]["checkpoint"] == other["checkpoint"] == str(saved)
    assert found["r10_at_1"] == other["compared_with"]["r10_at_1"]
    assert found["r10_at_1_p"] == other["r10_at_1_p"]
    known = checkpoint.load(trained).tokenizer.characters
    assert all(set(reply) <= set(known) for reply in found["true_replies"]["samples"])
    assert lines[:2] == [f"A: {trained}", f"B: {saved}"]
    assert any(line.startswith("R10@1 of A and B differs by") for line in lines)
    a, b = (each["prompts"] for each in (found, found["compared_with"]))
    assert lines[-7:] == [
        *("我失恋了，好难过", f"  A  {a[0]['reply']}", f"  B  {b[0]['reply']}"),
        *("", "早上好 / 你好 / 睡得好吗", f"  A  {a[1]['reply']}", f"  B  {b[1]['reply']}"),
    ]


def test_the_chance_that_two_equal_models_differ_so_much() -> None:
    """McNemar: of 10 pairs that one model alone has right, 9 are of the first."""
    first = np.array([True] * 9 + [False] + [True] * 20 + [False] * 5)
    second = np.array([False] * 9 + [True] + [True] * 20 + [False] * 5)
    expected = 2 * (math.comb(10, 9) + math.comb(10, 10)) / 2**10
    assert chance_of_difference(first, second) == pytest.approx(expected)
    assert chance_of_difference(second, first) == pytest.approx(expected)
    assert chance_of_difference(first, first) == 1.0


def test_intervals() -> None:
    """Wilson's, by his formula."""
    right, n, z = 3, 40, 1.959964
    picked = np.arange(n) < right
    middle = (right + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(right * (n - right) / n + z * z / 4)
    found = intervals(Choices(picked, ~picked))
    assert found["r10_at_1_95"] == pytest.approx([middle - half, middle + half], abs=1e-6)
    assert found["r10_at_1_likelihood_95"] == pytest.approx([1 - middle - half, 1 - middle + half])


def test_prompts(tmp_path: Path) -> None:
    """Ours, or those of a file."""
    ours = read_prompts(None)
    assert len(ours) == 20 and ["我失恋了，好难过"] in ours
    assert any(len(talk) > 2 for talk in ours)
    assert all(len(talk) % 2 for talk in ours)  # the last message is the user's
    file = tmp_path / "prompts.txt"
    file.write_text("你好\n\n早上好\t你好 \t睡得好吗\n", encoding="utf-8")
    assert read_prompts(file) == [["你好"], ["早上好", "你好", "睡得好吗"]]
    file.write_text("你好\t\t你好\n", encoding="utf-8")
    with pytest.raises(UserError, match="a message is empty"):
        read_prompts(file)
    file.write_text(" \n", encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(f"{file} is empty")):
        read_prompts(file)


def test_a_text_that_the_model_has_learnt_from(
    trained_run: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = trained_run / "text.txt"
    lines = on_text([trained], [own], pairs=0, replies=0, device="cpu").splitlines()
    assert "was trained on most of this text" in capsys.readouterr().err
    assert "no R10@1: it needs 10 pairs with different replies (--pairs)" in lines
    assert not any("distinct" in line for line in lines)
    (tmp_path / "text.txt").write_text("你好\n你好呀\n", encoding="utf-8")
    evaluated([trained], tmp_path / "text.txt", pairs=0, replies=0)
    assert "was trained on" not in capsys.readouterr().err


def test_a_file_that_cannot_be_written(trained: Path, pairs_text: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        evaluated([trained], pairs_text, output=pairs_text / "x.json")
