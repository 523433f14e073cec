"""Exports of chat apps become dialogues in which one speaker gives the replies."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from smallgpt.data.chats.dialogues import Chats, gap_in_seconds
from smallgpt.data.chats.exports import recognise, warn_of_exports
from smallgpt.data.chats.messages import Message
from smallgpt.data.chats.placeholders import without_placeholders
from smallgpt.data.chats.times import order_of, seconds
from tests.helpers.commands import refusal, refused_command, smallgpt
from tests.helpers.processes import write_run

ASKED = ["在吗", "在的 怎么了", "明天去爬山吗 好不好: 真的", "好呀"]
"""The dialogue that the exports below hold; 小林 replies."""
QQ_HEAD = """消息记录（此消息记录为文本格式，不支持重新导入）

================================================================
消息分组:我的好友
================================================================
消息对象:阿青
================================================================

"""
WECHAT = """2024-03-01 12:30:05 阿青
在吗

2024-03-01 12:30:15 小林
在的
怎么了

2024-03-01 12:30:20 阿青
[图片]

2024-03-01 12:30:25 阿青
明天去爬山吗

2024-03-01 12:30:30 阿青
好不好: 真的

2024-03-01 12:31:05 小林
好呀
引用:阿青:明天去爬山吗

2024-03-01 12:31:06 你撤回了一条消息

