"""Text exports as messages.

A text has one form of header throughout, which is found from its beginning:

    [2024/3/1 下午3:05:10] 张三: 在吗        2024-03-01 12:30:05 张三(12345678)
    3/1/24, 3:05 PM - 张三: 在吗             在吗
    2024-03-01 12:30:05 '张三' 在吗
    张三(2024-03-01 12:30:05):在吗           张三 2024/3/1 12:30
    张三: 在吗                               在吗

Lines that are no header go on with the message before.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern

from smallgpt.data.chats.messages import CLEAN, SYSTEM, SYSTEM_NAMES, Export, Message
from smallgpt.data.chats.times import CLOCK, DATE_LINE, STAMP, YEAR_FIRST, Order, order_of, seconds
from smallgpt.data.text import read_lines

_FEWEST, _LEAST_SHARE = 2, 0.1  # headers, and their share of the lines, in a text export
_LINES = 20_000  # that are looked at
_FEW, _DISTINCT = 6, 0.8  # headers, and the share of different ones where the text is in them
_NAME_AND_COLON = re.compile(r"(?P<name>[^:：]{1,80}?) *[:：](?!//)\s*(?P<text>.*)")
_NAME_AND_TEXT = (
    re.compile(r"(['\"])(?P<name>.+?)\1\s+(?P<text>.*)"),
    re.compile(r"<(?P<name>[^<>]+)>\s*(?P<text>.*)"),
    re.compile(r"(?P<name>[^\t]+?)(?<! ) *+\t(?P<text>.*)"),
    _NAME_AND_COLON,
    re.compile(r"(?P<name>\S+)\s+(?P<text>.*)"),
)
_HEADERS = {
    "brackets": re.compile(rf"\[(?P<stamp>{STAMP})\]\s*(?P<rest>\S.*)"),
    "dash": re.compile(rf"(?P<stamp>{STAMP}) [-–—] (?P<rest>\S.*)"),
    "time first": re.compile(rf"(?P<stamp>{STAMP})[\s,，]\s*(?P<rest>\S.*)"),
    "time in brackets": re.compile(
        rf"(?P<rest>\S.*?)(?<!\s)\s*+[(（\[](?P<stamp>{STAMP})[)）\]](?:\s*[:：]\s*(?P<text>.*)|\s*)"
    ),
    "time last": re.compile(rf"(?P<rest>\S.*?)(?<!\s)\s++(?P<stamp>{STAMP})\s*[:：]?\s*"),
    "tabs": re.compile(rf"(?P<stamp>{CLOCK})\t(?P<rest>[^\t]+\t.*)"),
    "clock last": re.compile(rf"(?P<rest>\S.*?)(?<!\s)\s++(?P<stamp>{CLOCK})\s*"),
    "no time": re.compile(r"(?P<rest>[^:：\s][^:：]{0,29})[:：](?!//)\s*(?P<text>.*)"),
}
_NEED_A_DATE = ("tabs", "clock last")
_IN_ONE_LINE = ("dash", "tabs")
_WITH_DATE = tuple(_HEADERS)[:5]
_ACCOUNT = re.compile(r"(?:【[^】]*】)?(.*?)(?<!\s)\s*+(?:\((\d{5,})\)|<([^<>\s]+@[^<>\s]+)>)")
_QQ_RULE = re.compile(r"={20,}|消息记录（此消息记录为文本格式.*|消息分组[:：].*")
_QQ_CHAT = re.compile(r"消息对象[:：](.*)")
_SYSTEM_NAME = re.compile(
    r".*(?:created group|created this group|changed the (?:subject|group)|security code|群组|群聊"
    r"|\badded\b|joined using|端到端加密|end-to-end|更改了|撤回了).*"
)


@dataclass(frozen=True)
class TextForm:
    """How a text writes messages.

    kind: of _HEADERS.
    split: parts name and text, which follow the time in one line; None: the text is below, or
        the header's pattern has it.
    order: of dates that do not begin with the year.
    long_names: names with a colon in them, by the part before it.
    names: where there are no times, the only names; else a line "note: …" were one.
    blank_separates: where there are no times, a blank line is between dialogues.
    """

    kind: str
    split: re.Pattern[str] | None = None
    order: Order = YEAR_FIRST
    long_names: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    blank_separates: bool = False

    @property
    def timed(self) -> bool:
        """Whether messages have times."""
        return self.kind != "no time"


def recognise(beginning: str, me: Sequence[str]) -> TextForm | None:
    """How a text that begins like this writes messages; None where it holds none.

    Args:
        me: names of a sender; with them, few messages without times are enough.
    """
    lines = beginning.split("\n", _LINES)[:_LINES]
    filled = sum(bool(line.strip()) for line in lines)
    dated = any(map(DATE_LINE.fullmatch, lines))
    for kind in _HEADERS:
        if kind in _NEED_A_DATE and not dated:
            continue
        found = [(n, match) for n, (_, match) in enumerate(_headers(lines, kind)) if match]
        many = len(found) >= max(_FEWEST, filled * _LEAST_SHARE)
        if kind == "no time":
            names = Counter(match["rest"] for _, match in found)
            repeated = sum(count for count in names.values() if count > 1)
            many = len(names) > 1 and (
                any(name in names for name in me) or (many and repeated >= filled / 2)
            )
        if many:
            return _layout(kind, lines, found)
    return None


def _headers(lines: Iterable[str], kind: str) -> Iterator[tuple[str, re.Match[str] | None]]:
    """Each line, with its match where it is a header."""
    header, before = _HEADERS[kind], ""
    for line in lines:
        match = header.fullmatch(line.rstrip())
        # Messages end with times of day as well; but a blank line is before each header.
        blank_before = not before.strip() or DATE_LINE.fullmatch(before)
        yield line, match if match and (kind != "clock last" or blank_before) else None
        before = line


def _layout(kind: str, lines: list[str], found: list[tuple[int, re.Match[str]]]) -> TextForm:
    """Where name and text are; `found` has the headers and in which lines they are."""
    ends = [*(n for n, _ in found[1:]), len(lines)]
    below = sum(
        any(line.strip() for line in lines[n + 1 : end])
        for (n, _), end in zip(found, ends, strict=True)
    )
    blank_before = sum(not lines[n - 1].strip() for n, _ in found[1:])
    rests = [match["rest"] for _, match in found]
    # Names come again and again; with the text in the same line hardly any does.
    distinct = len(found) >= _FEW and len(set(rests)) > _DISTINCT * len(rests)
    in_one_line = below < len(found) / 2 or distinct or kind in _IN_ONE_LINE
    split = None
    if in_one_line and "text" not in found[0][1].re.groupindex:
        matches = {s: sum(map(bool, map(s.fullmatch, rests))) for s in _NAME_AND_TEXT}
        split = next((s for s, n in matches.items() if n > len(found) / 2), _NAME_AND_COLON)
    names = Counter(rests if kind == "no time" else [])
    common = {name for name, count in names.items() if count > 1}
    return TextForm(
        kind,
        split,
        order_of(match["stamp"] for _, match in found) if kind in _WITH_DATE else YEAR_FIRST,
        _names_with_colons(rests) if split is _NAME_AND_COLON else {},
        common if len(common) > 1 else set(names),
        blank_before < (len(found) - 1) * 0.9,
    )


def _names_with_colons(rests: Iterable[str]) -> dict[str, str]:
    """Names such as "a: b", by "a": nearly always the same stands before the second colon."""
    short: Counter[str] = Counter()
    long: Counter[tuple[str, str]] = Counter()
    for rest in rests:
        first, *more = re.split(r"[:：]", rest, maxsplit=2)
        short[first] += 1
        if len(more) == 2:
            long[first, rest[: len(first) + 1 + len(more[0])]] += 1
    return {a: b for (a, b), count in long.items() if count >= max(3, 0.9 * short[a])}


def read(path: Path, form: TextForm, me: Sequence[str]) -> Export:
    """Read all messages of a text. `me`: names that are known, even with colons in them."""
    export = Export()
    chat, date, part = "", "", 0
    name, time, label = "", None, ""
    names = {*form.names, *me} if form.names else None
    body: list[str] = []
    lines = (line.rstrip("\n").translate(CLEAN) for line in read_lines(path, translate=True))

    def close() -> None:
        if name:
            text = "\n".join(body).strip()
            # A time with text but no message below is what the app says, such as a recall.
            sender = _sender(name, export.names) if text or form.split else SYSTEM
            export.messages.append(Message(label, time, sender, text or name))
        body.clear()

    for line, match in _headers(lines, form.kind):
        if match and (names is None or match["rest"] in names):
            close()
            label = intern(f"{chat}\n{part}")
            name, text = _name_and_text(match, form, me)
            body.append(text)
            if form.timed:
                time = seconds(f"{date} {match['stamp']}", form.order)
        elif form.kind in _NEED_A_DATE and (day := DATE_LINE.fullmatch(line)):
            date = day[1]
        elif day := _QQ_CHAT.fullmatch(line):
            close()
            name, chat = "", day[1].strip()
        elif not form.timed and form.blank_separates and not line.strip():
            part += 1
        elif not _QQ_RULE.fullmatch(line):
            body.append(line)
    close()
    return export


def _name_and_text(match: re.Match[str], form: TextForm, me: Sequence[str]) -> tuple[str, str]:
    rest = match["rest"].strip()
    if form.split is None:
        return rest, match.groupdict().get("text") or ""
    for name in (*me, form.long_names.get(re.split(r"[:：]", rest, maxsplit=1)[0], "")):
        if name and rest.startswith(name) and rest[len(name) :].lstrip()[:1] in (":", "："):
            return name, rest[len(name) :].lstrip()[1:].strip()
    parts = form.split.fullmatch(rest)
    if parts and not _SYSTEM_NAME.fullmatch(parts["name"]):
        return parts["name"].strip(), parts["text"]
    return SYSTEM, rest


def _sender(name: str, names: dict[str, Counter[str]]) -> str:
    """The key of a name such as 张三(12345678), which may change while the account stays."""
    account = _ACCOUNT.fullmatch(name)
    key, name = (account[2] or account[3], account[1]) if account else (name, name)
    key = SYSTEM if key in SYSTEM_NAMES or name in SYSTEM_NAMES else intern(key)
    names[key][name or key] += 1
    return key
