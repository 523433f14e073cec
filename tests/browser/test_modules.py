"""What the page's modules compute, in the browser that runs them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page

from smallgpt.data.dialogue_records import utterances
from smallgpt.data.text import read_text
from tests.browser.conftest import Opener, Talker
from tests.helpers.server import serving

# Characters that matter to the formats, and some that do not.
TEXTS = st.text(st.sampled_from('a好𠮷😀,;\t"\r\n \ufeff\u2028\0'), max_size=12)
LINES = (
    st.text(st.sampled_from("a好𠮷😀,。 1-"), min_size=1, max_size=8).map(str.strip).filter(bool)
)


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    with serving(Talker(["好"])) as served:
        opener = Opener(browser)
        yield opener(served.url)
        opener.close()


def call(page: Page, module: str, code: str, argument: Any = None) -> Any:
    """The value of an expression in which `m` is the module and `x` the argument."""
    script = f"async (x) => {{ const m = await import('/page/{module}.js'); return {code}; }}"
    return page.evaluate(script, argument)


# CSV


@given(st.lists(st.lists(TEXTS, min_size=2, max_size=4), min_size=1, max_size=4))
def test_tables_come_back_as_they_were(page: Page, rows: list[list[str]]) -> None:
    for separator in ",\t;":
        written = call(page, "csv", "m.write(...x)", [rows, separator])
        assert call(page, "csv", "m.parse(...x)", ["\ufeff" + written, separator]) == rows
        # So does Python, which takes "\r" in an unquoted cell for the end of a row as we do.
        read = csv.reader(io.StringIO(written, newline=""), delimiter=separator)
        assert list(read) == rows


@given(st.lists(st.lists(TEXTS, min_size=2, max_size=4), min_size=1, max_size=4))
def test_what_python_writes_is_read(page: Page, rows: list[list[str]]) -> None:
    for newline in ("\n", "\r\n"):
        file = io.StringIO(newline="")
        csv.writer(file, lineterminator=newline, quoting=csv.QUOTE_ALL).writerows(rows)
        assert call(page, "csv", "m.parse(x, ',')", file.getvalue()) == rows


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", []),
        ("\n\r\n", []),
        ("a,b", [["a", "b"]]),
        ("a,b\n", [["a", "b"]]),
        ("a,\n,b", [["a", ""], ["", "b"]]),
        ("a,", [["a", ""]]),
        ('"a\r\nb""c""","d"\r\n\r\ne,f', [['a\r\nb"c"', "d"], ["e", "f"]]),
        ('a"b,c', [['a"b', "c"]]),
        ('"a"b,c', [["ab", "c"]]),
        ('"a,b\nc', [["a,b\nc"]]),
        ('""\nb', [[""], ["b"]]),
        ("\ufeff评论;分\n好;1", [["评论", "分"], ["好", "1"]]),
        ("a\tb,c\tc\n1\t2\t3", [["a", "b,c", "c"], ["1", "2", "3"]]),
    ],
)
def test_tables_as_people_have_them(page: Page, text: str, rows: list[list[str]]) -> None:
    assert call(page, "csv", "m.parse(x)", text) == rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_encodings_of_tables(page: Page, encoding: str) -> None:
    data = list("id,评论\n1,房间很好𠮷".encode(encoding))
    decoded = call(page, "csv", "m.decode(new Uint8Array(x))", data)
    assert decoded.lstrip("\ufeff") == "id,评论\n1,房间很好𠮷"


def test_what_is_no_text_is_refused(page: Page) -> None:
    code = "(() => { try { m.decode(new Uint8Array(x)); } catch (e) { return e.name; } })()"
    for data in (b"\x80\xff\xff\x00", b"PK\x03\x04\x14\0\0\0workbook"):
        assert call(page, "csv", code, list(data)) == "TypeError"


