"""Preferences in every format that says the same are the same; what is broken is named."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallgpt.data import text as text_module
from smallgpt.data.corpus import open_corpus
from smallgpt.data.dialogue_formats import read_dialogues, text_chunks
from smallgpt.data.preferences import (
    MOST_REPLIES,
    PreferencePair,
    Preferences,
    RatedReply,
    read_preferences,
)
from smallgpt.server.feedback import FeedbackFile
from smallgpt.server.protocol import Message
from smallgpt.utils.errors import UserError
from tests.helpers.commands import refusal, refused_command, smallgpt

BEFORE, CHOSEN, REJECTED = "周末去爬山吗", "好呀，几点出发？", "不知道。"
PAIR = PreferencePair([BEFORE], CHOSEN, REJECTED)
LONG = PreferencePair(["在吗", "在的，怎么了", "我今天面试没过"], "别灰心，下次会更好的", "哦")


def messages(*said: str, role: str = "role", content: str = "content") -> list[dict[str, str]]:
    names = ("user", "assistant") if role == "role" else ("human", "gpt")
    return [{role: names[n % 2], content: text} for n, text in enumerate(said)]


def reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def sharegpt(*said: str) -> list[dict[str, str]]:
    return messages(*said, role="from", content="value")


def hh(*said: str) -> str:
    names = itertools.cycle(("Human", "Assistant"))
    return "".join(f"\n\n{name}: {text}" for name, text in zip(names, said, strict=False))


def written(path: Path, *records: Any) -> Path:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), "utf-8")
    return path


def read(path: Path, *records: Any) -> Preferences:
    return read_preferences([written(path / "x.jsonl", *records)])


def refusal_of(path: Path, *records: Any) -> str:
    return refusal(lambda: read(path, *records))


Write = Callable[[PreferencePair], Any]
LAST: dict[str, Write] = {  # formats that hold one utterance before the reply
    "texts": lambda p: {"prompt": p.messages[0], "chosen": p.chosen, "rejected": p.rejected},
    "orca": lambda p: {
        "system": "你是助手",
        "question": p.messages[0],
        "chosen": p.chosen,
        "rejected": p.rejected,
    },
    "alpaca": lambda p: {
        "instruction": p.messages[0],
        "input": "",
        "system": "",
        "chosen": p.chosen,
        "rejected": p.rejected,
    },
    "older alpaca": lambda p: {"instruction": p.messages[0], "output": [p.chosen, p.rejected]},
    "ranking": lambda p: {"prompt": p.messages[0], "replies": [p.chosen, p.rejected]},
    "rrhf": lambda p: {
        "query": p.messages[0],
        "responses": [p.rejected, p.chosen],
        "scores": [-1.5, 2],
    },
    "ultrafeedback": lambda p: {
        "source": "sharegpt",
        "instruction": p.messages[0],
        "models": ["a", "b"],
        "completions": [
            {"response": p.rejected, "model": "a", "overall_score": 3.5},
            {"response": p.chosen, "model": "b", "overall_score": 8},
        ],
        "correct_answers": ["None"],
    },
    "ultrafeedback_binarized": lambda p: {
        "prompt": p.messages[0],
        "messages": messages(*p.messages, p.chosen),
        "chosen": messages(*p.messages, p.chosen),
        "rejected": messages(*p.messages, p.rejected),
        "score_chosen": 8.0,
        "score_rejected": 3.5,
    },
}
ANY: dict[str, Write] = {  # formats that hold all that was said before
    "messages": lambda p: {
        "prompt": [{"role": "system", "content": "你是助手"}, *messages(*p.messages)],
        "chosen": [reply(p.chosen)],
        "rejected": [reply(p.rejected)],
    },
    "implicit": lambda p: {
        "chosen": messages(*p.messages, p.chosen),
        "rejected": messages(*p.messages, p.rejected),
    },
    "hh": lambda p: {
        "chosen": hh(*p.messages, p.chosen),
        "rejected": hh(*p.messages, p.rejected),
    },
    "hh with prompt": lambda p: {
        "prompt": hh(*p.messages) + "\n\nAssistant:",
        "response": p.chosen,
        "chosen": p.chosen,
        "rejected": p.rejected,
    },
    "nectar": lambda p: {
        "prompt": hh(*p.messages) + "\n\nAssistant: ",
        "answers": [
            {"answer": p.rejected, "model": "a", "rank": 2.0},
            {"answer": p.chosen, "model": "b", "rank": 1.0},
        ],
        "turns": 1,
    },
    "sharegpt": lambda p: {
        "conversations": sharegpt(*p.messages),
        "chosen": {"from": "gpt", "value": p.chosen},
        "rejected": {"from": "gpt", "value": p.rejected},
    },
    "alpaca with history": lambda p: {
        "instruction": p.messages[-1],
        "history": [p.messages[n : n + 2] for n in range(0, len(p.messages) - 1, 2)],
        "chosen": p.chosen,
        "rejected": p.rejected,
    },
    "conversational ranking": lambda p: {
        "prompt": messages(*p.messages),
        "completions": [[reply(p.chosen)], reply(p.rejected)],
    },
    "correction": lambda p: {
        "time": 1764000000,
        "model": "box",
        "messages": messages(*p.messages, p.rejected),
        "correction": p.chosen,
    },
}


@pytest.mark.parametrize("form", [*LAST, *ANY])
def test_a_pair_is_the_same_in_every_format(tmp_path: Path, form: str) -> None:
    pairs = [PAIR] if form in LAST else [PAIR, LONG]
    records = [(LAST | ANY)[form](pair) for pair in pairs]
    lines = written(tmp_path / "x.jsonl", *records)
    (tmp_path / "x.json").write_text(json.dumps(records, indent=1), "utf-8")
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    expected = read_preferences([lines])
    assert expected.pairs == pairs
    for name in ("x.json", "x.jsonl.gz"):
        assert read_preferences([tmp_path / name]) == expected
    assert expected.unpaired == 0
    assert expected.rated == [
        RatedReply(pair.messages, text, text == pair.chosen)
        for pair in pairs
        for text in (pair.chosen, pair.rejected)
    ]
    dialogues = [[*pair.messages, pair.chosen] for pair in pairs]
    assert list(read_dialogues(lines)) == dialogues


# What one line can hold; what begins with a mark of hh-rlhf begins with newlines, so none does.
LINE = st.text("早上好呀你在吗？，。 hi:Human🙂", min_size=1, max_size=9).filter(
    lambda text: text == text.strip()
)
PAIRS = st.builds(
    PreferencePair,
    st.integers(0, 2).flatmap(lambda n: st.lists(LINE, min_size=2 * n + 1, max_size=2 * n + 1)),
    LINE,
    LINE,
).filter(lambda pair: pair.chosen != pair.rejected)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PAIRS, min_size=1, max_size=4), st.sampled_from([7, 1 << 20]))
def test_any_pair_survives_every_format(
    tmp_path: Path, pairs: list[PreferencePair], chunk_bytes: int
) -> None:
    distinct = [pair for n, pair in enumerate(pairs) if pair not in pairs[:n]]
    for form, write in ANY.items():
        if form != "correction":  # whose last verdict on a reply counts
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(text_module, "CHUNK_BYTES", chunk_bytes)
                found = read(tmp_path, *map(write, pairs))
            assert found.pairs == distinct, form
            replies = [(p.messages, p.chosen, True) for p in distinct]
            replies += [(p.messages, p.rejected, False) for p in distinct]
            assert all(RatedReply(*reply) in found.rated for reply in replies)
            assert all((r.messages, r.reply, r.good) in replies for r in found.rated)


def test_tables(tmp_path: Path) -> None:
    rows = [["prompt", "chosen", "rejected"], [BEFORE, CHOSEN, REJECTED]]
    for name, delimiter in (("x.csv", ","), ("x.tsv", "\t"), ("x.txt", "\t")):
        with (tmp_path / name).open("w", encoding="gb18030", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows(rows)
        assert read_preferences([tmp_path / name]).pairs == [PAIR]
        assert list(read_dialogues(tmp_path / name)) == [[BEFORE, CHOSEN]]
    (tmp_path / "y.csv").write_text(
        "instruction,output,kto_tag\n早,好,True\n早,滚,False\n,,\n", "utf-8"
    )
    assert read_preferences([tmp_path / "y.csv"]).pairs == [PreferencePair(["早"], "好", "滚")]
    records = [
        ANY["messages"](LONG),
        {"prompt": messages("早"), "completion": [reply("好")], "label": True},
    ]
    columns = dict.fromkeys(records[0] | records[1])
    table = pyarrow.Table.from_pylist([columns | record for record in records])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    found = read_preferences([tmp_path / "x.parquet"])
    assert found.pairs == [LONG] and found.rated[2:] == [RatedReply(["早"], "好", True)]


def test_utterances_are_of_one_line(tmp_path: Path) -> None:
    record = {
        "prompt": [*messages("早上\n好 "), {"role": "user", "content": "在吗\r\n？"}],
        "chosen": " 在\n的 ",
        "rejected": "不\0在",
    }
    pair = PreferencePair(["早上 好 在吗 ？"], "在 的", "不 在")
    assert read(tmp_path, record).pairs == [pair]


@pytest.mark.parametrize(
    "record",
    [
        {"replies": ["甲", "乙", "丙"]},
        {"answers": [{"answer": "丙"}, {"answer": "甲"}, {"answer": "乙"}], "ranks": [3, 1, 2]},
        {"responses": ["丙", "乙", "甲"], "scores": [0, 0.5, 7]},
        {"completions": [{"text": "乙", "score": 2}, {"text": "甲", "score": 3},
                         {"text": "丙", "score": 1}]},
    ],
)  # fmt: skip
def test_of_a_ranking_every_better_reply_beats_every_worse_one(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    found = read(tmp_path, {"prompt": "早"} | record)
    better = [("甲", "乙"), ("甲", "丙"), ("乙", "丙")]
    assert found.pairs == [PreferencePair(["早"], *pair) for pair in better]
    rated = [("甲", True), ("乙", False), ("丙", False), ("乙", True)]
    assert found.rated == [RatedReply(["早"], *each) for each in rated]
    assert list(read_dialogues(tmp_path / "x.jsonl")) == [["早", "甲"]]


def test_ties_give_no_pair_and_a_long_ranking_is_thinned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read(tmp_path, {"prompt": "早", "replies": ["甲", "乙", "丙"], "scores": [1, 2, 1]})
    assert [(p.chosen, p.rejected) for p in found.pairs] == [("乙", "甲"), ("乙", "丙")]
    assert capsys.readouterr().err == ""
    replies = [f"第{n}好" for n in range(100)]
    pairs = read(tmp_path, {"prompt": "早", "replies": replies}).pairs
    assert len(pairs) == MOST_REPLIES * (MOST_REPLIES - 1) / 2
    places = [(replies.index(p.chosen), replies.index(p.rejected)) for p in pairs]
    assert all(better < worse for better, worse in places) and (0, 99) in places
    assert "1 list of more than 10 replies: 10 of each are compared" in capsys.readouterr().err


def thumb(good: Any, *said: str) -> dict[str, Any]:
    return {"prompt": said[0], "completion": said[1], "label": good}


def test_good_and_bad_replies_to_the_same_are_paired(tmp_path: Path) -> None:
    records = [
        thumb(True, "早", "好"),
        thumb(0, "早", "滚"),
        thumb("false", "晚安", "早"),
        thumb(1, "早", "早上好"),
        {"messages": messages("早", "哼"), "kto_tag": False},
        {"conversations": sharegpt("早", "嘿", "嘿", "嗯"), "label": True},
    ]
    found = read(tmp_path, *records)
    better = [("好", "滚"), ("好", "哼"), ("早上好", "滚"), ("早上好", "哼")]
    assert found.pairs == [PreferencePair(["早"], *pair) for pair in better]
    alone = [RatedReply(["晚安"], "早", False), RatedReply(["早", "嘿", "嘿"], "嗯", True)]
    assert found.rated[-2:] == alone and found.unpaired == 2 and len(found.rated) == 6


def test_many_verdicts_on_a_greeting_give_few_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read(tmp_path, *(thumb(n % 2, "早", f"好{n}") for n in range(400)))
    assert len(found.pairs) == MOST_REPLIES**2 and len(found.rated) == 400
    assert found.unpaired == 400 - 2 * MOST_REPLIES
    assert "2 lists of more than 10 replies: 10 of each are" in capsys.readouterr().err
    found = read(tmp_path, *(thumb(True, "早", f"好{n}") for n in range(400)))
    assert len(found.rated) == found.unpaired == 400 and capsys.readouterr().err == ""


def marked(path: Path, verdict: str, *said: str, system: str = "") -> None:
    """What the server writes when somebody marks a reply."""
    talk = [{"role": "system", "content": system}] if system else []
    wanted = [Message.model_validate(message) for message in talk + messages(*said)]
    FeedbackFile(path).append("box", wanted, verdict)


def test_what_the_server_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "feedback.jsonl"
    marked(path, "up", "早", "早上好\n呀", system="你是小积")
    marked(path, "down", "早", "滚")
    marked(path, "down", "在吗", "不在", "真的吗", "假的")
    record = json.loads(path.read_text("utf-8").splitlines()[-1])
    del record["verdict"]
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record | {"correction": "骗你的，我在"}) + "\n")
    marked(path, "up", "早", "滚")  # a slip,
    marked(path, "down", "早", "滚")  # put right
    found = read_preferences([path])
    assert found == Preferences(
        pairs=[
            PreferencePair(["早"], "早上好 呀", "滚"),
            PreferencePair(["在吗", "不在", "真的吗"], "骗你的，我在", "假的"),
        ],
        rated=[
            RatedReply(["早"], "早上好 呀", True),
            RatedReply(["早"], "滚", False),
            RatedReply(["在吗", "不在", "真的吗"], "骗你的，我在", True),
            RatedReply(["在吗", "不在", "真的吗"], "假的", False),
        ],
        unpaired=0,
    )
    assert capsys.readouterr().err == ""


def test_the_last_verdict_counts_also_in_another_file(tmp_path: Path) -> None:
    for n, verdict in enumerate(["up", "down"]):
        marked(tmp_path / f"{n}.jsonl", verdict, "早", "好")
    paths = [tmp_path / "0.jsonl", tmp_path / "1.jsonl"]
    for order in (paths, paths[::-1]):
        expected = RatedReply(["早"], "好", order[-1] == paths[0])
        assert read_preferences(order) == Preferences([], [expected], unpaired=1)


def test_what_is_left_out_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opposite = PreferencePair([BEFORE], REJECTED, CHOSEN)
    same = PreferencePair([BEFORE], "好", "好 ")
    correction = ANY["correction"](same)
    records = [LAST["texts"](PAIR), ANY["hh"](PAIR), LAST["texts"](same), correction]
    records += [LAST["texts"](opposite), ANY["implicit"](LONG)]
    found = read(tmp_path, *records)
    assert found.pairs == [PAIR, opposite, LONG]
    assert capsys.readouterr().err.splitlines() == [
        "preferences: 2 pairs left out: both replies are the same",
        "preferences: 1 pair left out: read before",
        "preferences: 2 pairs kept, though the opposite was read too",
    ]
    assert "no preference is left of" in refusal_of(tmp_path, LAST["texts"](same))


def test_the_fingerprint_tells_preferences_apart(tmp_path: Path) -> None:
    def fingerprint(*records: Any) -> str:
        return read(tmp_path, *records).fingerprint

    texts = LAST["texts"](PAIR)
    one = fingerprint(texts, ANY["hh"](LONG))
    assert one == fingerprint(ANY["implicit"](PAIR), ANY["sharegpt"](LONG))
    others = [
        fingerprint(texts),
        fingerprint(ANY["hh"](LONG), texts),
        fingerprint(texts, ANY["hh"](LONG), thumb(True, "早", "好")),
        fingerprint(texts, ANY["hh"](LONG), thumb(False, "早", "好")),
        fingerprint(texts | {"chosen": "好"}, ANY["hh"](LONG)),
    ]
    assert len({one, *others}) == 6


BAD: list[tuple[Any, str]] = [
    ({"prompt": "早", "chosen": "好"}, "no reply under 'rejected'; its keys are: prompt, chosen"),
    (
        {"prompt": "早", "chosen": None, "rejected": "滚"},
        "no reply under 'chosen'; its keys are: prompt, chosen, rejected",
    ),
    ({"prompt": "早", "choose": "好", "reject": "滚"}, "its keys are: prompt, choose, reject"),
    ({"chosen": "好", "rejected": "滚"}, "no prompt; its keys are: chosen, rejected"),
    (
        {"prompt": "早", "response": "好"},
        "nothing that says how good a reply is; its keys are: prompt, response",
    ),
    (["早", "好"], "a dialogue or a value alone, which says nothing of replies"),
    (3, "a dialogue or a value alone"),
    ({"prompt": "早", "chosen": "好", "rejected": " "}, "an empty utterance"),
    ({"prompt": "", "chosen": "好", "rejected": "滚"}, "an empty utterance"),
    ({"prompt": "早", "chosen": {"text": "好"}, "rejected": "滚"}, "no text under 'chosen'"),
    ({"prompt": [], "chosen": "好", "rejected": "滚"}, "an empty utterance"),
    (
        {"prompt": [{"role": "system", "content": "你是"}], "chosen": "好", "rejected": "滚"},
        "fewer than two utterances",
    ),
    (
        {"prompt": messages("早", "好"), "chosen": "好", "rejected": "滚"},
        "what was said before the replies ends with one of the assistant's",
    ),
    (
        {"messages": messages("早", "好"), "chosen": "好", "rejected": "滚"},
        "what was said before the replies ends with one of the assistant's",
    ),
    (
        {"chosen": messages("早", "好", "嗯", "好"), "rejected": messages("早", "滚")},
        "'chosen' and 'rejected' differ before the last utterance",
    ),
    (
        {"chosen": messages("早", "好"), "rejected": messages("晚", "滚")},
        "'chosen' and 'rejected' differ before the last utterance",
    ),
    (
        {
            "prompt": messages("早"),
            "chosen": messages("早", "好", "嗯", "好")[1:],
            "rejected": [reply("滚")],
        },
        "a reply under 'chosen' is of 3 utterances, not of one",
    ),
    ({"prompt": "早", "replies": ["好"]}, "fewer than two replies under 'replies'"),
    ({"prompt": "早", "replies": ["好", ""]}, "an empty utterance"),
    ({"prompt": "早", "replies": ["好", 3.5, {}]}, "no text under 'replies'"),
    (
        {"prompt": "早", "replies": [messages("好", "早")[::-1], "滚"]},
        "a reply under 'replies' is of 2 utterances, not of one",
    ),
    ({"prompt": "早", "replies": ["好", "滚"], "scores": [1]}, "not one of the scores for each"),
    ({"prompt": "早", "replies": ["好", "滚"], "ranks": [1, "x"]}, "a rank that is no number"),
    (
        {"prompt": "早", "replies": [{"text": "好", "score": 1}, {"text": "滚"}]},
        "a score that is no number",
    ),
    (
        {"prompt": "九乘九", "completions": ["先想", "再算"], "labels": [True, False]},
        "'labels' beside 'completions': steps of one reply, not several replies",
    ),
    (thumb("正面", "早", "好"), "'label' is '正面', neither true nor false"),
    (
        {"messages": messages("早", "好"), "verdict": "meh"},
        "'verdict' is 'meh', neither up nor down",
    ),
    ({"messages": messages("早", "好"), "correction": ""}, "an empty utterance"),
    ({"messages": messages("早"), "verdict": "up"}, "fewer than two utterances"),
    ({"messages": messages("早"), "correction": "好"}, "fewer than two utterances"),
    ({"prompt": "早", "label": True}, "its keys are: prompt, label"),
]


@pytest.mark.parametrize(("record", "reason"), BAD)
def test_a_broken_record_is_named(tmp_path: Path, record: Any, reason: str) -> None:
    good = LAST["texts"](PAIR)
    said = refusal_of(tmp_path, *[good] * 999, record, good)
    assert said.startswith(f"{tmp_path / 'x.jsonl'}, line 1,000: ") and reason in said
    assert '\n  -> a record is {"prompt": …, "chosen": …, "rejected": …}' in said
    (tmp_path / "x.json").write_text(json.dumps([good, record]), "utf-8")
    said = refusal(lambda: read_preferences([tmp_path / "x.json"]))
    assert said.startswith(f"{tmp_path / 'x.json'}, record 2: ") and reason in said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b"", "x.jsonl is empty"),
        ("x.jsonl", b"\n\n", "has no preference in it\n  -> a record is"),
        ("x.json", b"[]", "has no preference in it\n  -> a record is"),
        ("x.csv", b"prompt,chosen,rejected\n", "has no preference in it\n  -> a record is"),
        ("x.csv", b"prompt,chosen\nhi,yo\n", "line 2: no reply under 'rejected'"),
        ("x.txt", "早\n好\n".encode(), "is a text, which has no preferences\n  -> a record is"),
        ("x.jsonl", b"{\n", "line 1: not JSON"),
        ("x.jsonl", b"[" * 100_000, "the list is broken after record 0"),
        ("x.jsonl", bytes(range(1, 256)), "neither UTF-8 nor GB18030"),
        ("x.parquet", b"PAR1 and no more", "is damaged"),
        ("x.json", b'[{"prompt": "a", "chosen": "b", "rej', "the list is broken after record 0"),
    ],
)
def test_files_that_hold_none(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    good = written(tmp_path / "good.jsonl", LAST["texts"](PAIR))
    assert said in refusal(lambda: read_preferences([good, tmp_path / name]))
    missing = refusal(lambda: read_preferences([tmp_path / "missing.jsonl"]))
    assert f"{tmp_path / 'missing.jsonl'} not found" in missing


def test_a_huge_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "LONGEST", 1 << 21)
    good = json.dumps(LAST["texts"](PAIR))
    with gzip.open(tmp_path / "x.jsonl.gz", "wb", compresslevel=1) as file:
        file.write((good + '\n{"prompt": "').encode())
        file.writelines(itertools.repeat(b"a" * (1 << 20), 8))
    said = refusal(lambda: read_preferences([tmp_path / "x.jsonl.gz"]))
    assert "line 2 is longer than 2,097,152 characters" in said


# Of the same files as dialogues, the good replies are learnt.


def test_feedback_becomes_a_text_of_good_replies_and_corrections(tmp_path: Path) -> None:
    path, out = tmp_path / "feedback.jsonl", tmp_path / "out.txt"
    marked(path, "up", "早", "早上好呀", system="你是小积")
    marked(path, "down", "在吗", "不在")
    marked(path, "down", "在干嘛", "不告诉你")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(ANY["correction"](LONG)) + "\n")
    done = smallgpt("data", "convert", path, "--output", out)
    assert done.exit_code == 0, done.output
    assert f"{path}: 2 records left out, whose reply is marked as bad\n" in done.stderr
    assert f"{path}: 1 record with several replies, of which the best is read\n" in done.stderr
    assert out.read_text("utf-8") == "\n".join(
        ["早", "早上好呀", "", *LONG.messages, LONG.chosen, ""]
    )
    expected = open_corpus([out])
    found = open_corpus([path], text_chunks)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.tokenizer.characters == expected.tokenizer.characters
    for kind in ("openai", "sharegpt"):
        assert list(read_dialogues(path, kind)) == list(read_dialogues(out))


def test_bad_replies_alone_are_no_text(tmp_path: Path) -> None:
    marked(tmp_path / "x.jsonl", "down", "早", "滚")
    said = refused_command(
        "data", "convert", tmp_path / "x.jsonl", "--output", tmp_path / "out.txt"
    )
    assert "1 record left out, whose reply is marked as bad" in said and "no dialogue" in said


def test_other_labels_are_no_verdicts_on_dialogues(tmp_path: Path) -> None:
    records = [
        {"messages": messages("早", "好"), "label": "问候", "verdict": "无"},
        {"question": "早", "answer": "好", "answers": ["不"]},
        {"prompt": "早", "response": "好", "chosen": True},
        {"messages": messages("早", "好"), "correction": None, "verdict": "up"},
    ]
    path = written(tmp_path / "x.jsonl", *records)
    assert list(read_dialogues(path)) == [["早", "好"]] * 4


def test_columns_that_are_named_count(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", LAST["texts"](PAIR))
    columns = ("prompt", "rejected")
    assert list(read_dialogues(path, columns=columns)) == [[BEFORE, REJECTED]]
    written(path, {"label": "0", "prompt": "早"}, {"label": "1", "prompt": "好"})
    assert list(read_dialogues(path, columns=("label", "prompt"))) == [["0", "早"], ["1", "好"]]


def test_a_correction_counts_more_than_a_verdict_beside_it(tmp_path: Path) -> None:
    for verdict in ("up", "down"):
        path = written(tmp_path / "x.jsonl", ANY["correction"](LONG) | {"verdict": verdict})
        assert read_preferences([path]).pairs == [LONG]
        assert list(read_dialogues(path)) == [[*LONG.messages, LONG.chosen]]


NAMES = st.sampled_from(["prompt", "text", "score", "rank", "role", "content", "value"])
ATOMS: list[Any] = ["早", "", "\n\nHuman: 早\n\nAssistant:", hh("早", "好"), messages("早", "好")]
ATOMS += [None, True, 0, 1, -2.5, float("nan"), 10**400, messages("早"), messages("晚", "哦")]
VALUES = st.sampled_from(ATOMS) | st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
OTHERS = dict.fromkeys(("instruction", "messages", "history", "label", "scores", "ranks"), VALUES)
OTHERS |= {"prompt": VALUES, "verdict": st.sampled_from(["up", "down", "?", 1])}
NEEDED = ["chosen rejected", "output", "correction", "verdict", "replies"]
RECORDS = st.sampled_from(NEEDED).flatmap(
    lambda needed: st.fixed_dictionaries(
        {name: st.lists(VALUES) if name == "replies" else VALUES for name in needed.split()},
        optional={name: values for name, values in OTHERS.items() if name not in needed},
    )
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RECORDS)
def test_whatever_a_record_holds_it_is_read_or_refused(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    path = written(tmp_path / "x.jsonl", LAST["texts"](PAIR), record)
    try:
        found = read_preferences([path])
    except UserError as error:
        assert str(error).startswith(f"{path}, line 2: ")
    else:
        texts = [*(text for p in found.pairs for text in (*p.messages, p.chosen, p.rejected))]
        texts += [text for rated in found.rated for text in (*rated.messages, rated.reply)]
        assert all(text.strip() and "\n" not in text for text in texts)
        assert all(p.messages and p.chosen != p.rejected for p in found.pairs)
    with suppress(UserError):
        assert all(len(dialogue) > 1 for dialogue in read_dialogues(path))
