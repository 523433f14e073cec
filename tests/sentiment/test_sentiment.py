"""Training a classifier from end to end, on reviews made here."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import smallgpt
from smallgpt.checkpoints import checkpoint, run_folder
from smallgpt.config import SentimentConfig
from smallgpt.config_file import config_from_dict, config_to_yaml
from smallgpt.data.reviews import read_reviews
from smallgpt.model.gpt import GPT
from smallgpt.sentiment import ablation, baseline, recipe
from smallgpt.sentiment.explain import explain
from smallgpt.sentiment.task import ReviewTask
from smallgpt.training import memory
from smallgpt.training.trainer import Trainer
from smallgpt.utils.errors import UserError
from tests.helpers.commands import refusal
from tests.helpers.processes import REPOSITORY, forked, losses, same_weights
from tests.helpers.reviews import classifier_config, write_reviews


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "report.json").read_text("utf-8"))


def test_it_learns_and_reports(classified: Path) -> None:
    folder = classified.parent.parent
    result = report(folder)
    assert result["test"]["accuracy"] > 0.9
    assert result["reviews"] == {"train": 86, "validation": 10, "test": 24}
    assert result["reference"]["accuracy"] > 0.9
    losses = {line["step"]: line["validation_loss"] for line in result["validation"]}
    assert result["best"]["step"] == min(losses, key=losses.__getitem__)
    assert classified.name == f"cpt{result['best']['step']}"
    assert (folder / "run" / "report.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "run" / "test.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    right = [row["label"] == row["verdict"] for row in rows]
    assert np.mean(right) == result["test"]["accuracy"]
    # What is said of the test is what the saved model says.
    predictions = smallgpt.load(classified, kind="classifier").predict(
        [row["review"] for row in rows]
    )
    for row, prediction in zip(rows, predictions, strict=True):
        assert prediction.label == row["verdict"]
        assert prediction.probabilities["1"] == pytest.approx(float(row["p_1"]), abs=1e-4)


def test_transformers_gives_the_same_probabilities(classified: Path) -> None:
    import transformers

    transformers.logging.disable_progress_bar()
    predictor = smallgpt.load(classified, kind="classifier")
    pipeline: Any = transformers.pipeline("text-classification", model=str(classified), top_k=None)
    assert type(pipeline.model).__name__ == "GPT2ForSequenceClassification"
    padding = {} if predictor.config.use_mask else {"padding": "max_length"}
    texts = ["今天好好", "错错错", "他<pad>x\n好", "", "好<extract>错"]
    for batch_size in (1, 3):
        results = pipeline(texts, batch_size=batch_size, truncation=True, **padding)
        for text, theirs, ours in zip(texts, results, predictor.predict(texts), strict=True):
            for entry in theirs:
                expected = ours.probabilities[entry["label"]]
                assert entry["score"] == pytest.approx(expected, abs=1e-5), text


def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = classifier_config(tmp_path, trained, dropout=0.1)
    recipe.run(dataclasses.replace(plan, checkpoint_root=str(tmp_path / "whole" / "run")))
    step = Trainer.launch

    def interrupted(trainer: Trainer) -> Any:
        if trainer.completed == 16:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(Trainer, "launch", interrupted)
        recipe.run(plan, "sentimentalTrain.py X")
    assert ended.value.code == 143
    said = capsys.readouterr().err
    assert "sentimentalTrain.py X resume_from=latest" in said
    assert "or use the model as it is now: " in said
    assert [p.name for p in run_folder.checkpoints(tmp_path / "run")] == ["cpt10", "cpt17"]
    recipe.run(dataclasses.replace(plan, resume_from="latest"))
    folders = (tmp_path / "whole", tmp_path)
    one, other = map(report, folders)
    for key in ("accuracy", "roc_auc", "calibration_error", "confusion"):
        assert one["test"][key] == other["test"][key]
    without = [[{**line, "seconds": 0} for line in r["validation"]] for r in (one, other)]
    assert without[0] == without[1]
    weights = [checkpoint.load(f / "run" / "cpt40", classifier=True).weights for f in folders]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("end", ["done", "stopped", "failed"])
def test_the_best_model_can_wait_in_memory_for_the_next_save(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """As on a GPU, where writing each takes longer than training on to a better one."""
    frequencies: dict[str, Any] = {"eval_freq": 2, "save_freq": 15, "keep_last": 0, "lr": 0.2}
    plan = classifier_config(tmp_path, trained, **frequencies)
    whole = tmp_path / "whole"
    recipe.run(dataclasses.replace(plan, checkpoint_root=str(whole / "run")))
    launch = Trainer.launch

    def holding(trainer: Trainer) -> Any:
        trainer.holds_best = True
        if trainer.completed == 27 and end == "stopped":
            os.kill(os.getpid(), signal.SIGTERM)
        if trainer.completed == 27 and end == "failed":
            raise torch.OutOfMemoryError("no more")
        return launch(trainer)

    monkeypatch.setattr(Trainer, "launch", holding)
    ends: dict[str, Any] = {"stopped": SystemExit, "failed": UserError}
    with pytest.raises(ends[end]) if end in ends else nullcontext():
        recipe.run(plan)

    expected, lowest, held = [], math.inf, 0
    scores = {entry["step"]: entry["validation_loss"] for entry in report(whole)["validation"]}
    last, saves = {"done": (40, [15, 30, 40]), "stopped": (28, [15, 28]), "failed": (27, [15])}[end]
    for step in range(1, last + 1):
        if scores.get(step, math.inf) < lowest:
            lowest, held = scores[step], step
        if step in saves or step == last:
            expected += [held] * (held not in (0, step)) + [step] * (step in saves)
            held = 0
    saved = run_folder.checkpoints(tmp_path / "run")
    assert [path.name for path in saved] == [f"cpt{step}" for step in expected]
    assert len(expected) > len(saves), "no best was held"
    kept = {path.name: path for path in run_folder.checkpoints(whole / "run")}
    for path in saved:
        if path.name in kept:
            assert same_weights(path, kept[path.name])
            stored = [checkpoint.load(p, classifier=True) for p in (path, kept[path.name])]
            scored = [s.manifest.get("validation_loss") for s in stored]
            assert scored[0] == scored[1]


def test_metrics_and_checkpoints_of_a_run(trained: Path, tmp_path: Path) -> None:
    board = tmp_path / "board"
    frequencies = {"eval_freq": 2, "save_freq": 15, "tensorboard_path": str(board)}
    recipe.run(classifier_config(tmp_path, trained, lr=0.2, **frequencies))
    written = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8")
    lines = [json.loads(line) for line in written.splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 41))
    validations = [line for line in lines if "validation_loss" in line]
    history = report(tmp_path)["validation"]
    for key in ("step", "validation_loss", "validation_accuracy"):
        assert [line[key] for line in validations] == [entry[key] for entry in history]
    assert list(board.glob("events.out.tfevents.*"))
    # Saved wherever it was the best so far, at save_freq, and at the end; not at every validation.
    best = [
        entry["step"]
        for number, entry in enumerate(history)
        if entry["validation_loss"] < min([9.0, *(e["validation_loss"] for e in history[:number])])
    ]
    assert len(best) < len(history)
    saved = [p.name for p in run_folder.checkpoints(tmp_path / "run")]
    assert saved == [f"cpt{step}" for step in sorted({*best, 15, 30, 40})]


@pytest.mark.parametrize(
    "changes",
    [
        {"lm_weight": 0.3, "character_dropout": 0.2, "reference_weight": 0.5, "train_batch": 7},
        {"frozen": True, "use_mask": False, "accumulate": 2, "train_batch": 10},
        {"train_batch": 9, "max_positions": 50},
    ],
)
def test_the_number_of_processes_does_not_change_the_run(
    trained: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Also where the last batch of an epoch has fewer reviews than there are parts, and where the
    processes have unequal numbers of parts."""
    alone = tmp_path / "alone"
    alone.mkdir()
    write_reviews(tmp_path / "reviews.csv", 90, seed=3)
    plan = classifier_config(tmp_path, trained, max_steps=20, eval_freq=5, **changes)
    whole = dataclasses.replace(plan, max_positions=10**6)
    recipe.run(dataclasses.replace(whole, checkpoint_root=str(alone / "run")))
    (tmp_path / "run.yaml").write_text(config_to_yaml(plan), "utf-8")
    script = REPOSITORY / "sentimentalTrain.py"
    done = forked(tmp_path, "run.yaml", processes=3, program=script)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-4)
    many, one = report(tmp_path), report(alone)
    for key in ("validation_loss", "validation_accuracy"):
        figures = [[line[key] for line in result["validation"]] for result in (many, one)]
        assert figures[0] == pytest.approx(figures[1], rel=1e-3)
    assert many["test"]["confusion"] == one["test"]["confusion"]
    assert done.stdout.count("baseline") == 1
    for said in ("3 processes", "step 20: validation", "use it: "):
        assert done.stderr.count(said) == 1, done.stderr


