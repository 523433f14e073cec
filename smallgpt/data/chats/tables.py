"""Tables, and lists of JSON objects, as messages: WeChat dumps, Telegram's result.json.

Each row or object is a message. Its sender, content and time are in columns with Chinese or English
names.
"""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

from smallgpt.data.chats.messages import CLEAN, ME, OTHER, SYSTEM, SYSTEM_NAMES, Export, Message
from smallgpt.data.chats.times import Order, order_of, seconds
from smallgpt.data.json_files import (
    Broken,
    json_items,
    json_items_under,
    json_lines,
    leading_value,
    refusing,
)
from smallgpt.data.tables import header_of, is_table, read_rows
from smallgpt.utils.errors import UserError

_FIRST_RECORDS = 1000
_FIELDS = {
    "sender": "senderdisplayname sendername remark 备注 nickname 昵称 群昵称 发送者 发送人 "
    "发言人 发言者 说话人 姓名 用户名 用户 名称 from sender author speaker accountname displayname "
    "username user name talker strtalker",
    "account": "fromid senderid senderusername wxid",
    "names": "senderdisplayname sendername remark 备注 nickname 昵称 群昵称 alias 微信号 from "
    "sender accountname displayname username user name fromid senderid senderusername wxid",
    "content": "content text message msg strcontent 内容 消息内容 聊天内容 消息 正文 文本 body",
    "time": "strtime time timestamp datetime createtime 时间 发送时间 消息时间 日期时间 sendtime "
    "msgtime createdat timestampms date 日期",
    "date": "date 日期",
    "mine": "issender issend isself isme fromme isfromme 是否本人",
    "kind": "typename type msgtype messagetype 消息类型 类型",
    "chat": "roomname strtalker 聊天对象 会话 会话名称 conversation chatname 群名 群聊 talkerid",
}
_YES = ("1", "true", "yes", "是")
_WECHAT_KINDS = {
    **{"3": "图片", "34": "语音", "42": "名片", "43": "视频", "47": "表情", "48": "位置"},
    **{"50": "通话", "10000": SYSTEM, "10002": SYSTEM, "service": SYSTEM},
}
_TELEGRAM_MEDIA = ("photo", "file", "location_information", "contact_information", "poll")


def fields(record: dict[str, Any]) -> dict[str, list[str]]:
    """The columns for each of `_FIELDS`, the best first."""
    return _fields_of(tuple(record))


@functools.lru_cache
def _fields_of(columns: tuple[str, ...]) -> dict[str, list[str]]:
    by_name = {re.sub(r"[\s_-]", "", column).lower(): column for column in reversed(columns)}
    return {
        what: [by_name[name] for name in names.split() if name in by_name]
        for what, names in _FIELDS.items()
    }


def _is_message(record: Any) -> bool:
    if not isinstance(record, dict) or "role" in record:
        return False
    found = fields(record)
    return bool(found["content"] and (found["sender"] or found["mine"]))


@dataclass(frozen=True)
class TableForm:
    """How a file holds messages: a table, JSON lines, a list, or an object with a list in it."""

    container: str
    timed: bool


def recognise(path: Path, beginning: str) -> TableForm | None:
    """How a file that begins like this holds messages; None where it holds none."""
    container, record = _first_record(path, beginning.lstrip())
    if not _is_message(record):
        return None
    # Dialogues of other programs, one a line, may name senders and times as well.
    dialogues = container == "object" and leading_value(beginning.partition("\n")[0]) is not None
    several = dialogues and "\n" in beginning.strip()
    return TableForm(container, bool(fields(record)["time"]) and not several)


