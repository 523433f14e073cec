"""Dialogues survive every format that can hold them; errors name the place of what is broken."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallgpt.data import dialogue_formats, json_files, tables
from smallgpt.data import text as text_module
from smallgpt.data.containers import recognise
from smallgpt.data.corpus import open_corpus
from smallgpt.data.dialogue_formats import read_dialogues, text_chunks
from smallgpt.data.dialogue_records import KINDS
from smallgpt.data.prepare import Survey, essence, write
from smallgpt.data.text import BLANK
from smallgpt.utils.errors import UserError
from tests.helpers.commands import refusal, refused_command, smallgpt

Dialogue = list[str]
SIMPLE = [["早上好呀", "早上好，昨晚睡得好吗？"], ["你在干嘛", "hello world 上班", "辛苦了", "嗯"]]
# What one line can hold, without white space around; every format must keep it.
LINE = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp", "Zs")), min_size=1
).filter(lambda text: text == text.strip() and text.strip(BLANK))
DIALOGUES = st.lists(st.lists(LINE, min_size=2, max_size=6), min_size=1, max_size=5)
PAIRS = st.lists(st.lists(LINE, min_size=2, max_size=2), min_size=1, max_size=5)


def roles(dialogue: Dialogue, names: tuple[str, str], role: str, content: str) -> list[Any]:
    return [{role: names[n % 2], content: text} for n, text in enumerate(dialogue)]


def openai(dialogue: Dialogue) -> Any:
    return {"messages": roles(dialogue, ("user", "assistant"), "role", "content")}


RECORDS: dict[str, Callable[[Dialogue], Any]] = {
    "openai": openai,
    "sharegpt": lambda said: {"conversations": roles(said, ("human", "gpt"), "from", "value")},
    "kdconv": lambda said: {"name": "x", "messages": [{"message": text} for text in said]},
    "lccc": list,
}
PAIR_RECORDS: dict[str, Callable[[Dialogue], Any]] = {
    "alpaca": lambda pair: {"instruction": pair[0], "input": "", "output": pair[1]},
    "table": lambda pair: {"id": 1, "prompt": pair[0], "response": pair[1]},
}


def as_lines(records: list[Any]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def check(path: Path, dialogues: list[Dialogue]) -> None:
    assert list(read_dialogues(path)) == dialogues


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("form", ["lines", "list", "indented", "ascii"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DIALOGUES, st.sampled_from([7, 1 << 20]))
def test_any_dialogue_survives_json(
    tmp_path: Path, kind: str, form: str, dialogues: list[Dialogue], chunk_bytes: int
) -> None:
    records = [RECORDS[kind](dialogue) for dialogue in dialogues]
    forms = {
        "lines": as_lines(records),
        "list": json.dumps(records, ensure_ascii=False),
        "indented": json.dumps(records, ensure_ascii=False, indent=2),
        "ascii": json.dumps(records),
    }
    path = tmp_path / ("x.jsonl" if form == "lines" else "x.json")
    path.write_text(forms[form], "utf-8")
    assert recognise(path) == ("lines" if form == "lines" else "list")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "CHUNK_BYTES", chunk_bytes)
        assert list(read_dialogues(path)) == list(read_dialogues(path, kind)) == dialogues


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PAIRS)
def test_any_pair_survives_tables_and_alpaca(tmp_path: Path, dialogues: list[Dialogue]) -> None:
    for kind, record in PAIR_RECORDS.items():
        (tmp_path / "x.jsonl").write_text(as_lines(list(map(record, dialogues))), "utf-8")
        check(tmp_path / "x.jsonl", dialogues)
        assert list(read_dialogues(tmp_path / "x.jsonl", kind)) == dialogues
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        with (tmp_path / f"x{suffix}").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerows([["prompt", "id", "response"], *([q, 1, a] for q, a in dialogues)])
        check(tmp_path / f"x{suffix}", dialogues)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DIALOGUES)
def test_any_dialogue_survives_parquet_and_the_way_through_our_text(
    tmp_path: Path, dialogues: list[Dialogue]
) -> None:
    pairs = [dialogue[:2] for dialogue in dialogues]
    for record, expected in ((openai, dialogues), (PAIR_RECORDS["table"], pairs)):
        rows = pyarrow.Table.from_pylist(list(map(record, expected)))
        pyarrow.parquet.write_table(rows, tmp_path / "x.parquet")
        check(tmp_path / "x.parquet", expected)
    write(dialogues, {tmp_path / "x.txt": 1.0})
    assert list(read_dialogues(tmp_path / "x.txt", "text")) == dialogues


def test_what_the_formats_say_besides(tmp_path: Path) -> None:
    """System messages, several messages of one speaker, newlines, history, LCCC's spaces."""
    path = tmp_path / "x.jsonl"
    for record, expected in [
        (
            {
                "messages": [
                    {"role": "system", "content": "你是助手"},
                    {"role": "user", "content": "早\n上好 "},
                    {"role": "user", "content": [{"type": "text", "text": "在吗"}]},
                    {"role": "assistant", "content": "在"},
                ]
            },
            ["早 上好 在吗", "在"],
        ),
        (
            {"instruction": "翻译", "input": "hi", "output": "你好", "history": [["问", "答"]]},
            ["问", "答", "翻译 hi", "你好"],
        ),
        (["你 好 hello  world 吗", "嗯 嗯 。"], ["你好hello  world吗", "嗯嗯。"]),
    ]:
        path.write_text(as_lines([record]), "utf-8")
        check(path, [expected])


