"""`smallgpt sentiment …` as it is typed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from smallgpt.config import SentimentConfig, load_config
from smallgpt.data.reviews import read_reviews, split_reviews
from smallgpt.sentiment import recipe
from tests.helpers.commands import python_here, refused_command, smallgpt
from tests.helpers.processes import REPOSITORY
from tests.helpers.reviews import classifier_config, write_reviews


@pytest.fixture(scope="module")
def model(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(recipe.run(classifier_config(tmp_path_factory.mktemp("commands"), trained)))


def test_texts_as_arguments_and_from_standard_input(model: str) -> None:
    given = smallgpt("sentiment", "predict", model, "今天好好", "错错错")
    assert given.exit_code == 0, given.output
    lines = [line.split("\t") for line in given.stdout.splitlines()]
    assert [(label, text) for label, _, text in lines] == [("0", "今天好好"), ("1", "错错错")]
    assert all(0.5 <= float(probability) <= 1 for _, probability, _ in lines)
    typed = smallgpt("sentiment", "predict", model, typed="今天好好\n\n错错错\n")
    assert typed.stdout == given.stdout
    assert "tells apart: 0, 1" in smallgpt("inspect", model).stdout


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_a_file_keeps_its_columns(model: str, tmp_path: Path, ending: str) -> None:
    source = write_reviews(tmp_path / "in.csv", 1100)
    with source.open("a", encoding="utf-8") as file:
        file.write("last,,\n")
    target = tmp_path / f"out.{ending}"
    done = smallgpt("sentiment", "predict", model, "--input", source, "--output", target)
    assert done.exit_code == 0, done.output
    assert "1,100 judged, 1 without a text" in done.stderr
    with source.open(encoding="utf-8", newline="") as file:
        before = list(csv.DictReader(file))
    with target.open(encoding="utf-8", newline="") as file:
        if ending == "jsonl":
            after = [json.loads(line) for line in file]
        else:
            after = list(csv.DictReader(file, delimiter="\t" if ending == "tsv" else ","))
    assert len(after) == 1101
    for old, new in zip(before, after, strict=True):
        assert {**new, **old} == new
    assert (after[-1]["verdict"], after[-1]["probability"]) == ("", "")
    right = [row["verdict"] == row["label"] for row in after[:-1]]
    assert sum(right) > 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.csv", target.name]


def test_a_broken_file_leaves_no_half_of_an_output(model: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"review": "好"}\n' * 600 + "broken\n", "utf-8")
    target = tmp_path / "out.csv"
    target.write_text("before", "utf-8")
    done = smallgpt("sentiment", "predict", model, "--input", source, "--output", target)
    assert done.exit_code == 2 and "line 601: not JSON" in done.stderr
    assert target.read_text("utf-8") == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.csv"]


def test_explanations(model: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = smallgpt("sentiment", "predict", model, "今天错<b>", "--explain", "--html", page)
    assert done.exit_code == 0, done.output
    verdict, shares = done.stdout.splitlines()
    assert verdict.endswith("\t今天错<b>") and shares.startswith("  错 +")
    text = page.read_text("utf-8")
    assert ">错</span>" in text and ">&lt;</span>" in text
    typed = [
        "predict",
        model,
        "错\udced",
        "--explain",
        "--html",
        str(page),
    ]  # bytes that are no text
    done = python_here(tmp_path, "-m", "smallgpt", "sentiment", *typed)
    assert done.exit_code == 0, done.output
    assert "\t错?\n" in done.stdout and ">?</span>" in page.read_text("utf-8")


def test_what_does_not_fit_is_refused(model: str, trained: Path, tmp_path: Path) -> None:
    source = write_reviews(tmp_path / "in.csv", 10)
    given = ("sentiment", "predict", model, "--input", source)
    to = ("--output", tmp_path / "o.csv")
    for told, arguments in {
        "go together": given,
        "no further texts": (*given, *to, "好"),
        "no column 'text'": (*given, *to, "--text-column", "text"),
        "is the input": (*given, "--output", source),
        "is a language model, not a classifier": ("sentiment", "predict", trained, "好"),
        "not found": ("sentiment", "predict", tmp_path / "none", "好"),
        "is a classifier (0, 1), not a model to talk with": ("chat", model),
        "is a classifier": ("evaluate", model, "--smalltalk"),
    }.items():
        assert told in refused_command(*arguments)


def test_the_script_and_a_misspelt_key(trained: Path, tmp_path: Path) -> None:
    write_reviews(tmp_path / "reviews.csv")
    config = REPOSITORY / "config" / "sentimental_demo.yaml"
    script = REPOSITORY / "sentimentalTrain.py"
    changes = ["sentimental_data_path=reviews.csv", f"base_model={trained.parent}", "device=cpu"]
    changes += ["max_steps=4", "eval_freq=2"]
    done = python_here(tmp_path, script, config, *changes)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("accuracy ") == 2  # ours and the baseline's
    assert "sentiment predict checkpoints/sentimental_demo/cpt" in done.stderr
    refused = python_here(tmp_path, script, config, *changes, "use_maks=False")
    assert refused.exit_code == 2 and "did you mean `use_mask`?" in refused.stderr


@pytest.mark.parametrize("number", range(4))
def test_shipped_configs_are_the_published_four(number: int) -> None:
    name = f"sentimental{number or ''}.yaml"
    chosen = load_config(REPOSITORY / "config" / name, [], SentimentConfig)
    assert (chosen.use_mask, chosen.frozen) == (number < 2, number % 2 == 1)
    assert (chosen.block_size, chosen.train_batch, chosen.test_batch) == (256, 24, 8)
    assert (chosen.lr, chosen.min_lr, chosen.warmup_steps) == (5e-5, 6e-6, 100)
    assert (chosen.decay_steps, chosen.max_epoch, chosen.eval_freq) == (5000, 20, 100)
    assert chosen.base_model == "checkpoints/pretrained/cpt300M.pth"
    assert chosen.sentimental_data_path == "data/ChnSentiCorp_htl_all.csv"


def test_text_for_the_language_model_has_no_review_of_the_test(
    trained: Path, tmp_path: Path
) -> None:
    chosen = classifier_config(tmp_path, trained)
    other = write_reviews(tmp_path / "other.csv", 5, labels="x")
    given = [f"sentimental_data_path={chosen.sentimental_data_path}", f"--also={other}"]
    yaml = REPOSITORY / "config" / "sentimental_demo.yaml"
    done = smallgpt("sentiment", "text", yaml, *given)
    assert done.exit_code == 0, done.output
    texts = done.stdout.removesuffix("\n\n").split("\n\n")
    own = read_reviews(Path(chosen.sentimental_data_path), "review", "label")
    split = split_reviews(own, 0.8, 0.1, 0)
    with other.open(encoding="utf-8", newline="") as file:
        further = [row["review"] for row in csv.DictReader(file)]
    kept = {own.texts[i] for i in split.test}
    assert texts == [text for text in own.texts + further if text not in kept]
    assert kept & set(further), "or the check of other files shows nothing"