"""
IN_ONE_LINE = [
    ("12:30:05", "阿青", "在吗"),
    ("12:30:15", "小林", "在的\n怎么了"),
    ("12:30:25", "阿青", "明天去爬山吗"),
    ("12:30:30", "阿青", "好不好: 真的"),
    ("12:31:05", "小林", "好呀"),
]
TEXTS = {
    "WeChatMsg": WECHAT,
    "QQ": QQ_HEAD
    + WECHAT.replace(" 阿青\n", " 【群主】阿青(10001234)\n").replace(" 小林\n", " 小林<l@x.cn>\n"),
    "name before time": "".join(f"{n} 2024/3/1 {t}\n{s}\n" for t, n, s in IN_ONE_LINE),
    "WechatExporter": "".join(f"{n}(2024-03-01 {t}):{s}\n" for t, n, s in IN_ONE_LINE),
    "quoted": "".join(f"2024-03-01 {t} '{n}' {s}\n" for t, n, s in IN_ONE_LINE),
    "angle brackets": "".join(f"[2024-03-01 {t}] <{n}> {s}\n" for t, n, s in IN_ONE_LINE),
    "colon": "".join(f"2024-03-01 {t} {n}: {s}\n" for t, n, s in IN_ONE_LINE),
    "tabs": "".join(f"2024-03-01 {t}\t{n}\t{s}\n" for t, n, s in IN_ONE_LINE),
    "full-width": "".join(f"2024年3月1日 星期五 {t} {n}：{s}\n" for t, n, s in IN_ONE_LINE),
    "e-mail of WeChat": "亲爱的:\n聊天记录如下。\n\n—————  2024-03-01  —————\n\n\n"
    + "".join(f"{n}  {t[:-3]}\n\n{s}\n\n" for t, n, s in IN_ONE_LINE),
    "LINE": "2024/03/01（五）\n" + "".join(f"{t}\t{n}\t{s}\n" for t, n, s in IN_ONE_LINE),
    "LINE in English": "2024/03/01(Fri)\n"
    + "".join(f"{t}\t{n}\t{s}\n" for t, n, s in IN_ONE_LINE)
    + "\nSat, 3/2/2024\n09:00\t阿青\t[Sticker]\n",
    "WhatsApp on an iPhone": "[2024/3/1 下午12:30:01] 阿青: \u200e消息和通话已进行端到端加密。\n"
    + "".join(f"[2024/3/1 下午{t}] {n}: {s}\n" for t, n, s in IN_ONE_LINE)
    + "\u200e[2024/3/1 下午1:00:10] 阿青: \u200e图像已省略\n",
    "WhatsApp on Android": "3/1/24, 12:29\u202fPM - Messages and calls are end-to-end encrypted.\n"
    + "".join(f"3/1/24, {t[:-3]}\u202fPM - {n}: {s}\n" for t, n, s in IN_ONE_LINE)
    + '3/1/24, 12:40\u202fPM - 阿青 changed the subject to "a: b"\n'
    + "3/1/24, 12:41\u202fPM - 阿青: <Media omitted>\n",
    "no times": "".join(f"{n}: {s}\n" for _, n, s in IN_ONE_LINE),
}
ROWS = [(f"2024-03-01 {t}", n, s.replace("\n", " "), "文本") for t, n, s in IN_ONE_LINE] + [
    ("2024-03-01 12:31:10", "阿青", "a.jpg", "图片")
]


def table(header: str, order: str = "0123", separator: str = ",") -> str:
    rows = (separator.join(row[int(n)] for n in order) for row in ROWS)
    return "\n".join([header.replace(",", separator), *rows, ""])


def objects(**keys: int) -> list[dict[str, str]]:
    return [{key: row[n] for key, n in keys.items()} for row in ROWS]


def telegram(one_line: bool = False) -> str:
    service = {"id": 1, "type": "service", "date": "2024-03-01T12:00:00", "text": ""}
    said = [
        {
            "type": "message",
            "date": t.replace(" ", "T"),
            "from": n,
            "from_id": f"user{n}",
            "text": s,
        }
        for t, n, s, _ in ROWS[:-1]
    ]
    said[0] = {**said[0], "text": ["在", {"type": "bold", "text": "吗"}]}  # type: ignore[dict-item]
    photo = {**said[-2], "date": "2024-03-01T12:31:09", "photo": "x", "text": ""}
    messages = [service, *said, photo]
    chat = {"name": "阿青", "type": "personal_chat", "id": 7, "messages": messages}
    return json.dumps(chat, ensure_ascii=False, indent=None if one_line else 1)


FILES = {
    "chinese.csv": table("时间,昵称,内容,消息类型"),
    "exporter.tsv": table("时间,发送者,内容,消息类型", separator="\t"),
    "english.csv": table("content,sender,time,type", "2103"),
    "items.json": json.dumps(objects(发送者=1, 内容=2, 时间=0, 类型=3), ensure_ascii=False),
    "lines.jsonl": "".join(
        json.dumps(o) + "\n" for o in objects(nickname=1, message=2, timestamp=0, type=3)
    ),
    "result.json": telegram(),
    "small.json": telegram(one_line=True),
    "dump.csv": "localId,TalkerId,Type,IsSender,CreateTime,StrContent,StrTime,NickName\n"
    + "".join(
        f"{k},7,1,{int(n == '小林')},17{k},{s},{t},{n}\n"
        for k, (t, n, s, _) in enumerate(ROWS[:-1])
    )
    + "9,7,3,0,179,,2024-03-01 12:31:10,阿青\n",
}
EXPORTS = {**{f"{name}.txt": text for name, text in TEXTS.items()}, **FILES}


def converted(path: Path, me: str = "小林", gap: float = 3600) -> list[list[str]]:
    return list(Chats([me], gap).dialogues(path))


def saved(tmp_path: Path, text: str, name: str = "x.txt") -> Path:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("bytes_of", ["utf-8", "crlf", "gb18030", "utf-16", "gzip"])
def test_every_app_and_tool(tmp_path: Path, name: str, bytes_of: str) -> None:
    encode: dict[str, Callable[[str], bytes]] = {
        "utf-8": str.encode,
        "crlf": lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
        "gb18030": lambda text: text.encode("gb18030"),
        "utf-16": lambda text: text.encode("utf-16"),
        "gzip": lambda text: gzip.compress(text.encode()),
    }
    path = tmp_path / (f"{name}.gz" if bytes_of == "gzip" else name)
    path.write_bytes(encode[bytes_of](EXPORTS[name]))
    assert converted(path) == [ASKED]
    form = recognise(path)
    assert form is not None
    assert form.timed == ("no times" not in name)


def test_the_report_counts_what_is_dropped_and_left_over(tmp_path: Path) -> None:
    late = "2024-03-01 18:00:00 小林\n睡了吗\n\n2024-03-01 18:00:05 阿青\n没\n\n"
    path = saved(tmp_path, WECHAT + late)
    chats = Chats(["小林"], 3600)
    assert list(chats.dialogues(path)) == [ASKED]
    report = "\n".join(chats.lines())
    assert "阿青 (5 messages), 小林 (you) (3 messages)" in report
    assert "messages: 8, of which 5 are in dialogues" in report
    assert "1 dropped: pictures" in report
    assert "1 dropped: recalled" in report
    assert "1 not used: what you say first" in report
    assert "1 not used: what others say last" in report
    assert "group" not in report
    assert "no messages by this name" not in report
    chats = Chats(["小林", "小琳"], 3600)
    assert list(chats.dialogues(path)) == [ASKED]
    assert "no messages by this name, is it written so? '小琳'" in "\n".join(chats.lines())


def test_the_gap_ends_a_dialogue(tmp_path: Path) -> None:
    said = [
        ("09:00", "阿青", "早"),
        ("09:50", "小林", "早啊"),
        ("09:55", "阿青", "吃了吗"),
        ("11:00", "小林", "吃了"),
    ]
    path = saved(tmp_path, "".join(f"2024-03-01 {t} - {n}: {s}\n" for t, n, s in said))
    assert converted(path) == [["早", "早啊"]]
    assert converted(path, gap=gap_in_seconds("2h")) == [["早", "早啊", "吃了吗", "吃了"]]
    assert converted(path, gap=gap_in_seconds("30m")) == []
    assert [gap_in_seconds(t) for t in ("90s", "30m", "1.5 h", "1d")] == [90, 1800, 5400, 86400]
    for wrong in ("0h", "1", "h", "-1h", "2 weeks"):
        assert "30m" in refusal(lambda wrong=wrong: gap_in_seconds(wrong))  # type: ignore[misc]


def test_in_a_group_all_others_are_one_side(tmp_path: Path) -> None:
    said = [
        "阿青: 谁去爬山",
        "大山: 我去",
        "小林: 我也去",
        "小林: 几点",
        "阿青: 八点",
        "小林: 好",
        "大山: 等我",
    ]
    path = saved(tmp_path, "".join(f"[2024/3/1 9:0{n}:00] {s}\n" for n, s in enumerate(said)))
    chats = Chats(["小林"], 3600)
    assert list(chats.dialogues(path)) == [["谁去爬山 我去", "我也去 几点", "八点", "好"]]
    assert "in a group" in "\n".join(chats.lines())


def test_messages_come_in_the_order_of_their_times(tmp_path: Path) -> None:
    said = ["09:00 - 阿青: 一", "09:00 - 小林: 二", "09:02 - 阿青: 三", "09:03 - 小林: 四"]
    for order in (said, said[::-1], [*said[2:], *said[:2]]):
        path = saved(tmp_path, "".join(f"2024-03-01 {line}\n" for line in order))
        assert converted(path) == [["一", "二", "三", "四"]]


def test_names_hold_spaces_colons_and_emoji(tmp_path: Path) -> None:
    names = ["老王: 水管工", "Al B. (小林)😀"]
    said = ["来吗", "十点: 来", "好", "行", "谢谢", "不谢"]
    forms = ("{t} {n}: {s}\n", "{t} {n}\n{s}\n\n", "[{t}] {n}: {s}\n", "{n} {t}\n{s}\n")
    for form in forms:
        lines = (
            form.format(t=f"2024-03-01 09:0{k}:00", n=names[k % 2], s=s) for k, s in enumerate(said)
        )
        assert converted(saved(tmp_path, "".join(lines)), names[1]) == [said]


def test_a_message_that_looks_like_a_header_without_time_stays_text(tmp_path: Path) -> None:
    path = saved(tmp_path, WECHAT.replace("怎么了", "小林: 怎么了\n12:30 见"))
    assert converted(path)[0][1] == "在的 小林: 怎么了 12:30 见"
    untimed = TEXTS["no times"].replace("怎么了", "注意：下雨")
    assert converted(saved(tmp_path, untimed))[0][1] == "在的 注意：下雨"


def test_a_name_is_found_however_it_is_written(tmp_path: Path) -> None:
    """Signs of regular expressions, capital letters, WhatsApp's mark of a stranger."""
    for written, named in (("a.b*(c)[+?", "a.b*(c)[+?"), ("~ Ann", "ann"), ("Ａｎｎ", "Ann")):
        lines = [f"2024-03-01 09:0{n}:00 - {who}: {n}\n" for n, who in enumerate(["x", written])]
        assert converted(saved(tmp_path, "".join(lines)), named) == [["0", "1"]]