def pair(prompt: str, reply: str, **more: Any) -> Callable[[str, str], Any]:
    return lambda said, answer: {prompt: said, reply: answer, **more}


@pytest.mark.parametrize(
    "record",
    [
        pair("prompt", "response"),
        pair("Question", "Answer", human_answers=["x"]),
        pair("q", "a", history=[]),
        pair("input", "target", kind="NLI"),
        pair("instruction", "response", context=""),
        pair("问题", "答案"),
        pair("prompt", "completion", label=True),
        lambda said, reply: {
            "prompt": [{"role": "user", "content": said}],
            "completion": [{"role": "assistant", "content": reply}],
        },
        lambda said, reply: {"dialog": [said, reply]},
        lambda said, reply: {"conversation": [{"human": said, "assistant": reply}]},
        lambda said, reply: {
            "conversations": roles([said, reply], ("user", "assistant"), "role", "content")
        },
        lambda said, reply: {
            "messages": roles([said, reply], ("小明", "小红"), "sender", "content")
        },
        lambda said, reply: {
            "conversation": roles([said, reply], ("user", "客服"), "speaker", "text")
        },
        lambda said, reply: roles([said, reply], ("user", "assistant"), "role", "content"),
    ],
)
def test_records_under_other_names(tmp_path: Path, record: Callable[[str, str], Any]) -> None:
    dialogues = [dialogue[:2] for dialogue in SIMPLE]
    records = [record(*dialogue) for dialogue in dialogues]
    forms = {"x.jsonl": as_lines(records), "x.json": json.dumps(records, indent=1)}
    if isinstance(records[0], list):  # a list of messages alone is one dialogue
        forms["y.json"] = json.dumps(records[0], indent=1)
    else:
        forms["y.json"] = json.dumps(records[0], ensure_ascii=False, indent=1)
    for name, text in forms.items():
        (tmp_path / name).write_text(text, "utf-8")
        check(tmp_path / name, dialogues[:1] if name == "y.json" else dialogues)


def test_every_kind_is_read_when_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("早\n好\n", "utf-8")
    for kind, record in (RECORDS | PAIR_RECORDS).items():
        (tmp_path / kind).write_text(as_lines([record(["早", "好"])]), "utf-8")
    told = smallgpt("data", "convert", "--help").stdout
    for kind in KINDS:
        assert kind in told
        assert list(read_dialogues(tmp_path / kind, kind)) == [["早", "好"]]


