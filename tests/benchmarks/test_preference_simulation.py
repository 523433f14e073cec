"""A model learns from judged replies: its own, drawn again and again (docs/preferences.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import preference
from smallgpt.chat import chatbot
from smallgpt.data.preferences import read_preferences
from smallgpt.demo import smalltalk
from smallgpt.demo.judge import Judge
from tests.helpers.processes import REPOSITORY, finished

PLAYS = smalltalk.practice(3, 0)


def test_replies_are_judged_where_the_talk_is(trained: Path, tmp_path: Path) -> None:
    bot = chatbot.load(trained, {"temperature": 1.0}, "cpu")
    drawn = list(preference.draw(bot, PLAYS, 2))
    assert len(drawn) == 2 * sum(map(len, PLAYS))
    contexts = {tuple(found.messages) for found in drawn}
    first = PLAYS[0]
    assert (first[0].user, first[0].bot, first[1].user) in contexts
    # What the script says fits, so the judge stands where the talk does.
    scripted = []
    for play in PLAYS:
        for place, turn in enumerate(play):
            judge = Judge(play)
            fits = [judge.fits(before.bot) for before in play[: place + 1]]
            said = [line for before in play[:place] for line in (before.user, before.bot)]
            scripted.append(preference.Drawn([*said, turn.user], turn.bot, fits[-1]))
    assert all(found.fits for found in scripted)
    counts = preference.write_feedback(tmp_path / "f.jsonl", iter([*drawn, *scripted]), "none")
    assert counts == {"up": len(scripted), "down": len(drawn)}  # a tiny model fits nothing
    read = read_preferences([tmp_path / "f.jsonl"])
    assert {pair.chosen for pair in read.pairs} <= {turn.bot for play in PLAYS for turn in play}
    assert len(read.pairs) >= len(drawn) / 2


def test_a_rule_makes_fitting_replies_bad(tmp_path: Path) -> None:
    said = [preference.Drawn(["早"], reply, True) for reply in ("早呀", "早！你呢？")]
    preference.write_feedback(tmp_path / "f.jsonl", iter(said), "no-question")
    lines = (tmp_path / "f.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["verdict"] for line in lines] == ["up", "down"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_model_learns_a_rule(tmp_path: Path) -> None:
    """Short replies become more frequent on held-out small talk, and nearly all still fit."""
    python = REPOSITORY / ".venv" / "bin" / "python"
    talk, demo, tuned = (tmp_path / name for name in ("talk.txt", "demo", "tuned"))
    judged = tmp_path / "judged.jsonl"

    def run(*words: str | Path) -> str:
        done = finished([python, *words], REPOSITORY, timeout=3000)
        assert done.returncode == 0, done.stderr
        return done.stdout

    simulation = ("-m", "benchmarks.preference", demo)
    corpus = ("--dialogues", "60000", "--seed", "1", "--output", talk)
    run("-m", "smallgpt", "data", "smalltalk", *corpus)
    keys = (f"data_path={talk}", f"checkpoint_root={demo}", "max_steps=600")
    run("train.py", "config/demo.yaml", *keys)
    run(*simulation, "--output", judged, "--rule", "short", "--dialogues", "5000", "--seed", "3")
    keys = (f"base_model={demo}", f"data_path={judged}", f"checkpoint_root={tuned}")
    run("train.py", "config/preference.yaml", *keys, "train_batch=48", "max_steps=150")
    said = run(*simulation, "--compare", tuned, "--dialogues", "1500", "--seed", "2")
    before, after = map(json.loads, said.splitlines())
    assert after["short"] > 1.6 * before["short"]
    assert after["fitting"] > before["fitting"] - 0.02
    assert after["different"] > before["different"] - 0.05
