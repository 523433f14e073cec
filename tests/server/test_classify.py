"""POST /v1/classify against the predictor itself, and POST /v1/feedback against its file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from smallgpt.sentiment import predictor
from smallgpt.sentiment.explain import explain
from smallgpt.server.classifier import AT_ONCE, ClassifierThread
from smallgpt.server.feedback import FeedbackFile
from smallgpt.server.protocol import LONGEST_TEXT, Classification
from smallgpt.server.service import Limits
from tests.helpers.models import ScriptedBot
from tests.helpers.server import PATIENCE, client, serving

pytestmark = pytest.mark.parametrize("classified", [True], indirect=True, scope="session")
TEXTS = ["今天好好", "错错错", "", "你叫什么名字" * 30, "<b>好</b>"]


@pytest.fixture(scope="module")
def judge(classified: Path) -> predictor.Predictor:
    return predictor.load(classified, "cpu")


@pytest.fixture(scope="module")
def http(
    judge: predictor.Predictor, classified: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    thread = ClassifierThread("reviews", classified, judge, queue=8)
    feedback = FeedbackFile(tmp_path_factory.mktemp("feedback") / "new" / "feedback.jsonl")
    with (
        serving(ScriptedBot(["你好"]), classifier=thread, feedback=feedback) as served,
        client(served) as http,
    ):
        http.headers["X-File"] = str(feedback.path)
        yield http


def test_verdicts_are_the_predictors(http: httpx.Client, judge: predictor.Predictor) -> None:
    texts = TEXTS * (1 + AT_ONCE // len(TEXTS))
    answer = http.post("/v1/classify", json={"model": "reviews", "input": texts}).json()
    expected = judge.predict(texts)
    assert answer["object"] == "list" and answer["labels"] == judge.names
    assert [verdict["index"] for verdict in answer["data"]] == list(range(len(texts)))
    for verdict, prediction in zip(answer["data"], expected, strict=True):
        assert verdict["label"] == prediction.label
        probs = list(prediction.probabilities.values())
        assert verdict["probs"] == pytest.approx(probs, abs=1e-5)
        assert verdict["num_classes"] == len(judge.names)
        assert set(verdict) == {"index", "label", "probs", "num_classes"}
    tokens = sum(len(judge.tokenizer.encode(text)) for text in texts)
    assert answer["usage"] == {
        "prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0
    }  # fmt: skip
    (one,) = http.post("/v1/classify", json={"input": "错错错"}).json()["data"]
    assert one["label"] == judge.predict("错错错")[0].label
    assert http.post("/v1/classify", json={"input": []}).json()["data"] == []


def test_explanations_join_to_the_text(http: httpx.Client, judge: predictor.Predictor) -> None:
    answer = http.post("/v1/classify", json={"input": TEXTS, "explain": True}).json()
    for text, verdict in zip(TEXTS, answer["data"], strict=True):
        parts = verdict["explanation"]
        assert "".join(part["text"] for part in parts) == text
        shares = [part["weight"] for part in parts]
        assert shares == pytest.approx(explain(judge, text).shares, abs=1e-4)


def test_what_cannot_be_classified(http: httpx.Client) -> None:
    for body, status, param in (
        ({}, 400, "input"),
        ({"input": 5}, 400, "input"),
        ({"input": ["好", 5]}, 400, "input[1]"),
        ({"input": "好" * 40_000}, 400, "input"),
        ({"input": ["好"] * 257}, 400, "input"),
        ({"input": ["好"] * 17, "explain": True}, 400, "input"),
        ({"input": ["好", "好" * 4097], "explain": True}, 400, "input"),
        ({"input": "好", "model": "tiny"}, 404, "model"),
        ({"input": "好", "threshold": 1}, 400, "threshold"),
    ):
        answer = http.post("/v1/classify", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), body


def test_what_takes_too_long_is_broken_off(
    judge: predictor.Predictor, classified: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread, judged, go_on = ClassifierThread("reviews", classified, judge, queue=8), 0, Event()

    def wait(texts: list[str], begin: int) -> list[Classification]:
        nonlocal judged
        judged += 1
        assert go_on.wait(PATIENCE)
        return []

    monkeypatch.setattr(thread, "_judge", wait)
    with (
        serving(ScriptedBot(["你好"]), limits=Limits(seconds=0.2), classifier=thread) as served,
        client(served) as http,
    ):
        answer = http.post("/v1/classify", json={"input": ["好"] * (AT_ONCE + 1)})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "time_limit")
        go_on.set()
        # The rest of it was not begun.
        assert thread._executor.submit(lambda: judged).result(PATIENCE) <= 1


def test_the_classifiers_card(http: httpx.Client, judge: predictor.Predictor) -> None:
    chat, model = http.get("/v1/models").json()["data"]
    assert (chat["kind"], model["kind"], model["id"]) == ("chat", "classifier", "reviews")
    assert http.get("/health").json()["classifier"] == "reviews"
    card = http.get("/v1/models/reviews").json()
    assert card["labels"] == judge.names and card["sampling"] is None
    assert card["step"] == 40
    curve = card["curve"]
    assert [step for step, _ in curve["validation"]] == [10, 20, 30, 40]
    assert [step for step, _ in curve["training"]] == list(range(1, 41))


def test_feedback_is_appended(http: httpx.Client) -> None:
    talk = [{"role": "user", "content": "早"}, {"role": "assistant", "content": "你\n好"}]
    for verdict in ("up", "down"):
        body = {"model": "tiny", "messages": talk, "verdict": verdict}
        answer = http.post("/v1/feedback", json=body)
        assert (answer.status_code, answer.content) == (204, b"")
    body = {"model": "tiny", "messages": talk[:1] * 2, "verdict": "up"}
    assert http.post("/v1/feedback", json=body).json()["error"]["param"] == "messages[1].role"
    lines = Path(http.headers["X-File"]).read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["verdict"] for record in records] == ["up", "down"]
    assert all(record["messages"] == talk and record["model"] == "tiny" for record in records)


def test_corrections_are_appended(http: httpx.Client) -> None:
    talk = [{"role": "user", "content": "早"}, {"role": "assistant", "content": " 你好 "}]
    file = Path(http.headers["X-File"])
    before = len(file.read_text("utf-8").splitlines())
    longest = "好" * LONGEST_TEXT
    for correction in (" 早上好呀\n", longest, f" {longest} "):
        body = {"model": "tiny", "messages": talk, "correction": correction, "verdict": None}
        answer = http.post("/v1/feedback", json=body)
        assert (answer.status_code, answer.content) == (204, b"")
    added = [json.loads(line) for line in file.read_text("utf-8").splitlines()[before:]]
    assert [record["correction"] for record in added] == ["早上好呀", longest, longest]
    assert [list(record) for record in added] == [["time", "model", "messages", "correction"]] * 3
    assert all(record["messages"] == talk for record in added)
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("opinion", "message"),
    [
        ({}, "verdict: a verdict or a correction is needed"),
        ({"verdict": None, "correction": None}, "verdict: a verdict or a correction is needed"),
        (
            {"verdict": "down", "correction": "早"},
            "correction: a verdict and a correction are two requests",
        ),
        ({"correction": ""}, "correction: String should have at least 1 character"),
        ({"correction": " \n\u3000"}, "correction: String should have at least 1 character"),
        (
            {"correction": "好" * (LONGEST_TEXT + 1)},
            f"correction: String should have at most {LONGEST_TEXT} characters",
        ),
        ({"correction": "你好\n"}, "correction: it is the same as the reply"),
        ({"correction": ["早"]}, "correction: Input should be a valid string"),
    ],
)
def test_feedback_that_is_not_one_opinion_is_refused(
    http: httpx.Client, opinion: dict[str, Any], message: str
) -> None:
    talk = [{"role": "user", "content": "早"}, {"role": "assistant", "content": " 你好 "}]
    before = Path(http.headers["X-File"]).read_bytes()
    answer = http.post("/v1/feedback", json={"model": "tiny", "messages": talk, **opinion})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["message"], error["param"]) == (message, message.partition(":")[0])
    assert Path(http.headers["X-File"]).read_bytes() == before
