"""What `evaluate` and `inspect` say, against plain computations of the same figures."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from smallgpt import evaluation
from smallgpt.chat.chatbot import Chatbot
from smallgpt.checkpoints import checkpoint
from smallgpt.config import Config
from smallgpt.demo import smalltalk
from smallgpt.utils.errors import UserError
from smallgpt.utils.words import size
from tests.helpers.models import DIALOGUES, random_model, vocabulary


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
    said = evaluation.on_text(trained, [file], "cpu")
    form = r"validation loss (\S+), perplexity (\S+), (\S+) bits a character \((\S+) characters\)"
    figures = re.fullmatch(form, said)
    assert figures, said
    loss, perplexity, bits = (float(figures[i]) for i in (1, 2, 3))
    expected, targets = plain_loss(trained, text.strip().split("\n\n"))
    assert loss == pytest.approx(expected, rel=0.02)  # bfloat16 on some processors
    assert perplexity == pytest.approx(math.exp(expected), rel=0.2)
    assert bits == pytest.approx(expected / math.log(2), rel=0.02)
    assert figures[4] == f"{targets:,}"


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_loss_in_the_precision_of_chat(tmp_path: Path, tied: bool) -> None:
    file = tmp_path / "text.txt"
    file.write_text(DIALOGUES, encoding="utf-8")
    model = random_model(tied=tied)
    assert isinstance(model.config, Config)
    path = checkpoint.save(tmp_path, 1, model.config, vocabulary(), model.state_dict(), {}, {})
    expected, _ = plain_loss(path, DIALOGUES.strip().split("\n\n"))
    for dtype, tolerance in (("float32", 1e-4), ("bfloat16", 0.02), ("int8", 0.02)):
        said = evaluation.on_text(path, [file], "cpu", dtype)
        assert float(said.split()[2].rstrip(",")) == pytest.approx(expected, rel=tolerance), dtype


def test_several_texts_are_one(trained: Path, tmp_path: Path) -> None:
    first, second, both = (tmp_path / name for name in ("1.txt", "2.txt", "both.txt"))
    parts = DIALOGUES.split("\n\n")
    first.write_text("\n\n".join(parts[:2]) + "\n", encoding="utf-8")
    second.write_text("\n\n".join(parts[2:]), encoding="utf-8")
    both.write_text(DIALOGUES, encoding="utf-8")
    together = evaluation.on_text(trained, [both], "cpu")
    assert evaluation.on_text(trained, [first, second], "cpu") == together


def test_smalltalk_counts_every_reply(trained: Path) -> None:
    lines = evaluation.on_smalltalk(trained, 3, 0, "cpu").splitlines()
    rows = [re.fullmatch(r" *(\d+) of +(\d+) +(\d+\.\d) %  (.+)", line) for line in lines]
    counts = [(int(row[1]), int(row[2]), row[4]) for row in rows if row]
    assert len(counts) == len(lines)
    turns = [turn.user for play in smalltalk.held_out(3, 0) for turn in play]
    assert counts[-1][1:] == (len(turns), "fitting in all")
    assert sum(total for _, total, _ in counts[:-1]) == len(turns)
    assert sum(good for good, _, _ in counts[:-1]) == counts[-1][0]


def test_a_bot_that_knows_the_answers_gets_full_marks(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversation so far reaches the bot: with it, the right reply can be looked up."""
    plays, answers = smalltalk.held_out(4, 7), {}
    for play in plays:
        said: list[str] = []
        for turn in play:
            said += [turn.user]
            answers[tuple(said)] = turn.bot
            said += [turn.bot]

    def respond(bot: Chatbot, messages: list[str], generator: object) -> tuple[list[str], int]:
        return [answers[tuple(messages)]], 0

    monkeypatch.setattr(Chatbot, "respond", respond)
    assert evaluation.on_smalltalk(trained, 4, 7, "cpu").endswith("100.0 %  fitting in all")


def test_describe(trained: Path, trained_copy: Path) -> None:
    said = evaluation.describe_checkpoint(trained)
    stored = checkpoint.load(trained)
    total = sum(p.numel() for p in stored.model().parameters()) - 32 * 32
    assert said.startswith(f"{trained}: whole, all checksums right\n  step: 120\n")
    assert f"parameters: {total:,} (and 1,024 for positions)" in said
    assert "2 layers, 4 heads, 32 wide, context 32" in said
    loss = stored.manifest["validation_loss"]
    assert f"validation_loss: {loss:.4g}\n" in said and f"{loss:.5g}" not in said
    assert f"model.safetensors: {size((trained / 'model.safetensors').stat().st_size)}\n" in said
    assert "".join(stored.tokenizer.characters[:20]) in said

    state = trained_copy / "training_state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"training_state\.pt is damaged"):
        evaluation.describe_checkpoint(trained_copy)