def read(path: Path, form: TableForm, broken: Broken | None = None) -> Export:
    """Read all messages of a table or JSON file.

    `broken` is called for broken rows and lines; without it, a UserError names the first one.
    """
    export = Export()
    records = _records(path, form.container, broken)
    first = list(itertools.islice(records, _FIRST_RECORDS))
    order = order_of(_cell(record, "time") for _, record in first)
    for number, record in itertools.chain(first, records):
        _add(export, number, record, order)
    if ME in export.names:  # a raw dump names the other one, whoever sends
        others = {name for key in export.names if key != ME for name in (key, *export.names[key])}
        own = {name: n for name, n in export.names[ME].items() if name not in others}
        export.names[ME] = Counter(own or {ME: 1})
    return export


def _first_record(path: Path, text: str) -> tuple[str, Any]:
    if is_table(path):
        return "table", dict.fromkeys(header_of(text.splitlines())[2], "")
    if text.startswith("["):
        return "list", leading_value(text[1:])
    if text.startswith("{"):
        record = leading_value(text.partition("\n")[0])
        if _is_message(record):
            return "lines", record
        return "object", _first_in_object(path, text)
    return "", None


def _first_in_object(path: Path, text: str) -> Any:
    """The first message in a list of an object; before it may be what the app itself says."""
    with suppress(UserError):  # it ends within the list
        items = json_items_under(path, "messages", [text])
        return next((record for _, record in items if _is_message(record)), None)
    return None


def _records(
    path: Path, container: str, broken: Broken | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The chat's number, where there are several lists of messages, and each record."""
    items: Iterable[tuple[int, Any]]
    if container == "object":
        items = json_items_under(path, "messages")
    elif container == "table":
        items = ((0, row.cells) for row in read_rows(path, broken=broken))
    elif container == "lines":
        broken = broken or refusing(path, "leave such lines out: --skip-bad")
        items = ((0, record) for _, record in json_lines(path, broken))
    else:
        items = ((0, record) for _, record in json_items(path))
    return ((number, record) for number, record in items if isinstance(record, dict))


def _cell(record: dict[str, Any], what: str) -> str:
    """What a record has in its columns for one of _FIELDS: the first that is not empty."""
    texts = (_plain(record[column]).strip() for column in fields(record)[what])
    return next((text for text in texts if text), "")


def _plain(value: Any) -> str:
    """A cell as text. It may be an object with the text, or a list of texts and such objects."""
    if isinstance(value, str) and value.startswith('{"'):  # as in dumps of the older PyWxDump
        inner = leading_value(value)
        value = inner if isinstance(inner, dict) and "msg" in inner else value
    parts = value if isinstance(value, list) else [value]
    return "".join(map(_text_of, parts))


def _text_of(part: Any) -> str:
    if isinstance(part, dict):
        texts = (part[key] for key in ("text", "msg", "content", "name", "nickname") if key in part)
        part = next((text for text in texts if isinstance(text, str)), None)
    return "" if part is None else str(part)


def _add(export: Export, number: int, record: dict[str, Any], order: Order) -> None:
    kind = _cell(record, "kind").lower()
    kind = _WECHAT_KINDS.get(kind, kind)
    text = _cell(record, "content")
    if not text:
        kind = next((key for key in _TELEGRAM_MEDIA if key in record), kind)
        kind = str(record.get("media_type") or kind)
    name = _cell(record, "sender").translate(CLEAN).strip()
    if kind == SYSTEM or "系统" in kind or name in SYSTEM_NAMES:
        sender = SYSTEM
    elif _cell(record, "mine").lower() in _YES:
        sender = ME
    else:
        sender = intern(_cell(record, "account") or name or OTHER)
    export.names[sender][name or sender] += 1
    if sender != SYSTEM:
        also = (_plain(record[column]) for column in fields(record)["names"])
        export.names[sender].update({one: 0 for text in also if (one := text.strip())})
    time, date = _cell(record, "time"), _cell(record, "date")
    stamps = (time, f"{date} {time}", f"{time} 0:00")
    moment = next((at for stamp in stamps if (at := seconds(stamp, order)) is not None), None)
    label = intern(f"{number}\n{_cell(record, 'chat')}")
    export.messages.append(Message(label, moment, sender, text.translate(CLEAN), kind))