@pytest.mark.parametrize(
    ("rows", "column"),
    [
        ([["id", "review"], ["1", "好"]], 1),
        ([["评论", "text_id"], ["好", "1"]], 0),
        ([["Content", "label"]], 0),
        ([["n", "review_text", "x"], ["1", "好", "好好好"]], 1),
        ([["a", "b", "c"], ["1", "房间很好", "2"], ["1", "很吵", "2"]], 1),
    ],
)
def test_the_column_of_texts_is_guessed(page: Page, rows: list[list[str]], column: int) -> None:
    assert call(page, "csv", "m.textColumn(x)", rows) == column


# Server-sent events


def events(page: Page, chunks: list[list[int]]) -> list[str]:
    code = """await (async () => {
      const start = (controller) => {
        for (const bytes of x) controller.enqueue(new Uint8Array(bytes));
        controller.close();
      };
      const said = [];
      for await (const data of m.events(new ReadableStream({ start }))) said.push(data);
      return said;
    })()"""
    return call(page, "sse", code, chunks)


@given(st.data(), st.lists(st.text(max_size=6).filter(str.isprintable), min_size=1, max_size=4))
def test_events_arrive_whole_however_they_are_cut(
    page: Page, data: st.DataObject, texts: list[str]
) -> None:
    newline = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    said = [json.dumps({"好": text}, ensure_ascii=False) for text in texts] + ["[DONE]"]
    lines = [f": 注释{newline}event: x{newline}data: {one}{newline}{newline}" for one in said]
    stream = "".join(lines).encode()
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    chunks = [list(stream[a:b]) for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert events(page, chunks) == said


def test_events_of_several_lines_and_unfinished_ones(page: Page) -> None:
    stream = "data: a\ndata:b\ndata\n\nid: 3\n\ndata: never ended"
    assert events(page, [list(stream.encode())]) == ["a\nb\n"]


# Conversations as files

DIALOGUES = st.lists(st.lists(LINES, min_size=2, max_size=5), min_size=1, max_size=4)


def as_messages(lines: list[str]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": line} for i, line in enumerate(lines)]


@given(dialogues=DIALOGUES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_exports_are_read_by_us_and_by_training(
    page: Page, tmp_path: Path, dialogues: list[list[str]]
) -> None:
    talks = [{"title": f"第{i}", "messages": as_messages(d)} for i, d in enumerate(dialogues)]
    as_json = call(page, "formats", "m.toJson(x)", talks)
    as_text = call(page, "formats", "m.toText(x)", talks)
    assert call(page, "formats", "m.read('a.json', x)", as_json) == talks
    untitled = [{**talk, "title": ""} for talk in talks]
    assert call(page, "formats", "m.read('a.txt', x)", as_text) == untitled
    assert [utterances(record, None, None) for record in json.loads(as_json)] == dialogues
    file = tmp_path / "train.txt"
    file.write_text(as_text, encoding="utf-8")
    text = "".join(clean for _, clean in read_text(file))
    assert [dialogue.split("\n") for dialogue in text.strip().split("\n\n")] == dialogues


def test_the_text_has_one_utterance_a_line_and_no_system(page: Page) -> None:
    messages = [
        {"role": "system", "content": "你是诗人"},
        {"role": "user", "content": " 早上\n\n好 \r\n呀"},
        {"role": "user", "content": "在吗"},
        {"role": "assistant", "content": "  "},
        {"role": "assistant", "content": "在"},
    ]
    alone = {"title": "", "messages": as_messages(["没有回复"])}
    talks = [{"title": "", "messages": messages}, alone]
    assert call(page, "formats", "m.toText(x)", talks) == "早上 好 呀 在吗\n在\n"
    assert call(page, "formats", "m.toText(x)", [alone]) == ""


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "user", "content": "在吗"}, {"role": "assistant", "content": "在"}]',
        '{"messages": [{"role": "user", "content": "在吗"}, '
        '{"role": "assistant", "content": "在"}]}',
        '\ufeff{"messages": [{"role": "user", "content": [{"type": "text", "text": "在"}, '
        '{"type": "text", "text": "吗"}]}, {"role": "assistant", "content": "在"}]}\n\n',
        "在吗\r\n在\r\n\r\n \r\n",
    ],
)
def test_what_may_be_imported(page: Page, text: str) -> None:
    assert call(page, "formats", "m.read('a', x)", text) == [
        {"title": "", "messages": as_messages(["在吗", "在"])}
    ]