@pytest.mark.parametrize(
    "history",
    [[["问", "答"]], ["问", "答"], roles(["问", "答"], ("user", "assistant"), "role", "content")],
)
def test_a_history_comes_first(tmp_path: Path, history: list[Any]) -> None:
    record = {"prompt": "早", "response": "好", "history": history}
    (tmp_path / "x.jsonl").write_text(as_lines([record, record | {"history": None}]), "utf-8")
    check(tmp_path / "x.jsonl", [["问", "答", "早", "好"], ["早", "好"]])
    with (tmp_path / "x.csv").open("w", encoding="utf-8", newline="") as file:
        shown = [json.dumps(history), str(history), "[]", ""]
        csv.writer(file).writerows([["history", "q", "a"], *([h, "早", "好"] for h in shown)])
    check(tmp_path / "x.csv", 2 * [["问", "答", "早", "好"]] + 2 * [["早", "好"]])
    for broken, reason in (
        ("[1", "is not a list"),
        ('["问"]', "odd number"),
        ([["问", None]], "an empty utterance"),
        ([{"甲": "问", "乙": "答"}], "its keys are: 甲, 乙"),
    ):
        (tmp_path / "y.jsonl").write_text(as_lines([record | {"history": broken}]), "utf-8")
        assert reason in refusal_of(tmp_path / "y.jsonl")


def test_replies_that_people_found_bad_are_not_learnt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        {"prompt": "早", "completion": "好", "label": label} for label in (True, False, 1, 0)
    ]
    records += [{**openai(["早", "滚"]), "kto_tag": False}]
    (tmp_path / "x.jsonl").write_text(as_lines(records), "utf-8")
    (tmp_path / "x.csv").write_text("prompt,completion,label\n早,好,True\n早,滚,False\n", "utf-8")
    check(tmp_path / "x.jsonl", [["早", "好"]] * 2)
    check(tmp_path / "x.csv", [["早", "好"]])
    said = capsys.readouterr().err
    assert "3 records left out, whose reply is marked as bad" in said
    assert "1 record left out" in said


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gb18030", "utf-16"])
def test_tables_as_spreadsheets_write_them(tmp_path: Path, encoding: str) -> None:
    for name, delimiter in (("x.csv", ","), ("x.tsv", "\t"), ("y.csv", ";")):
        rows = ["问题,回答,", "早,好,", ",,", "在吗,在的,"]
        for before in ([], [",,", ""], ["sep=,"]):
            text = "\r\n".join([*before, *rows]).replace(",", delimiter)
            (tmp_path / name).write_bytes(text.encode(encoding))
            check(tmp_path / name, [["早", "好"], ["在吗", "在的"]])
    (tmp_path / "x.txt").write_bytes("问\t答\n早\t好\n".encode(encoding))
    check(tmp_path / "x.txt", [["早", "好"]])