def test_blank_lines_separate_dialogues_without_times(tmp_path: Path) -> None:
    path = saved(tmp_path, "阿青: 早\n小林: 早啊\n\n阿青: 去吗\n小林: 不去\n")
    assert converted(path) == [["早", "早啊"], ["去吗", "不去"]]
    path = saved(tmp_path, "阿青:\n早\n\n小林:\n早啊\n\n阿青:\n去吗\n\n小林:\n不去\n")
    assert converted(path) == [["早", "早啊", "去吗", "不去"]]


def test_several_chats_in_a_file_stay_apart(tmp_path: Path) -> None:
    chat = "2024-01-01 12:00:00 阿青(10001)\n早\n\n2024-01-01 12:01:00 小林(10002)\n早啊\n\n"
    again = chat.replace("阿青(10001)", "大山(10003)").replace("早", "晚安")
    path = saved(tmp_path, QQ_HEAD + chat + QQ_HEAD.replace("阿青", "大山") + again)
    assert converted(path) == [["早", "早啊"], ["晚安", "晚安啊"]]
    account = json.dumps({"chats": {"list": [json.loads(telegram()), json.loads(telegram())]}})
    assert converted(saved(tmp_path, account, "account.json")) == [ASKED, ASKED]
    raw = "StrTalker,IsSender,StrContent,CreateTime\na,0,早,1709268605\nb,0,在吗,1709268606\n"
    raw += "a,1,早啊,1709268607\nb,1,在,1709268608\n"
    assert converted(saved(tmp_path, raw, "raw.csv"), "me") == [["早", "早啊"], ["在吗", "在"]]


