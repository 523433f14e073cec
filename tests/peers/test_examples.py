"""What the README and docs/serving.md show of the server's clients: curl, openai and llm."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import smallgpt
from smallgpt.sentiment import predictor, recipe
from smallgpt.server.classifier import ClassifierThread
from smallgpt.server.feedback import FeedbackFile
from tests.helpers.processes import REPOSITORY
from tests.helpers.reviews import classifier_config
from tests.helpers.server import Served, client, serving

pytestmark = pytest.mark.peers
TEXTS = ("README.md", "README.zh-CN.md", "docs/serving.md")
BLOCK = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
FIRST, SECOND = "早上好呀", "昨晚睡得好吗"


def blocks(text: str, beginning: str) -> list[str]:
    """The indented blocks of a page that begin so, each once."""
    found = [
        re.sub("^    ", "", block, flags=re.MULTILINE)
        for block in BLOCK.findall((REPOSITORY / text).read_text("utf-8"))
    ]
    return [block for block in dict.fromkeys(found) if block.startswith(beginning)]


def each_of(beginning: str) -> pytest.MarkDecorator:
    """The blocks of all pages that begin so; docs/serving.md has one at least."""
    assert blocks("docs/serving.md", beginning)
    found = {block: text for text in reversed(TEXTS) for block in blocks(text, beginning)}
    return pytest.mark.parametrize("block", found, ids=found.values())


@pytest.fixture(scope="module")
def server(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With the names that the pages use."""
    best = recipe.run(classifier_config(tmp_path_factory.mktemp("reviews"), trained, max_steps=2))
    classifier = ClassifierThread("sentimental_demo", best, predictor.load(best, "cpu"), 8)
    file = FeedbackFile(tmp_path_factory.mktemp("feedback") / "feedback.jsonl")
    bot = smallgpt.load(trained)
    with serving(bot, "box", classifier=classifier, feedback=file) as served:
        yield served


@pytest.fixture(scope="module")
def replies(trained: Path) -> tuple[str, str]:
    """What the model says to FIRST, and then to SECOND."""
    bot = smallgpt.load(trained)
    return bot.reply(FIRST), bot.reply(SECOND)


def run(server: Served, block: str, **variables: str) -> str:
    """The output of commands for a shell, with this server in the place of that on port 8000."""
    if shutil.which(program := block.split()[0]) is None and program != "llm":
        pytest.skip(f"{program} is not installed")
    done = subprocess.run(
        ["bash", "-e", "-c", block.replace("http://127.0.0.1:8000", server.url)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        env=os.environ
        | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@each_of("curl -N")
def test_curl_streams(server: Served, block: str, replies: tuple[str, str]) -> None:
    *lines, end = [line for line in run(server, block).splitlines() if line]
    assert end == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == replies[0]


@each_of("curl http://127.0.0.1:8000/v1/feedback")
def test_curl_corrects_a_reply(server: Served, block: str) -> None:
    assert run(server, block) == ""
    assert server.service.feedback
    (kept,) = map(json.loads, server.service.feedback.path.read_text("utf-8").splitlines())
    (shown,) = blocks("docs/serving.md", '{"time"')
    example = json.loads(shown.splitlines()[0])
    assert kept | {"time": example["time"]} == example


@each_of("curl http://127.0.0.1:8000/v1/classify")
def test_curl_classifies(server: Served, block: str) -> None:
    answer = json.loads(run(server, block))
    asked = json.loads(block.split("-d '")[1].split("'")[0])["input"]
    for text, verdict in zip(asked, answer["data"], strict=True):
        best = max(range(verdict["num_classes"]), key=verdict["probs"].__getitem__)
        assert verdict["label"] == answer["labels"][best]
        assert "".join(part["text"] for part in verdict["explanation"]) == text


@each_of("from openai")
def test_openai_in_python(
    server: Served, block: str, replies: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    exec(block.replace("http://127.0.0.1:8000", server.url), {})
    assert capsys.readouterr().out.rstrip("\n") == f"{replies[0]}\n{replies[0]}"


@each_of("llm ")
def test_llm(server: Served, block: str, replies: tuple[str, str], tmp_path: Path) -> None:
    (setup,) = {block for text in TEXTS for block in blocks(text, "- model_id")}
    file = tmp_path / "extra-openai-models.yaml"
    file.write_text(setup.replace("http://127.0.0.1:8000", server.url), "utf-8")
    said = run(server, block, LLM_USER_PATH=str(tmp_path))
    assert said.splitlines() == list(replies)
    whole = f"llm -m box --no-stream {FIRST}"
    assert run(server, whole, LLM_USER_PATH=str(tmp_path)).strip() == replies[0]


def test_prometheus_finds_the_figures_of_the_page(server: Served) -> None:
    with client(server) as http:
        http.get("/v1/models")
        figures = http.get("/metrics").text
    named = set(re.findall(r"smallgpt_\w+", (REPOSITORY / "docs/serving.md").read_text("utf-8")))
    assert len(named) > 8
    for name in named:
        assert re.search(rf"^{name}(_bucket)?[ {{]", figures, re.MULTILINE), name
