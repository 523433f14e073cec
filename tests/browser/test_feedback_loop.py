"""The loop closed: people mark and correct replies on the page, and the next model replies so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.actions import button, correct, messages, said, talk, tool
from tests.browser.conftest import Opener
from tests.helpers.commands import python_here, smallgpt
from tests.helpers.models import DIALOGUES
from tests.helpers.processes import REPOSITORY
from tests.helpers.server import serve_command

WANTED = "好呀"
CORRECTED = ("早上好呀", "你叫什么名字", "今天天气不错", "晚安", "你好", "好吗", "睡得好吗")
THANKS = "Saved on the server. Thank you."
QUICK = (
    *("lr=3e-3", "train_percent=0.7", "train_batch=4", "eval_freq=10", "tensorboard_path="),
    *("device=cpu", "dtype=float32", "mix_path="),  # the base has never seen small talk
)


def temperature(page: Page, value: str) -> None:
    """Set it; empty is the model's own."""
    button(page, "Settings").click()
    page.get_by_label("Temperature").fill(value)
    button(page, "Save").click()


def reply_to(page: Page, prompt: str) -> str:
    """The reply at the beginning of a new conversation."""
    button(page, "New conversation").click()
    talk(page, prompt)
    expect(messages(page)).to_have_count(2)
    return messages(page).nth(1).inner_text()


def another_than(page: Page, *replies: str) -> str:
    """Ask for other versions until one is none of the replies."""
    for _ in range(50):
        tool(page, 1, "Another reply").click()
        expect(button(page, "Send")).to_be_visible()
        text = messages(page).nth(1).inner_text()
        if text.strip() and text not in replies:
            return text
    raise AssertionError(f"it says nothing else than {replies}")


def mark(page: Page, name: str) -> None:
    tool(page, 1, name).click()
    expect(tool(page, 1, name)).to_have_attribute("aria-pressed", "true")


def speak_their_minds(page: Page) -> list[tuple[list[dict[str, str]], str]]:
    """Correct the replies to some prompts, and mark those to others; the messages that end with
    each reply, and what was thought of it."""
    thought: list[tuple[list[dict[str, str]], str]] = []
    for prompt in CORRECTED:
        reply = reply_to(page, prompt)
        correct(page, 1, WANTED)
        expect(messages(page)).to_have_text([prompt, WANTED])
        expect(page.get_by_text(THANKS)).to_be_visible()
        thought.append((said(prompt, reply), WANTED))
    usual = reply_to(page, "小明你好")
    temperature(page, "2")
    bad = another_than(page, usual, WANTED)
    mark(page, "Bad reply")
    temperature(page, "")
    good = another_than(page, bad, WANTED)
    mark(page, "Good reply")
    thought += [(said("小明你好", bad), "down"), (said("小明你好", good), "up")]
    only = reply_to(page, "谢谢你")
    mark(page, "Good reply")
    return [*thought, (said("谢谢你", only), "up")]


def learn(folder: Path, base: Path, kind: str, *keys: str) -> str:
    """Train on the feedback in the folder; what the command says."""
    done = python_here(
        folder,
        REPOSITORY / "train.py",
        REPOSITORY / "config" / "preference.yaml",
        f"base_model={base}",
        "data_path=feedback.jsonl",
        *(f"preference_loss={kind}", *QUICK, *keys),
    )
    assert done.exit_code == 0, done.output
    return done.stderr


def learnt_from(message: str) -> int:
    """How many preferences a run has, those to validate on included."""
    found = re.search(r"(\d+) (?:pairs|rated replies) to learn from, (\d+) to validate", message)
    assert found, message
    return int(found[1]) + int(found[2])


def replies_side_by_side(model: str, base: Path) -> list[list[str]]:
    """What each of two models replies to prompts.txt, as `evaluate` finds it."""
    compare = ("--data", "talk.txt", "--compare", base, "--prompts", "prompts.txt")
    done = smallgpt("evaluate", model, *compare, "--json", f"{model}.json")
    assert done.exit_code == 0, done.output
    figures = json.loads(Path(f"{model}.json").read_text("utf-8"))
    both = (figures, figures["compared_with"])
    return [[entry["reply"] for entry in one["prompts"]] for one in both]


def test_what_people_would_have_said_is_what_the_next_model_says(
    opened: Opener, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "feedback.jsonl"
    with serve_command(trained, tmp_path, "--feedback", "feedback.jsonl") as (url, _):
        page = opened(url)
        thought = speak_their_minds(page)
        page.close()  # before the server, which it would miss
    records = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert {record["model"] for record in records} == {trained.parent.name}
    assert thought == [
        (record["messages"], record.get("verdict") or record["correction"]) for record in records
    ]

    (tmp_path / "talk.txt").write_text(DIALOGUES, "utf-8")
    (tmp_path / "prompts.txt").write_text("\n".join(CORRECTED), "utf-8")
    for kind, *keys in (("dpo", "preference_likelihood=1"), ("kto",)):
        keys += ["max_steps=80", f"checkpoint_root={kind}"]
        message = learn(tmp_path, trained, kind, *keys)
        pairs = len(CORRECTED) + 1
        assert learnt_from(message) == (pairs if kind == "dpo" else 2 * pairs + 1)
        left_out = "1 verdict without a counterpart left out" in message
        assert left_out == (kind == "dpo")
        now, before = replies_side_by_side(kind, trained)
        assert WANTED in now and WANTED not in before
        with serve_command(Path(kind), tmp_path, "--feedback", "feedback.jsonl") as (url, _):
            page = opened(url)
            temperature(page, "0")
            for prompt in CORRECTED[:2]:
                assert reply_to(page, prompt) == WANTED
            mark(page, "Good reply")
            page.close()
        last = json.loads(file.read_text("utf-8").splitlines()[-1])
        assert last["messages"] == said(CORRECTED[1], WANTED)
        assert (last["model"], last["verdict"]) == (kind, "up")

    # A record is deleted with its line, and what is trained from then on does not know it.
    lines = file.read_text("utf-8").splitlines(keepends=True)
    asked = [json.loads(line)["messages"][-2]["content"] for line in lines]
    assert [number for number, one in enumerate(asked) if one == CORRECTED[0]] == [0]
    file.write_text("".join(lines[1:]), "utf-8")
    message = learn(tmp_path, trained, "dpo", "max_steps=1", "checkpoint_root=without")
    assert learnt_from(message) == pairs - 1