def test_an_account_is_one_speaker_whatever_it_is_called(tmp_path: Path) -> None:
    text = "".join(
        f"2024-01-01 12:0{k}:00 {who}\n{k}\n\n"
        for k, who in enumerate(["阿青(10001)", "小林(10002)", "青青(10001)", "林林(10002)"])
    )
    path = saved(tmp_path, text)
    for me in ("小林", "林林", "10002"):
        assert converted(path, me) == [["0", "1", "2", "3"]]
    path = saved(tmp_path, text.replace("青青", "林林"))
    message = refusal(lambda: converted(path, "林林"))
    assert "2 speakers are called '林林'" in message
    assert "--me 1000" in message


def test_a_list_of_messages_longer_than_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smallgpt.data.text.CHUNK_BYTES", 7)
    for text in (telegram(), telegram(one_line=True)):
        assert converted(saved(tmp_path, text, "result.json")) == [ASKED]
    message = refusal(lambda: converted(saved(tmp_path, telegram()[:-20], "cut.json")))
    assert "the list is broken after record" in message


PLACEHOLDERS = """\
[图片]|[动画表情]|[语音] 12秒|[语音 5"]|[文件] 表.pdf|<Media omitted>|<省略影音内容>
图像已省略|sticker omitted|IMG-1.jpg (file attached)|<附件：a.jpg>|a.pdf (文件附件)
[视频通话] 通话时长 00:32|<msg><emoji/></msg>
对方已取消|以上是打招呼的消息|以上是打招呼的内容。|位置: https://maps.google.com/?q=30.1,120.2
Location: https://maps.google.com/?q=1.5,2.5|live location shared
[链接]:title:x|"阿青" 撤回了一条消息|You deleted this message|此消息已删除
https://a.cn/b?c=1|我拍了拍 "阿青"|Missed voice call"""


@pytest.mark.parametrize(
    ("text", "left"),
    [
        *((text, "") for text in PLACEHOLDERS.replace("\n", "|").split("|")),
        ("[图片]好看吗", "好看吗"),
        ("photo-1.jpg (file attached)\n好看吗", "好看吗"),
        *((text, "") for text in ("[OK]", "[捂脸][旺柴]", "[表情]", "[让我看看] [Facepalm]")),
        ("哈哈[捂脸][表情]真的", "哈哈 真的"),
        ("[2024年] [in] [一二三四五]", "[2024年] [in] [一二三四五]"),
        ("订单对方已取消", "订单对方已取消"),
        ("位置: 教学楼三楼", "位置: 教学楼三楼"),
        *((f"好的 {edited}", "好的") for edited in ("‹此消息已被编辑>", "<此消息已被编辑>")),
        ("好的 ‹此消息已编辑›", "好的"),
        ("好的\n\n你撤回了一条消息", "好的"),
        ("看看 https://a.cn", "看看 https://a.cn"),
        ("他撤回了一条消息我没看到", "他撤回了一条消息我没看到"),
        ("「阿青：几点」\n- - - - - - - - - - -\n八点", "八点"),
        ("好的 <This message was edited>", "好的"),
    ],
)
def test_what_is_no_text(text: str, left: str) -> None:
    kept, dropped = without_placeholders(Message("", None, "x", text))
    assert kept == left
    assert bool(dropped) or kept


