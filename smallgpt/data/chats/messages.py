"""Messages of a chat, whichever app or tool wrote them."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

ME, OTHER = "我", "对方"
"""The senders in a table that only marks which messages are one's own."""
SYSTEM = "system"
SYSTEM_NAMES = ("10000", "1000000", "系统消息", "系统通知", "系統訊息")
"""What the app itself is called; the numbers are QQ's."""
# Marks of writing direction are dropped; each kind of space is a space.
CLEAN = {
    **dict.fromkeys([0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF, *range(0x202A, 0x202F)]),
    **dict.fromkeys([0xA0, 0x2005, 0x2009, 0x202F], " "),
}
"""For `str.translate`."""


class Message(NamedTuple):
    """A message of an export.

    chat: which chat it belongs to, where a file holds several.
    time: in seconds; None where it has none.
    sender: a key of `Export.names`; SYSTEM for what the app itself says.
    text: may have several lines.
    kind: what it is by the export's own word, such as 图片; "" where that says nothing.
    """

    chat: str
    time: float | None
    sender: str
    text: str
    kind: str = ""


@dataclass
class Export:
    """The messages of a file in its order; and what each sender, by account or name, is called."""

    messages: list[Message] = field(default_factory=list)
    names: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
