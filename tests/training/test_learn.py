"""`make learn`, from people's feedback to another model, with a tiny one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import smallgpt
from tests.helpers.commands import make_here

PROMPTS = ("早上好呀", "你叫什么名字", "晚安", "你好", "好吗", "睡得好吗")
QUICK = (
    "preference_likelihood=1 lr=3e-3 max_steps=20 min_steps=20 train_batch=4 eval_freq=10 "
    "tensorboard_path= device=cpu dtype=float32"
)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_it_learns_what_people_said_and_goes_no_further(tmp_path: Path, trained: Path) -> None:
    records = [
        {
            "model": "tiny",
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": "谢谢你"},
            ],
            "correction": "好呀",
        }
        for prompt in PROMPTS
    ]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    (tmp_path / "marked.jsonl").write_text("\n".join(lines), "utf-8")
    learn = ("learn", "FEEDBACK=marked.jsonl", f"BASE={trained}", f"LEARN_KEYS={QUICK}")
    out, said = make_here(tmp_path, *learn)
    learnt = tmp_path / "checkpoints" / "learn"
    assert smallgpt.load(learnt, {"temperature": 0}).reply("早上好呀") == "好呀"
    assert smallgpt.load(trained).reply("早上好呀") != "好呀"
    (loss,) = (line.split() for line in out.splitlines() if line.startswith("loss, nats"))
    assert len(loss) == 6 and loss[-1] != loss[-2]  # of both models
    assert said.endswith(
        "chat with it: .venv/bin/python chat.py checkpoints/learn\n"
        "serve it: .venv/bin/python -m smallgpt serve checkpoints/learn --feedback marked.jsonl\n"
        "when there is more feedback, learn it anew: make learn FEEDBACK=marked.jsonl "
        f"BASE={trained} LEARN_ROOT=checkpoints/learn2\n"
    )
    again, said = make_here(tmp_path, *learn)
    assert again == out
    assert "nothing to do: checkpoints/learn/cpt20 is at step 20 of 20" in said