@pytest.mark.parametrize("bad", ['"早"', "早", '["早"]', '{"prompt": "早"}', "17"])
def test_bad_records_may_be_left_out_only_where_others_stay(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f"{bad}\n{bad}\n", "utf-8")
    said = refusal(lambda: list(read_dialogues(path)))
    assert "line 1" in said and "--skip-bad" not in said
    for before, line in ((True, 2), (False, 1)):
        good = '{"prompt": "早", "response": "好"}'
        path.write_text("\n".join([good, bad] if before else [bad, good]), "utf-8")
        said = refusal(lambda: list(read_dialogues(path)))
        assert f"line {line}: " in said and "--skip-bad" in said and "--columns" not in said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", "时间,昵称,内容\n1,小明,早\n", "its columns are: 时间, 昵称, 内容"),
        ("x.tsv", "早\t好\n在吗\t在\n", "if it has no header, put one above it"),
        ("x.csv", "早\n好\n", "if it is not a table, rename it to .txt"),
        ("x.jsonl", '{"prompt": "早", "chosen": "好"}\n', "its keys are: prompt, chosen"),
        ("x.jsonl", '{"text": "早"}\n', "its keys are: text"),
        ("x.jsonl", '{"prompt": "a", "reply": "b"}\n{"prompt": "c"}\n', "no key 'reply', which"),
        ("x.jsonl", '{"prompt": "c"}\n{"ask": "a", "bot": "b"}\n', "no key 'ask', which"),
        ("x.jsonl", '{"messages": ["a", "b"]}\n{"x": ["c"]}\n', "no key 'messages', which"),
        ("x.json", '{\n"train": [["早", "好"]],\n"valid": []\n}', "its keys are: train, valid"),
        ("x.json", '["第一篇", "第二篇"]', "is it one dialogue, or are they articles?"),
        ("x.json", '[\n"第一篇",\n"第二篇"\n]', "is it one dialogue, or are they articles?"),
        (
            "x.json",
            '[\n{"sender": "小明", "time": "9:00", "content": "早"}]',
            "an export of a chat\n  -> convert it first: python -m smallgpt data convert … --me",
        ),
        (
            "x.jsonl",
            as_lines([[{"role": name, "content": "早"} for name in "abc"]]),
            "more than two speakers",
        ),
    ],
)
def test_what_is_no_dialogue_says_what_is_there(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    path = tmp_path / name
    path.write_text(content, "utf-8")
    assert said in refusal_of(path)
    assert said in refusal(lambda: list(text_chunks(path)))


def test_a_text_that_looks_like_a_table_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for line, said in (("早\t好", True), ("早上\n好", False)):
        (tmp_path / "x.txt").write_text(f"{line}\n" * 6, "utf-8")
        assert list(text_chunks(tmp_path / "x.txt"))
        assert ("its lines look like rows" in capsys.readouterr().err) == said


def test_columns_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,甲,乙\n1,早,好\n", "utf-8")
    (tmp_path / "x.txt").write_text("甲\ta\t乙\n早\t1\t好\n", "utf-8")
    (tmp_path / "x.jsonl").write_text('{"甲": "早", "乙": "好", "prompt": "不"}\n', "utf-8")
    for name in ("x.csv", "x.txt", "x.jsonl"):
        assert list(read_dialogues(tmp_path / name, columns=("甲", "乙"))) == [["早", "好"]]
        with pytest.raises(UserError, match="'丙'"):
            list(read_dialogues(tmp_path / name, columns=("甲", "丙")))
    out = tmp_path / "out.txt"
    result = smallgpt(
        "data", "convert", tmp_path / "x.csv", "--columns", "甲", "乙", "--output", out
    )
    assert result.exit_code == 0 and out.read_text("utf-8") == "早\n好\n"
    assert "does not go with --format openai" in refusal(
        lambda: recognise(tmp_path / "x.jsonl", "openai", ("甲", "乙"))
    )


def test_half_a_surrogate_pair_is_a_replacement_character(tmp_path: Path) -> None:
    records = [openai(["哈哈\ud83d", "笑什么🙂"]), openai(["早", "好"])]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    (tmp_path / "x.json").write_text(json.dumps(records), "utf-8")
    (tmp_path / "y.json").write_text(json.dumps(records[0], indent=1), "utf-8")
    for name in ("x.jsonl", "x.json", "y.json"):
        write(read_dialogues(tmp_path / name), {tmp_path / "out.txt": 1.0})
        assert (tmp_path / "out.txt").read_text("utf-8").startswith("哈哈\ufffd\n笑什么🙂\n")
        assert open_corpus([tmp_path / name], text_chunks).conversations == (name[0] == "x") + 1


def test_an_utterance_that_shows_nothing_is_refused(tmp_path: Path) -> None:
    gaps = [{"prompt": "早", "response": gap} for gap in (None, float("nan"))]
    for record in (*(openai(["早", character]) for character in "\u200b\ufeff\u3000"), *gaps):
        (tmp_path / "x.jsonl").write_text(as_lines([record]), "utf-8")
        assert "an empty utterance" in refusal_of(tmp_path / "x.jsonl")


def test_text_that_begins_like_json_is_text(tmp_path: Path) -> None:
    for beginning in ("[微笑]你好", "[1] 早", '["早"] 他说', "{早", '"早"', "[" * 5000):
        (tmp_path / "x.txt").write_text(f"{beginning}\n好\n", "utf-8")
        check(tmp_path / "x.txt", [[beginning, "好"]])


def test_compressed_and_gb18030(tmp_path: Path) -> None:
    data = as_lines(list(map(openai, SIMPLE)))
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(data.encode()))
    check(tmp_path / "x.jsonl.gz", SIMPLE)
    (tmp_path / "y.jsonl").write_bytes(data.encode("gb18030"))
    check(tmp_path / "y.jsonl", SIMPLE)