@pytest.mark.parametrize(
    ("stamp", "moment"),
    [
        ("2024-03-01 12:30:05", (2024, 3, 1, 12, 30, 5)),
        ("2024/3/1 下午3:05", (2024, 3, 1, 15, 5)),
        ("2024年3月1日 凌晨12:05", (2024, 3, 1, 0, 5)),
        ("2024/3/1 中午12:05", (2024, 3, 1, 12, 5)),
        ("2024/3/1 晚上11:05", (2024, 3, 1, 23, 5)),
        ("3/1/24, 3:05 PM", (2024, 3, 1, 15, 5)),
        ("3/1/2024, 12:05 a.m.", (2024, 3, 1, 0, 5)),
        ("2024-03-01T12:30:05.25+08:00", (2024, 3, 1, 4, 30, 5)),
        ("1709296205", (2024, 3, 1, 12, 30, 5)),
        ("1709296205123", (2024, 3, 1, 12, 30, 5)),
    ],
)
def test_times(stamp: str, moment: tuple[int, ...]) -> None:
    american = order_of(["3/1/24, 1:00 PM", "3/2/24, 1:00 PM", "3/13/24, 1:00 PM"])
    assert seconds(stamp, american) == datetime(*moment, tzinfo=UTC).timestamp()  # type: ignore[misc,arg-type]


@pytest.mark.parametrize("stamp", ["", "12:30", "2024-13-01 12:30", "2024-03-01 25:00", "soon"])
def test_no_times(stamp: str) -> None:
    assert seconds(stamp) is None


def test_the_order_of_day_and_month_is_the_one_that_fits() -> None:
    dates = [(1, 3, 24), (2, 3, 24), (5, 3, 24)]  # no date of them is past the twelfth
    for order in ((2, 0, 1), (2, 1, 0), (0, 1, 2)):
        parts = [{order[0]: y, order[1]: m, order[2]: d} for d, m, y in dates]
        stamps = [f"{p[0]}/{p[1]}/{p[2]}, 9:00" for p in parts]
        assert order_of(stamps) == order
        assert order_of(stamps[::-1]) == order


def test_broken_rows_and_half_emoji(tmp_path: Path) -> None:
    path = saved(tmp_path, "时间,昵称,内容\n" + "2024-03-01 12:30,阿青,早,安,了\n", "x.csv")
    with path.open("a", encoding="utf-8") as file:
        file.write("2024-03-01 12:31,阿青,早\n2024-03-01 12:32,小林,早啊\n")
    output = tmp_path / "train.txt"
    arguments: list[str | Path] = ["data", "convert", path, "--me", "小林", "--output", output]
    assert "line 2" in refused_command(*arguments)
    assert "add --me" in refused_command("data", "convert", path, "--output", output)
    done = smallgpt(*arguments, "--skip-bad")
    assert "unreadable records: 1\n" in done.stdout
    assert output.read_text("utf-8") == "早\n早啊\n"
    half = telegram().replace("好呀", "好呀\\ud83d")
    assert converted(saved(tmp_path, half, "half.json"))[0][-1] == "好呀\ufffd"
    deep = telegram().replace('"text": "好呀"', '"text": ' + "[" * 400 + '"好呀"' + "]" * 400)
    converted(saved(tmp_path, deep, "deep.json"))


# The commands.


def test_convert_an_export(tmp_path: Path) -> None:
    output = tmp_path / "train.txt"
    number = WECHAT.replace("好呀", "好呀 小林电话13800001234")
    path = saved(tmp_path, number)
    done = smallgpt("data", "convert", path, "--me", "小林", "--output", output)
    assert done.exit_code == 0
    assert output.read_text("utf-8").split("\n") == [*ASKED[:-1], "好呀 小林电话13800001234", ""]
    assert "the first dialogue, < others, > you:\n  < 在吗\n  > 在的 怎么了\n" in done.stdout
    assert "it contains 1 phone number" in done.stderr
    output = tmp_path / "other.txt"
    arguments = ["--me", "小林", "--gap", "2h", "--redact", "--output"]
    done = smallgpt("data", "convert", path, *arguments, output)
    assert output.read_text("utf-8").endswith("\n好呀 [名字]电话[电话]\n")
    assert "replaced: 1 phone number, 1 name" in done.stderr