def test_out_of_memory_says_what_to_lower(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ReviewTask, "loss", fail)
    said = refusal(lambda: recipe.run(classifier_config(tmp_path, trained)))
    assert "out of memory at step 1" in said and "lower max_positions (now 6,144)" in said


def test_a_gpu_that_is_too_small_is_told_before_training(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe.run(classifier_config(tmp_path, trained, max_steps=1))
    assert "memory: about 0.4 GiB for training" in capsys.readouterr().err

    def check(config: Any, here: Any, model: Any, parts: Iterator[memory.Part], *_: Any) -> float:
        settings, positions, _, _ = zip(*parts, strict=True)
        assert settings[0] == "max_positions: 6144"
        assert positions[0] == 8 * positions[-1]  # the 8 reviews of a step, and one of them
        raise UserError("it has too little", f"set {settings[-1]}")

    monkeypatch.setattr(memory, "check", check)
    other = classifier_config(tmp_path, trained, checkpoint_root=str(tmp_path / "other"))
    assert "set max_positions: " in refusal(lambda: recipe.run(other))


def test_on_resume_the_shape_is_the_checkpoints(trained: Path, tmp_path: Path) -> None:
    recipe.run(classifier_config(tmp_path, trained, max_steps=4))
    more = classifier_config(tmp_path, trained, max_steps=6, n_layer=3, resume_from="latest")
    assert recipe.run(more).exists()
    again = dataclasses.replace(more, max_steps=8)
    said = refusal(lambda: recipe.run(again, typed=frozenset({"n_layer"})))
    assert "n_layer is 3, but the checkpoint's is 2" in said


STARS = {"0": "差评", "1": "好评"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "reviews.csv has changed"),
        ({"split_seed": 1}, "split_seed was 0, now 1"),
        ({"train_percent": 0.7}, "train_percent was 0.8, now 0.7"),
        ({"validation_percent": 0.2}, "validation_percent was 0.1, now 0.2"),
        ({"label_map": dict(zip("01", ["好评", "差评"], strict=True))}, "label_map was"),
    ],
)
def test_no_run_goes_on_with_other_reviews_in_the_test(
    trained: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    plan = classifier_config(tmp_path, trained, max_steps=2, label_map=STARS)
    recipe.run(plan)
    again = dataclasses.replace(plan, resume_from="latest", max_steps=3, **changes)
    if not changes:
        write_reviews(tmp_path / "reviews.csv", 122)
    problem = refusal(lambda: recipe.run(again))
    assert "trained on other reviews, or split differently" in problem and said in problem
    assert [p.name for p in run_folder.checkpoints(tmp_path / "run")] == ["cpt2"]
    # Back to what it was, under another name, it goes on.
    (tmp_path / "reviews.csv").unlink()
    same = write_reviews(tmp_path / "same.csv")
    back = dataclasses.replace(plan, sentimental_data_path=str(same), resume_from="latest")
    recipe.run(dataclasses.replace(back, max_steps=3))


def test_a_base_that_has_learnt_from_the_test_is_said(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = classifier_config(tmp_path, trained, max_steps=1)
    base = str(recipe.run(plan))
    following = dataclasses.replace(plan, base_model=base, checkpoint_root=str(tmp_path / "same"))
    recipe.run(following)
    assert "base_model has learnt from" not in capsys.readouterr().err
    recipe.run(
        dataclasses.replace(following, split_seed=1, checkpoint_root=str(tmp_path / "other"))
    )
    assert "base_model has learnt from" in capsys.readouterr().err


def test_stars_and_characters_that_the_base_does_not_know(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{n},{n % 5 + 1},龘龖驫{'好错'[n % 5 < 2]}{n}" for n in range(100)]
    (tmp_path / "reviews.csv").write_text("\n".join(["id,label,review", *rows]), "utf-8")
    stars = {"1": "差评", "2": "差评", "4": "好评", "5": "好评"}
    path = recipe.run(classifier_config(tmp_path, trained, max_steps=1, label_map=stars))
    said = capsys.readouterr().err
    assert "20 rows left out" in said and "(好评: 40, 差评: 40)" in said
    assert "does not know" in said and "such as 龘龖驫" in said
    assert smallgpt.load(path, kind="classifier").names == ["好评", "差评"]
    assert smallgpt.load(path, kind="classifier").config.label_map == stars


def test_a_classifier_that_learnt_nothing_is_told_apart(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{n},{int(n % 10 == 0)},好{n}" for n in range(100)]
    (tmp_path / "reviews.csv").write_text("\n".join(["id,label,review", *rows]), "utf-8")
    recipe.run(classifier_config(tmp_path, trained, max_steps=1, lr=1e-9, min_lr=0.0))
    said, commonest = capsys.readouterr(), report(tmp_path)["commonest"]
    assert commonest["label"] == "0" and commonest["accuracy"] > 0.8
    assert f"always saying 0, the most frequent: accuracy {100 * commonest['accuracy']:.2f} %" in (
        said.out
    )
    better = report(tmp_path)["test"]["accuracy"] > commonest["accuracy"]
    assert ("no better than always saying 0" in said.err) != better


def test_patience_ends_the_run(trained: Path, tmp_path: Path) -> None:
    # The rate is so low that validation stays where it is, up to rounding.
    still = {"lr": 1e-9, "min_lr": 0.0, "eval_freq": 1}
    recipe.run(classifier_config(tmp_path, trained, patience=2, **still))
    steps = [line["step"] for line in report(tmp_path)["validation"]]
    assert steps[-1] == report(tmp_path)["best"]["step"] + 2 < 40


def test_a_classifier_is_a_base_too(trained: Path, tmp_path: Path) -> None:
    first, same, other = (tmp_path / name for name in ("first", "same", "other"))
    for folder in (first, same, other):
        folder.mkdir()
    path = recipe.run(classifier_config(first, trained))
    recipe.run(classifier_config(same, path, lr=1e-9, min_lr=0.0, max_steps=1))
    assert report(same)["test"]["confusion"] == report(first)["test"]["confusion"]
    write_reviews(other / "reviews.csv", labels="ab")
    assert recipe.run(classifier_config(other, path.parent, max_steps=2)).exists()


def test_fewer_reviews_than_a_batch_and_one_of_a_million_characters(
    trained: Path, tmp_path: Path
) -> None:
    write_reviews(tmp_path / "reviews.csv", 12)
    huge = "好走" * 500_000
    with (tmp_path / "reviews.csv").open("a", encoding="utf-8") as file:
        file.write("".join(f"{number},0,{huge[: 400_000 + number]}\n" for number in range(3)))
        file.write(f"last,0,{huge}\n")
    settings = classifier_config(tmp_path, trained, max_steps=2, eval_freq=2, train_batch=64)
    (prediction,) = smallgpt.load(recipe.run(settings), kind="classifier").predict([huge])
    assert report(tmp_path)["reviews"]["train"] < 64
    assert 0 <= prediction.probability <= 1


@pytest.mark.parametrize("changes", [{"frozen": True}, {"use_mask": False}])
def test_language_model_loss_needs_text_that_learns(changes: dict[str, Any]) -> None:
    assert "lm_weight is 0.5; it needs" in refusal(
        lambda: config_from_dict({"lm_weight": 0.5} | changes, "test", SentimentConfig)
    )


def test_named_classes_pairs_of_characters_and_the_mean(trained: Path, tmp_path: Path) -> None:
    stored = checkpoint.load(trained)
    shape = dataclasses.replace(stored.config, ngram_order=2, ngram_rows=300, ngram_embd=8)
    weights = GPT(shape).state_dict() | stored.weights
    base = checkpoint.save(tmp_path / "base", 1, shape, stored.tokenizer, weights, {}, {})
    write_reviews(tmp_path / "reviews.csv", 150, labels="好坏中")
    settings = classifier_config(tmp_path, base, pooling="last_mean", reference_weight=0.5)
    predictor = smallgpt.load(recipe.run(settings), kind="classifier")
    assert report(tmp_path)["test"]["accuracy"] > 0.9
    assert predictor.names == sorted("好坏中")
    texts = ["错错错", "今天好"]
    before = predictor.predict(texts)
    assert before[0].label == "坏"
    assert sum(before[0].probabilities.values()) == pytest.approx(1)
    explanation = explain(predictor, "今天好好天气" * 9)
    assert sum(explanation.shares) == pytest.approx(explanation.difference, abs=0.05)
    ngrams = predictor.model.transformer.ngrams
    assert ngrams is not None
    next(ngrams.tables.parameters()).data.zero_()
    assert predictor.predict(texts)[0].probability != before[0].probability


def test_the_baseline_never_judges_what_it_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reviews = read_reviews(write_reviews(tmp_path / "reviews.csv"), "review", "label")
    learnt = np.arange(3, 98)
    judged = np.zeros(len(reviews), np.int64)
    real = baseline.probabilities

    def watched(reviews: Any, one: Any, other: Any) -> Any:
        assert not set(one) & set(other) and set(one) | set(other) == set(learnt)
        judged[other] += 1
        return real(reviews, one, other)

    monkeypatch.setattr(baseline, "probabilities", watched)
    soft = baseline.out_of_fold(reviews, learnt, seed=0)
    assert judged[learnt].tolist() == [1] * len(learnt)
    assert (soft.argmax(1) == reviews.labels[learnt]).mean() > 0.9
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-5)


def test_explanations_add_up(classified: Path) -> None:
    predictor = smallgpt.load(classified, kind="classifier")
    explanation = explain(predictor, "今天好好天气" * 9)
    assert sum(explanation.shares) == pytest.approx(explanation.difference, abs=0.05, rel=0.05)
    assert len(explanation.shares) == len(explanation.characters) == 54
    short = explain(predictor, "今天错<b>")
    # Without mask, filler is read between the text and the verdict; the character is still ahead.
    assert "错" in short.strongest(1 if predictor.config.use_mask else 2)
    assert "m今\x1b[0m" in short.to_terminal()


def test_ablation_goes_on_where_it_was_stopped(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = classifier_config(tmp_path, trained, max_steps=10)
    done: list[str] = []
    train = recipe.run

    def stopping(settings: SentimentConfig, command: str) -> Path:
        if len(done) == 3:
            done.append("stopped")
            raise KeyboardInterrupt
        done.append(settings.checkpoint_root)
        return train(settings, command)

    monkeypatch.setattr(recipe, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        ablation.run(chosen, 2, "X")
    path = ablation.run(chosen, 2, "X")
    assert len(done) == len(set(done)) == 9  # 4 cells, 2 seeds, and the stop
    table = path.read_text("utf-8")
    assert table in capsys.readouterr().out
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 5 + 2 + 5
    assert (path.parent / "ablation.png").exists()
    runs = [path.parent / "mask" / f"seed{n}" / "report.json" for n in range(2)]
    tests = [json.loads(run.read_text("utf-8"))["test"] for run in runs]
    accuracy = [100 * test["accuracy"] for test in tests]
    assert f"| mask | {np.mean(accuracy):.2f} ± {np.std(accuracy, ddof=1):.2f} |" in table


def test_an_ablation_keeps_to_its_settings_and_reviews(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = classifier_config(tmp_path, trained, max_steps=1)
    wrong = dataclasses.replace(chosen, base_model=str(tmp_path / "none"))
    assert "not found" in refusal(lambda: ablation.run(wrong, 1, "X", ["mask"]))
    table = ablation.run(chosen, 1, "X", ["mask"])  # nothing was done with the wrong ones
    before = table.read_text("utf-8")
    other = dataclasses.replace(chosen, lr=1e-4, max_steps=2, device="auto")
    said = refusal(lambda: ablation.run(other, 1, "X", ["mask"]))
    assert "max_steps was 1, now 2; lr was 0.005, now 0.0001" in said and "device" not in said
    write_reviews(tmp_path / "reviews.csv", 130)
    assert "the reviews have changed" in refusal(lambda: ablation.run(chosen, 2, "X", ["mask"]))
    assert table.read_text("utf-8") == before
    write_reviews(tmp_path / "reviews.csv")
    verdicts = table.parent / "mask" / "seed0" / "test.csv"
    first = verdicts.read_text("utf-8-sig")
    assert first.startswith("label,verdict,baseline,p_0,p_1,review")
    # Earlier versions had another name for the column.
    verdicts.write_text(first.replace(",baseline,", ",reference,"), "utf-8-sig")
    ablation.run(chosen, 2, "X", ["mask"])
    assert "2 seeds each" in table.read_text("utf-8")


def test_one_cell_may_have_the_language_model_loss(trained: Path, tmp_path: Path) -> None:
    chosen = classifier_config(tmp_path, trained, max_steps=2, lm_weight=0.5)
    assert "cannot have it" in refusal(lambda: ablation.run(chosen, 1, "X"))
    assert "no cell 'msk'" in refusal(lambda: ablation.run(chosen, 1, "X", ["msk"]))
    table = ablation.run(chosen, 1, "X", ["mask"]).read_text("utf-8")
    assert "| mask |" in table and "frozen" not in table and "| baseline |" in table