@pytest.mark.parametrize("chunk", [10, 1 << 20])
def test_training_reads_other_formats_as_it_reads_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(dialogue_formats, "_TEXT_CHUNK", chunk)
    write(SIMPLE * 3, {tmp_path / "x.txt": 1.0})
    (tmp_path / "x.jsonl").write_text(as_lines(list(map(RECORDS["sharegpt"], SIMPLE * 3))), "utf-8")
    ours = open_corpus([tmp_path / "x.txt"])
    theirs = open_corpus([tmp_path / "x.jsonl"], text_chunks)
    assert theirs.tokenizer.characters == ours.tokenizer.characters
    assert theirs.ids.tolist() == ours.ids.tolist()
    assert theirs.ends.tolist() == ours.ends.tolist()


BAD = [
    ("{", "not JSON"),
    ("3", "a value alone, not a dialogue"),
    ('"早"', "a text alone, not a dialogue"),
    ('{"messages": []}', "fewer than two utterances"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "fewer than two"),
    ('{"messages": [{"role": "tool", "content": "a"}]}', "role 'tool' is not a speaker"),
    ('{"messages": [{"role": "user"}]}', "no text under 'content'"),
    (json.dumps(openai(["早", " "])), "an empty utterance"),
    ('{"messages": [{"speaker": "user", "txt": "a"}]}', "its keys are: speaker, txt"),
    ('{"messages": [1]}', "a message that is no object"),
    ("[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_broken_line_is_refused_with_its_number_or_left_out(
    tmp_path: Path, line: str, reason: str
) -> None:
    path = tmp_path / "x.jsonl"
    good = as_lines([openai(SIMPLE[0])])
    path.write_text(good * 999 + line + "\n" + good, "utf-8")
    said = refusal_of(path)
    assert "line 1,000: " in said and reason in said
    survey = Survey()
    assert sum(1 for _ in read_dialogues(path, rejected=survey.reject)) == 1000
    assert survey.rejected.total() == 1
    assert reason in next(iter(survey.rejected))


def test_damaged_files(tmp_path: Path) -> None:
    whole = json.dumps(list(map(openai, SIMPLE)))
    packed = gzip.compress(as_lines(list(map(openai, SIMPLE * 500))).encode())
    for name, content, problem in (
        ("x.json", whole[:-2].encode() + b"oops", "the list is broken after record 1"),
        ("y.json", whole[:-1].encode(), "the list is broken after record 1"),
        ("z.json", b"[" * 100_000, "the list is broken after record 0"),
        ("x.parquet", b"PAR1 and no more", "is damaged"),
        ("x.jsonl.gz", packed[: len(packed) // 2], "is damaged or cut off"),
    ):
        (tmp_path / name).write_bytes(content)
        assert problem in refusal_of(tmp_path / name)


def test_a_wrong_format_is_said(tmp_path: Path) -> None:
    write(SIMPLE, {tmp_path / "x.txt": 1.0})
    for kind in set(KINDS) - {"text"}:
        assert f"does not look like {kind}" in refusal_of(tmp_path / "x.txt", kind)
    assert "--format: 'word' is unknown" in refusal_of(tmp_path / "x.txt", "word")


@pytest.fixture
def peak_memory() -> Iterator[Callable[[], int]]:
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def test_a_long_list_in_bounded_memory(tmp_path: Path, peak_memory: Callable[[], int]) -> None:
    path = tmp_path / "x.json"
    record = json.dumps(openai(["早" * 200, "好" * 200]), ensure_ascii=False)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(["[", *itertools.repeat(record + ",\n", 9_999), record, "]"])
    assert path.stat().st_size > 12e6
    assert sum(1 for _ in read_dialogues(path)) == 10_000
    assert peak_memory() < 8e6


@pytest.mark.parametrize(
    ("name", "beginning", "said"),
    [
        ("x.jsonl.gz", '["早", "a"]\n["', "line 2 is longer than"),
        ("x.json.gz", '[["a", "b"], ["', "record 2 is broken, or longer than"),
        ("x.csv.gz", 'prompt,response\n1,"', "line 2: field larger than"),
        ("x.txt.gz", "早\n好\n\n", "a dialogue is longer than"),
    ],
)
def test_a_small_file_that_unpacks_to_a_large_record(
    tmp_path: Path,
    peak_memory: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    beginning: str,
    said: str,
) -> None:
    for module in (dialogue_formats, json_files, tables, text_module):
        monkeypatch.setattr(module, "LONGEST", 1 << 21)
    path = tmp_path / name
    line = b"a" * 1023 + (b"\n" if name == "x.csv.gz" else b"a")
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(beginning.encode())
        for _ in range(50):
            file.write(line * 1024)
    assert path.stat().st_size < 5e5
    assert said in refusal_of(path)
    assert peak_memory() < 32e6  # of 52e6 that it unpacks to


def refusal_of(path: Path, kind: str | None = None) -> str:
    return refusal(lambda: list(read_dialogues(path, kind)))


def test_broken_rows_are_refused_with_their_line_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('prompt,response\n早,好\n在吗,在的,有事吗\n他说,"好"呀,\n早,好呀\n', "utf-8")
    assert "line 3: 3 cells for 2 columns" in refusal_of(path)
    survey = Survey()
    assert list(read_dialogues(path, rejected=survey.reject)) == [["早", "好"], ["早", "好呀"]]
    assert survey.rejected == {
        "3 cells for 2 columns": 1,
        "a quotation mark is not closed, or within quotes not doubled": 1,
    }


DIFFERENT_NUMBERS = """\
3.5元 35元, -5度 5度, 1/2 12, 10:30 1030, 5% 5, 3、5 35, 10² 102, １．５ 15, 1½ 11/2"""


@pytest.mark.parametrize("two", DIFFERENT_NUMBERS.split(", "))
def test_numbers_are_no_near_duplicates(two: str) -> None:
    one, other = two.split()
    assert essence(["多少", one]) != essence(["多少", other])


def test_near_duplicates_with_numbers() -> None:
    for one, other in (
        ("有3个。", "有3个"),
        ("３．５！", "3.5"),
        ("3。", "3"),
        ("好,5点", "好5点"),
    ):
        assert essence([one]) == essence([other])


def test_duplicates() -> None:
    near = ["早上好 呀！", "早上好,昨晚睡得好吗?"]
    survey = Survey()
    kept = list(survey.collect([*SIMPLE, SIMPLE[0], near, ["……", "！"], ["！", "……"]]))
    assert kept == [*SIMPLE, ["……", "！"], ["！", "……"]]
    assert (survey.exact, survey.near) == (1, 1)
    assert survey.characters == sum(len(u) for d in kept for u in d)
    assert sum(survey.lengths.values()) == 4


def test_a_split_keeps_duplicates_together_and_is_stable(tmp_path: Path) -> None:
    dialogues = [[f"早{n % 400}", "好" + "！" * (n // 400)] for n in range(1200)]
    shares = {tmp_path / "a.txt": 0.8, tmp_path / "b.txt": 0.2}
    write(dialogues, shares, seed=3)
    parts = [list(read_dialogues(path)) for path in shares]
    assert sorted(parts[0] + parts[1]) == sorted(dialogues)
    assert not {essence(d) for d in parts[0]} & {essence(d) for d in parts[1]}
    assert len(parts[1]) == 240
    # The same seed, more dialogues beside them: nearly all stay in their parts.
    write([*dialogues, *([f"晚{n}", "好"] for n in range(120))], shares, seed=3)
    again = list(read_dialogues(tmp_path / "b.txt"))
    assert sum(d in again for d in parts[1]) > 200


@pytest.mark.parametrize(
    ("groups", "sizes"),
    [
        ([1] * 54, [48, 3, 3]),
        ([1] * 3, [1, 1, 1]),
        ([1] * 12, [10, 1, 1]),
        ([40, *[1] * 14], [48, 3, 3]),
        ([9, 5, 2], [9, 5, 2]),
        ([1] * 1000, [900, 50, 50]),
    ],
)
def test_parts_come_as_near_to_their_shares_as_duplicates_allow(
    tmp_path: Path, groups: list[int], sizes: list[int]
) -> None:
    shares = dict(zip((tmp_path / n for n in "abc"), (0.9, 0.05, 0.05), strict=True))
    dialogues = [[f"早{n}", "好" + "！" * k] for n, size in enumerate(groups) for k in range(size)]
    assert list(write(dialogues, shares).values()) == sizes
    found = [[essence(d) for d in read_dialogues(path, "text")] for path in shares]
    assert sum(len(set(part)) for part in found) == len(groups)


def test_a_split_in_order(tmp_path: Path) -> None:
    dialogues = [[f"早{n * 7 % 100}", "好"] for n in range(100)]
    path, parts = tmp_path / "x.txt", tmp_path / "parts"
    write(dialogues, {path: 1.0})
    command = ("data", "split", path, "--output-dir", parts, "--in-order", "--test", "0.1")
    assert smallgpt(*command).exit_code == 0
    found = [
        list(read_dialogues(parts / f"{name}.txt")) for name in ("train", "validation", "test")
    ]
    assert found == [dialogues[:85], dialogues[85:90], dialogues[90:]]
    assert "--seed does not go with --in-order" in refused_command(*command, "--seed", "0")


def test_what_another_file_has_is_left_out(tmp_path: Path) -> None:
    path, judged, out = tmp_path / "x.txt", tmp_path / "judged.jsonl", tmp_path / "out.txt"
    write([*SIMPLE, ["吃了吗", "吃了！"], ["吃了吗", "没有"]], {path: 1.0})
    judged.write_text(as_lines([openai(SIMPLE[1]), openai(["吃了吗？", "吃了"])]), "utf-8")
    command = ("data", "convert", path, "--without", judged, "--output", out)
    done = smallgpt(*command)
    assert done.exit_code == 0 and "left out with --without: 2\n" in done.stdout
    check(out, [SIMPLE[0], *SIMPLE[2:], ["吃了吗", "没有"]])
    assert "is an input" in refused_command(*command[:-1], judged, "--force")
    missing = refused_command(*command[:4], tmp_path / "missing", "--output", tmp_path / "y.txt")
    assert f"{tmp_path / 'missing'} not found" in missing
    other = tmp_path / "y.txt"
    said = refused_command("data", "convert", path, "--without", path, "--output", other)
    assert "the files of --without have all 4 dialogues" in said and not other.exists()
    judged.write_text(as_lines([openai(SIMPLE[1])]) + "\n{broken\n", "utf-8")
    assert "line 3" in refused_command(*command[:-1], other)
    done = smallgpt(*command[:-1], other, "--skip-bad")
    assert "left out with --without: 1\nunreadable records: 1\n" in done.stdout
    chat = tmp_path / "chat.txt"
    chat.write_text("2024-03-01 07:42:15 阿远\n早\n\n2024-03-01 07:43:15 小禾\n好\n\n", "utf-8")
    done = smallgpt(*command[:4], chat, "--output", out, "--force")
    assert f"warning: {chat} looks like a chat export" in done.stderr


def test_too_few_dialogues_for_the_parts(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("早\n好\n\n早！\n好\n\n晚安\n好\n", "utf-8")
    said = refused_command("data", "split", path, "--output-dir", tmp_path / "parts")
    assert "2 different dialogues for 3 parts" in said and "--test 0" in said
    assert not list((tmp_path / "parts").iterdir())
    done = smallgpt("data", "split", path, "--output-dir", tmp_path / "parts", "--test", "0")
    assert done.exit_code == 0 and "validation.txt, 1 dialogue" in done.stdout


def test_commands(tmp_path: Path) -> None:
    path, out, picture = tmp_path / "x.jsonl", tmp_path / "out.txt", tmp_path / "h.png"
    path.write_text(as_lines([*map(openai, SIMPLE), openai(SIMPLE[0])]) + "{\n", "utf-8")

    def run(*arguments: str | Path) -> str:
        result = smallgpt(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    said = refused_command("data", "convert", path, "--output", out)
    assert "line 4: not JSON" in said and "--skip-bad" in said
    assert not out.exists()
    (tmp_path / "empty").touch()
    problems = {"missing": "not found", ".": "is a directory", "empty": "is empty"}
    for file, problem in problems.items():
        said = refused_command("data", "convert", tmp_path / file, "--output", out)
        assert said.startswith(f"error: {tmp_path / file} {problem}\n")
    said = run("data", "convert", path, "--output", out, "--skip-bad", "--picture", picture)
    assert (
        "dialogues: 2\n" in said and "1 exact, 0 near" in said and "unreadable records: 1\n" in said
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    check(out, SIMPLE)
    assert "turns: 6 (3.0 a dialogue)" in run("data", "stats", out)
    parts = tmp_path / "parts"
    split: list[str | Path] = ["split", out, "--output-dir", parts, "--test", "0"]
    said = run("data", *split, "--validation", "0.5")
    for name in ("train", "validation"):
        count = sum(1 for _ in read_dialogues(parts / f"{name}.txt", "text"))
        noun = "dialogue" if count == 1 else "dialogues"
        assert f"written: {parts / name}.txt, {count} {noun}\n" in said
    again: list[list[str | Path]] = [
        ["convert", out, "--output", parts / "train.txt"],
        split,
        ["convert", out, "--output", tmp_path / "new.txt", "--picture", picture],
    ]
    for arguments in again:
        assert "is there already\n  -> name another, or add --force" in refused_command(
            "data", *arguments
        )
        run("data", *arguments, "--force")
    assert "is an input" in refused_command("data", "convert", path, "--output", path, "--skip-bad")
    assert "is to be two files" in refused_command(
        "data", "convert", path, "--output", picture, "--picture", picture, "--force"
    )
    assert "leave nothing" in refused_command(
        "data", "split", out, "--output-dir", tmp_path, "--test", "0.99"
    )
    (tmp_path / "empty.jsonl").write_text("{\n")
    assert "no dialogue" in refused_command(
        "data", "convert", tmp_path / "empty.jsonl", "--output", tmp_path / "e.txt", "--skip-bad"
    )
    assert not (tmp_path / "e.txt").exists()