def test_redact_knows_every_name_and_account_of_a_table(tmp_path: Path) -> None:
    """The one that most people know is listed; a dump may name the other one, whoever sends."""
    rows = [
        "IsSender,CreateTime,StrContent,Remark,NickName,Sender,Alias",
        "0,1709268605,老周找青 青老师 qing_teacher zhou_77 借书,老周,青老师,zhou_77,qing_teacher",
        "1,1709268606,青说给zhou_77a,{},{},me_me,",
    ]
    for mine in (("小林", "林"), ("老周", "青老师")):
        path = saved(tmp_path, "\n".join(rows).format(*mine), "x.csv")
        output = tmp_path / "train.txt"
        arguments = ["--me", "我", "--redact", "--force", "--output"]
        done = smallgpt("data", "convert", path, *arguments, output)
        assert "speakers: 老周 (1 message)" in done.stdout
        said = "[名字]找青 [名字] [名字] [名字] 借书\n青说给zhou_77a\n"
        assert output.read_text("utf-8") == said


@pytest.mark.parametrize("name", [name for name in EXPORTS if name != "no times.txt"])
def test_an_export_is_not_learnt_silently(tmp_path: Path, name: str) -> None:
    path, output = saved(tmp_path, EXPORTS[name], name), tmp_path / "train.txt"
    message = refused_command("data", "convert", path, "--output", output)
    assert "add --me NAME" in message
    assert "小林" in message
    message = refused_command("data", "convert", path, "--me", "无名", "--output", output)
    assert "'无名' says nothing" in message
    assert "(2 messages)" in message
    assert not output.exists()
    stats = smallgpt("data", "stats", path)
    assert "data convert" in stats.stderr
    assert stats.exit_code == (0 if name.endswith(".txt") else 2)


def test_training_on_an_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, FILES["chinese.csv"], "text.csv")
    config = write_run(tmp_path, checkpoint_root=str(tmp_path / "run")) / "run.yaml"
    message = refused_command("train", config, f"data_path={path}")
    assert "holds the messages of a chat, not dialogues" in message
    warn_of_exports([saved(tmp_path, WECHAT), saved(tmp_path, TEXTS["no times"], "y.txt")])
    said = capsys.readouterr().err
    assert "x.txt looks like a chat export: times and names would" in said
    assert "y.txt looks like a chat export: names would" in said
    assert f"data convert {tmp_path}/x.txt --me NAME" in said


def test_other_texts_are_no_exports(tmp_path: Path) -> None:
    texts = [
        "早上好\n早\n\n几点了\n12:30\n",
        "会议是 2024-03-01 12:30 开始吗\n是的\n好\n那我记下\n知道了\n嗯\n" * 3,
        '{"messages": [{"role": "user", "name": "x", "content": "a", "time": 1709296205}]}\n',
        "时间,价格\n2024-03-01,12\n",
    ]
    for text in texts:
        assert recognise(saved(tmp_path, text)) is None
        assert recognise(saved(tmp_path, text, "x.csv")) is None


def test_what_cannot_be_read_as_an_export(tmp_path: Path) -> None:
    output = tmp_path / "train.txt"
    cases = {
        b"PK\x03\x04chat": "unpack it",
        b"<!DOCTYPE html>": "a web page",
        "在吗\n在\n".encode(): "no chat export was recognised",
        QQ_HEAD.encode(): "no chat export was recognised",
        b"": "is empty",
        "2024-03-01 12:30,小林,早\n2024-03-01 12:31,小林,好\n".encode(): "no message of a person",
        "2024-03-01 12:30 - 小林: a\n2024-03-01 12:31 - 小林: b\n".encode(): "2 not used: what you",
    }
    for data, words in cases.items():
        path = tmp_path / "chat.txt"
        path.write_bytes(data)
        message = refused_command("data", "convert", path, "--me", "小林", "--output", output)
        assert words in message
    refused_command("data", "convert", path, "--gap", "1h", "--output", output)
    refused_command("data", "convert", path, "--me", "小林", "--format", "text", "--output", output)
    assert not output.exists()
