"""Going on from a trained model with dialogues of one's own."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given

import smallgpt
from smallgpt.checkpoints import checkpoint, legacy_pth
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.config import Config
from smallgpt.config_file import config_from_dict
from smallgpt.data.corpus import Corpus
from smallgpt.data.packing import PackedRows
from smallgpt.demo import smalltalk
from smallgpt.evaluation.report import on_text
from smallgpt.model.loss import IGNORED
from smallgpt.tokenizer.characters import SEP, UNK
from smallgpt.training import pretrain
from smallgpt.utils.errors import UserError
from tests.helpers.corpora import BLOCK_SIZES, CORPORA, everything
from tests.helpers.finetuning import MINE, finetune
from tests.helpers.foreign import make_foreign
from tests.helpers.processes import same_weights


def test_new_characters_are_added_and_old_ids_stay(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, after = checkpoint.load(trained), checkpoint.load(finetune(tmp_path, trained))
    new = sorted(set(MINE) - set(before.tokenizer.characters) - {"\n"})
    assert f"{len(new)} new characters added to its vocabulary" in capfd.readouterr().err
    old = len(before.tokenizer)
    assert after.tokenizer.characters[: old - 3] == before.tokenizer.characters
    assert sorted(after.tokenizer.characters[old - 3 :]) == new
    assert UNK not in after.tokenizer.encode(MINE)
    moved = (after.weights["wte.weight"][:old] - before.weights["wte.weight"][:old]).abs().max()
    assert 0 < moved < 0.05
    assert smallgpt.load(after.path).reply("早上好")
    assert "loss" in on_text(
        [after.path], [tmp_path / "mine.txt"], pairs=3, replies=3, device="cpu"
    )


def test_before_the_first_step_it_is_the_base(trained: Path, tmp_path: Path) -> None:
    """With a rate of next to nothing, its logits for the old characters are the base's."""
    path = finetune(tmp_path, trained, lr=1e-30, min_lr=0.0, max_steps=1)
    before, after = checkpoint.load(trained), checkpoint.load(path)
    ids = torch.tensor([before.tokenizer.encode("早上好\n好")])
    logits = after.model()(ids)[..., : len(before.tokenizer)]
    torch.testing.assert_close(logits, before.model()(ids)[..., : len(before.tokenizer)])


def test_it_replies_as_the_base_did_unless_it_is_told_to(trained: Path, tmp_path: Path) -> None:
    """How replies are drawn is the base's, where the config does not say."""
    base = tmp_path / "base"
    stored = checkpoint.load(trained)
    config = replace(stored.config, temperature=0.0, max_repeats=2)
    checkpoint.save(base, 1, config, stored.tokenizer, stored.weights, None, {})
    after = checkpoint.load(finetune(tmp_path, base / "cpt1", max_repeats=4)).config
    assert (after.temperature, after.max_repeats) == (0.0, 4)
    resumed = {"resume_from": "latest", "max_steps": 5, "top_k": 3}
    after = checkpoint.load(finetune(tmp_path, base / "cpt1", **resumed)).config
    assert (after.temperature, after.max_repeats, after.top_k) == (0.0, 4, 3)


@pytest.mark.parametrize("kind", ["characters", "vocab.txt", "bytes"])
def test_from_models_of_other_programs(tmp_path: Path, kind: str) -> None:
    make_foreign(tmp_path / "theirs", kind, spare=2)
    path = finetune(tmp_path, tmp_path / "theirs")
    stored = checkpoint.load(path)
    assert UNK not in stored.tokenizer.encode("早上好魑魅魍魉")
    base = open_checkpoint(tmp_path / "theirs").tokenizer
    assert stored.tokenizer.encode("今天") == base.encode("今天")
    assert smallgpt.load(path).reply("早上好")
    assert "loss" in on_text([path], [tmp_path / "mine.txt"], pairs=3, replies=3, device="cpu")


def test_from_a_legacy_file_or_none(trained: Path, tmp_path: Path) -> None:
    legacy_pth.write(checkpoint.load(trained), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"base_model: .*none not found"):
        finetune(tmp_path, tmp_path / "none")
    with pytest.raises(UserError, match="smallgpt convert"):
        finetune(tmp_path, tmp_path / "x.pth")
    legacy_pth.to_checkpoint(tmp_path / "x.pth", [trained.parents[1] / "text.txt"], tmp_path / "x")
    assert finetune(tmp_path, tmp_path / "x").exists()


def test_it_goes_on_where_it_was_stopped(trained: Path, tmp_path: Path) -> None:
    whole = finetune(tmp_path, trained)
    root = str(tmp_path / "two")
    finetune(tmp_path, trained, checkpoint_root=root, max_steps=2)
    assert same_weights(
        whole, finetune(tmp_path, trained, checkpoint_root=root, resume_from="latest")
    )