def test_lines_of_json(page: Page) -> None:
    lines = [json.dumps({"messages": as_messages(["在吗", str(n)])}) for n in range(3)]
    read = call(page, "formats", "m.read('a.jsonl', x)", "\n".join(lines))
    assert [talk["messages"][1]["content"] for talk in read] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "importEmpty"),
        ("[]", "importEmpty"),
        ('{"a": 1}', "importUnknown"),
        ('{"messages": [{"role": "tool", "content": "1"}]}', "importUnknown"),
        ('{"messages": [{"role": "user", "content": null}]}', "importUnknown"),
        ('{"messages": [', "importUnknown"),
        ("[1, 2]", "importUnknown"),
        ("在吗\n在\n\n" * 1001, "importTooMany"),
    ],
)
def test_what_may_not_be_imported(page: Page, text: str, problem: str) -> None:
    code = "(() => { try { m.read('a.json', x); } catch (e) { return e.message; } })()"
    assert call(page, "formats", code, text) == problem


# The tree of a conversation


def test_versions_of_messages(page: Page) -> None:
    code = """(() => {
      const talk = m.conversation({ messages: x });
      const shown = () => m.path(talk).map(({ content }) => content);
      const steps = [shown()];
      const [first, reply] = m.path(talk);
      m.add(talk, first.id, 'assistant', 'B2');
      steps.push(shown());
      m.add(talk, '', 'user', 'A2');
      steps.push(shown());
      m.turn(talk, m.path(talk)[0], -1);
      steps.push(shown());
      m.turn(talk, m.path(talk)[1], -1);
      steps.push(shown());
      m.turn(talk, m.path(talk)[1], -1);  // there is none before
      steps.push(shown());
      steps.push(m.path(talk, reply.id).map(({ content }) => content));
      m.remove(talk, reply.id);
      steps.push(shown());
      m.remove(talk, first.id);
      steps.push(shown());
      return [steps, Object.keys(talk.nodes).length];
    })()"""
    said = call(page, "talk", code, as_messages(["A", "B", "C"]))
    assert said == [
        [
            ["A", "B", "C"],
            ["A", "B2"],
            ["A2"],
            ["A", "B2"],
            ["A", "B", "C"],
            ["A", "B", "C"],
            ["A", "B"],
            ["A", "B2"],
            ["A2"],
        ],
        1,
    ]


def test_two_copies_of_a_conversation_become_one(page: Page) -> None:
    """Whatever two tabs did to it, nothing they wrote is lost, and what one deleted stays so."""
    code = """(() => {
      const ours = m.conversation({ messages: x });
      const theirs = structuredClone(ours);
      const [first, second, third] = m.path(ours).map(({ id }) => id);
      m.add(ours, third, 'assistant', 'ours');
      m.add(theirs, third, 'assistant', 'theirs');
      m.change(theirs, first, { verdict: 'up' });
      const merged = (a, b) => {
        const copy = structuredClone(a);
        m.merge(copy, structuredClone(b));
        return copy;
      };
      const said = (talk) => Object.values(talk.nodes).map(({ content }) => content).sort();
      const results = [said(merged(ours, theirs)), said(merged(theirs, ours))];
      const marked = [merged(ours, theirs), merged(theirs, ours)];
      results.push(marked.map((talk) => talk.nodes[first].verdict));
      m.remove(theirs, second);
      results.push(said(merged(ours, theirs)), said(merged(theirs, ours)));
      return results;
    })()"""
    assert call(page, "talk", code, as_messages(["A", "B", "C"])) == [
        ["A", "B", "C", "ours", "theirs"],
        ["A", "B", "C", "ours", "theirs"],
        ["up", "up"],
        ["A"],
        ["A"],
    ]
