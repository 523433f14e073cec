"""`smallgpt sentiment …` as it is typed."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import pytest

from smallgpt.config import SentimentConfig
from smallgpt.config_file import load_config
from smallgpt.data.reviews import read_reviews, split_reviews
from smallgpt.sentiment import judging, recipe
from tests.helpers.commands import python_here, refusal, refused_command, smallgpt
from tests.helpers.processes import REPOSITORY
from tests.helpers.reviews import classifier_config, write_reviews

DEMO = "checkpoints/sentimental_demo"


@pytest.fixture(scope="module")
def model(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(recipe.run(classifier_config(tmp_path_factory.mktemp("commands"), trained)))


def test_texts_as_arguments_and_from_standard_input(model: str) -> None:
    given = smallgpt("sentiment", "predict", model, "今天好好", "错错错")
    assert given.exit_code == 0, given.output
    lines = [line.split("\t") for line in given.stdout.splitlines()]
    assert [(label, text) for label, _, text in lines] == [("0", "今天好好"), ("1", "错错错")]
    assert all(0.5 <= float(probability) <= 1 for _, probability, _ in lines)
    assert smallgpt("sentiment", "predict", model, typed="今天好好\n错错错").stdout == given.stdout
    assert "tells apart: 0, 1" in smallgpt("inspect", model).stdout


def test_blank_texts_have_a_line_and_no_verdict(model: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for texts in (["今天好好", "", " \u3000", "错错错", "\u200b"], [""]):
        for given, typed in ((texts, ""), ([], "".join(f"{text}\n" for text in texts))):
            done = smallgpt("sentiment", "predict", model, *given, typed=typed)
            lines = [line.split("\t") for line in done.stdout.splitlines()]
            assert [text for _, _, text in lines] == texts
            assert [bool(label + p) for label, p, _ in lines] == [len(text) > 2 for text in texts]
            count = sum(len(text) <= 2 for text in texts)
            assert f"{count} text{'s' * (count > 1)} without a word: not judged\n" in done.stderr
        done = smallgpt("sentiment", "predict", model, *texts, "--html", page, "--force")
        assert done.stdout.count("\t\t") == page.read_text("utf-8").count("No text") == count
        assert "without a word: not judged\n" in done.stderr


def test_a_text_without_a_header(model: str, tmp_path: Path) -> None:
    """A review a line, which is no table: what is wrong and what to type."""
    source = tmp_path / "my.txt"
    source.write_text("今天好好\n错错错\n", "utf-8")
    given = ("sentiment", "predict", model, "--input", source, "--output", tmp_path / "o.csv")
    said = refused_command(*given)
    assert "no column 'review'" in said and "; set --text-column; or where each line is" in said
    assert f"standard input: < {source}\n" in said and "label_column" not in said
    (tmp_path / "my.jsonl").write_text('{"a": "好"}\n', "utf-8")
    said = refused_command(*given[:4], tmp_path / "my.jsonl", *given[5:])
    assert said.endswith("-> the columns are: a; set --text-column\n")


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
    excel = "utf-8" if ending == "jsonl" else "utf-8-sig"
    assert target.read_bytes().startswith(b"\xef\xbb\xbf") == (excel == "utf-8-sig")
    with target.open(encoding=excel, newline="") as file:
        if ending == "jsonl":
            after = [json.loads(line) for line in file]
        else:
            after = list(csv.DictReader(file, delimiter="\t" if ending == "tsv" else ","))
    assert len(after) == 1101
    for old, new in zip(before, after, strict=True):
        assert {**new, **old} == new
    nothing = None if ending == "jsonl" else ""
    assert (after[-1]["verdict"], after[-1]["probability"]) == (nothing, nothing)
    right = [row["verdict"] == row["label"] for row in after[:-1]]
    assert sum(right) > 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.csv", target.name]


def judged(model: str, source: Path, target: Path) -> str:
    """Judge a file, and return what was said."""
    done = smallgpt("sentiment", "predict", model, "--input", source, "--output", target)
    assert done.exit_code == 0, done.output
    return done.stderr


def table(path: Path, encoding: str = "utf-8-sig") -> list[list[str]]:
    with path.open(encoding=encoding, newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16"])
def test_the_output_is_in_the_encoding_of_the_input(
    model: str, tmp_path: Path, encoding: str
) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("备注,review\n甲,今天好好\n", encoding)
    said, name = judged(model, source, target), encoding.upper()
    assert said.splitlines().count(f"{source}: not UTF-8, read as {name}") == 1  # behind no bar
    assert f"({name})" in said
    header, row = table(target, encoding)
    assert header == ["备注", "review", "verdict", "probability"]
    assert row[:3] == ["甲", "今天好好", "0"]
    assert target.read_bytes()[:2] == source.read_bytes()[:2]


def test_columns_of_one_name_all_stay(model: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("review,note,note,verdict\n错错错,1,2,人工\n", "utf-8")
    assert "in 'verdict.2'" in judged(model, source, target)
    header, row = table(target)
    assert header == ["review", "note", "note.2", "verdict", "verdict.2", "probability"]
    assert row[:5] == ["错错错", "1", "2", "人工", "1"]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_lines_with_different_keys(model: str, tmp_path: Path, ending: str) -> None:
    """And half of a surrogate pair, which no encoding has."""
    source, target = tmp_path / "in.jsonl", tmp_path / f"out.{ending}"
    lines = ['{"review": "好\\ud83d", "n": 1}', "", '{"review": "错", "hotel": {"name": "甲"}}']
    source.write_text("\n".join(lines), "utf-8")
    judged(model, source, target)
    if ending == "csv":
        header, first, second = table(target)
        assert header == ["review", "n", "hotel", "verdict", "probability"]
        assert first[:3] == ["好\ufffd", "1", ""]
        assert second[:4] == ["错", "", '{"name": "甲"}', "1"]
        return
    first, second = map(json.loads, target.read_text("utf-8").splitlines())
    assert (first["review"], first["n"]) == ("好\ufffd", 1) and "hotel" not in first
    assert second["hotel"] == {"name": "甲"} and 0.5 <= second["probability"] <= 1


@pytest.mark.parametrize("content", ["id,review\n", "id,review", "id,review\n\n"])
def test_a_header_alone_stays(model: str, tmp_path: Path, content: str) -> None:
    (tmp_path / "in.csv").write_text(content, "utf-8")
    judged(model, tmp_path / "in.csv", tmp_path / "out.csv")
    assert table(tmp_path / "out.csv") == [["id", "review", "verdict", "probability"]]
    judged(model, tmp_path / "in.csv", Path(os.devnull))  # a device, which is written to


@pytest.mark.parametrize("name", ["o.xlsx", "o.csv.gz", "o.jsonl.xz", "o.json"])
def test_outputs_that_would_not_be_what_their_name_says(
    model: str, tmp_path: Path, name: str
) -> None:
    source = write_reviews(tmp_path / "in.csv", 5)
    given = ("sentiment", "predict", model, "--input", source, "--output", tmp_path / name)
    assert "cannot be written\n  -> name a .csv" in refused_command(*given)
    missing = tmp_path / "none" / "o.csv"
    said = refused_command(*given[:-1], missing)
    assert said.startswith(f"error: {missing} cannot be written")  # not behind a progress bar
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.csv"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("今天好好\n错错错\n".encode("gb18030"), "not UTF-8, read as GB18030"),
        ("\ufeff今天好好\r\n错错错".encode(), ""),
        ("今天好好\r错错错\r".encode(), ""),
    ],
)
def test_standard_input_of_other_systems(model: str, typed: bytes, said: str) -> None:
    done = smallgpt("sentiment", "predict", model, typed=typed)
    assert [line.split("\t")[2] for line in done.stdout.splitlines()] == ["今天好好", "错错错"]
    assert said in done.stderr


def test_bytes_that_are_no_text(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gbk, neither = (os.fsdecode(data) for data in ("错".encode("gbk"), b"\xff\xff"))
    assert smallgpt("sentiment", "predict", model, gbk).stdout.endswith("\t错\n")
    assert "an argument: neither" in refused_command("sentiment", "predict", model, neither)
    done = smallgpt("sentiment", "predict", model, typed=b"\xe5\xa5\xbd\n\xff\xff\n")
    assert done.exit_code == 2 and "line 2: neither UTF-8 nor GB18030" in done.stderr
    done = smallgpt("sentiment", "predict", model, typed="今天好好".encode() + b"\xe9\n")
    assert done.exit_code == 2 and "line 1: not UTF-8, as the rest is" in done.stderr
    monkeypatch.setattr("sys.stdin", None)
    assert "is closed" in refusal(lambda: list(judging.lines_of(sys.stdin)))


def test_texts_that_the_model_cannot_read(model: str, tmp_path: Path) -> None:
    said = "mostly of characters that the model has never seen: 1 text;"
    assert said in smallgpt("sentiment", "predict", model, "龘龖驫", "今天").stderr
    (tmp_path / "in.csv").write_text("review\n龘龖驫\n今天\n", "utf-8")
    assert said in judged(model, tmp_path / "in.csv", tmp_path / "out.csv")


def test_a_broken_file_leaves_no_half_of_an_output(model: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"review": "好"}\n' * 600 + "broken\n", "utf-8")
    target = tmp_path / "out.csv"
    target.write_text("before", "utf-8")
    given = ("sentiment", "predict", model, "--input", source, "--output", target, "--force")
    done = smallgpt(*given)
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
    label, probability, _ = verdict.split("\t")
    assert f"<b>{label} {100 * float(probability):.1f} %</b>" in text
    assert '<html lang="en">' in text and "padding:0 1.5em" in text
    # A character that is cut off.
    given = ("sentiment", "predict", model, "错\udced", "--explain", "--html", page)
    assert f"{page} is there already\n  -> name another, or add --force" in refused_command(*given)
    assert page.read_text("utf-8") == text
    done = smallgpt(*given, "--force")
    assert done.exit_code == 0, done.output
    assert "\t错\ufffd\n" in done.stdout and ">\ufffd</span>" in page.read_text("utf-8")


def test_what_does_not_fit_is_refused(model: str, trained: Path, tmp_path: Path) -> None:
    source = write_reviews(tmp_path / "in.csv", 10)
    given = ("sentiment", "predict", model, "--input", source)
    to = ("--output", tmp_path / "o.csv")
    there = write_reviews(tmp_path / "there.csv", 1)
    for told, arguments in {
        "is there already\n  -> name another, or add --force": (*given, "--output", there),
        "go together": given,
        "no further texts": (*given, *to, "好"),
        "no column 'text'": (*given, *to, "--text-column", "text"),
        "is an input": (*given, "--output", source),
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
    assert done.stdout.count("accuracy ") == 3  # ours, the baseline's, the commonest label's
    # The folder of the run is suggested, and its best model is what is taken.
    assert 'sentiment predict checkpoints/sentimental_demo "房间很干净"' in done.stderr
    used = python_here(tmp_path, "-m", "smallgpt", "sentiment", "predict", DEMO, "好")
    assert used.stdout.endswith("\t好\n"), used.output
    best = json.loads((tmp_path / DEMO / "report.json").read_text("utf-8"))["model"]
    assert f"taking {Path(best).name}, the best by validation" in used.stderr
    refused = python_here(tmp_path, script, config, *changes, "use_maks=False")
    assert refused.exit_code == 2 and "did you mean `use_mask`?" in refused.stderr


@pytest.mark.parametrize("number", range(4))
def test_shipped_configs_are_the_published_four(number: int) -> None:
    name = f"sentimental{number or ''}.yaml"
    chosen = load_config(REPOSITORY / "config" / name, [], SentimentConfig)
    assert (chosen.use_mask, chosen.frozen) == (number < 2, number % 2 == 1)
    assert (chosen.block_size, chosen.train_batch, chosen.max_positions) == (256, 24, 6144)
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
    written = tmp_path / "reviews.txt"
    assert smallgpt("sentiment", "text", yaml, *given, "--output", written).stdout == ""
    assert written.read_text("utf-8") == done.stdout.removesuffix("\n")
    again: list[str | Path] = ["sentiment", "text", yaml, *given, "--output"]
    assert "is there already" in refused_command(*again, written)
    assert smallgpt(*again, written, "--force").exit_code == 0
    assert "is an input" in refused_command(*again, other, "--force")
    own = read_reviews(Path(chosen.sentimental_data_path), "review", "label")
    split = split_reviews(own, 0.8, 0.1, 0)
    with other.open(encoding="utf-8", newline="") as file:
        further = [row["review"] for row in csv.DictReader(file)]
    kept = {own.texts[i] for i in split.test}
    assert texts == [text for text in own.texts + further if text not in kept]
    assert kept & set(further), "or the check of other files shows nothing"