@given(CORPORA, BLOCK_SIZES)
def test_replies_are_every_second_utterance(corpus: Corpus, block_size: int) -> None:
    """Against the dialogues read from left to right, whatever they were cut into."""
    rows = PackedRows(corpus, everything(corpus), block_size, seed=0, replies_only=True)
    expected = []
    for number in range(len(corpus)):
        turn = 0
        ids = corpus.dialogue(number)
        for before, target in pairwise(ids):
            turn += before == SEP
            if turn % 2:
                expected.append(target)
    targets = rows.batch(np.arange(len(rows))).targets.numpy().ravel()
    assert sorted(targets[targets != IGNORED]) == sorted(expected)
    all_rows = PackedRows(corpus, everything(corpus), block_size, seed=0)
    every = all_rows.batch(np.arange(len(rows))).targets.numpy().ravel()
    assert (targets == np.where(targets != IGNORED, every, IGNORED)).all()


@pytest.mark.parametrize(("share", "nothing"), [(0.9, "validate on"), (0.02, "learn")])
def test_where_a_part_has_no_reply_no_step_is_taken(
    tmp_path: Path, share: float, nothing: str
) -> None:
    """A loss over no character would be a perfect one."""
    monologues = "".join(f"独白{n}\n\n" for n in range(50))
    (tmp_path / "t.txt").write_text(f"{monologues}早\n好\n", "utf-8")
    changes = {"data_path": str(tmp_path / "t.txt"), "train_percent": share, "loss_on": "replies"}
    with pytest.raises(UserError, match=f"there is nothing to {nothing}: no reply"):
        finetune(tmp_path, "", **changes)
    assert not list((tmp_path / "finetuned").glob("cpt*"))


def test_training_on_replies_learns_replies(trained: Path, tmp_path: Path) -> None:
    path = finetune(tmp_path, trained, loss_on="replies", max_steps=60, decay_steps=60, lr=3e-3)
    assert smallgpt.load(path).reply("你在吗") in ("魍，在", "魑魅魍魉！", "很好")


def test_what_is_mixed_in_is_learnt_too(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its characters too, while the text alone is validated on."""
    (tmp_path / "old.txt").write_text("暗号\n灯塔\n\n" * 30, "utf-8")
    long = {"max_steps": 60, "decay_steps": 60, "lr": 3e-3, "train_batch": 4}
    mixed = finetune(tmp_path, trained, mix_path=str(tmp_path / "old.txt"), mix_share=0.3, **long)
    said = capfd.readouterr().err
    assert "mixed in: 1 of the 4 rows of a step, of 30 dialogues" in said
    assert "bits a character (7 characters)" in said  # of the text's part for validation
    assert smallgpt.load(mixed).reply("暗号") == "灯塔"
    alone = finetune(tmp_path, trained, checkpoint_root=str(tmp_path / "alone"), **long)
    assert not {"暗", "塔"} & set(checkpoint.load(alone).tokenizer.characters)


def test_each_step_has_the_rows_that_are_due(trained: Path, tmp_path: Path) -> None:
    """Of the text in the order of its passes, and the share of what is mixed in, in equal parts."""
    old = tmp_path / "old.txt"
    old.write_text("".join(f"好{'今' * n}\n早{'上' * n}\n\n" for n in range(30)), "utf-8")
    seen: list[torch.Tensor] = []
    real = pretrain.DialogueTask.parts

    def parts(self: pretrain.DialogueTask, step: int, count: int) -> Any:
        made = real(self, step, count)
        assert len(made[0]) == count == 2
        seen.append(torch.cat([part.ids for part, _ in made[0]]))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.DialogueTask, "parts", parts)
        mixing = {"mix_path": [str(old)], "mix_share": 0.25, "train_batch": 4}
        finetune(tmp_path, trained, accumulate=2, max_steps=3, **mixing)
    stored = checkpoint.load(tmp_path / "finetuned" / "cpt3")
    (sign,) = stored.tokenizer.encode("魍")
    for ids in seen:
        assert ids.shape[0] == 4
        assert all((ids == sign).any(1)[:3]) and not any((ids == sign).any(1)[3:])
    assert not torch.equal(seen[0][3:], seen[1][3:])


def test_built_in_small_talk_can_be_mixed_in(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Beside a text of the user's, which had better be no chat export."""
    (tmp_path / "chat.txt").write_text("2024-03-01 07:42:15 阿远\n早\n\n" * 9, "utf-8")
    mixing: dict[str, Any] = {"mix_path": ["smalltalk", str(tmp_path / "chat.txt")]}
    whole = finetune(tmp_path, trained, **mixing)
    written = (tmp_path / "finetuned" / "smalltalk.txt").read_text("utf-8")
    assert f"{tmp_path / 'chat.txt'} looks like a chat export" in capfd.readouterr().err
    first = next(smalltalk.generate(1, Config.seed))
    assert written.startswith(first + "\n\n")
    mixing["checkpoint_root"] = str(tmp_path / "two")
    finetune(tmp_path, trained, max_steps=2, **mixing)
    assert same_weights(whole, finetune(tmp_path, trained, resume_from="latest", **mixing))


def test_mixing_that_cannot_be(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mix_share is 0\.9; it leaves no row for data_path"):
        finetune(tmp_path, trained, mix_path="smalltalk", mix_share=0.9)
    config_from_dict({"mix_path": "smalltalk", "train_batch": 1}, "test", Config)  # mixes nothing
    with pytest.raises(UserError, match=r"missing\.txt not found"):
        finetune(tmp_path, trained, mix_path=str(tmp_path / "missing.txt"))
    assert not list((tmp_path / "finetuned").glob("cpt*"))
