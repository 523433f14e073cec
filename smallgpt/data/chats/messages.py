"""Messages of a chat, whichever app or tool wrote them."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from smallgpt.utils.words import counted

ME, OTHER = "我", "对方"
"""The senders in a table that only marks which messages are one's own."""
SYSTEM = "system"
_MOST_LISTED = 20  # speakers
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

    def speakers(self) -> Counter[str]:
        """How many messages each sender has, but the app itself."""
        return Counter(m.sender for m in self.messages if m.sender != SYSTEM)

    def called(self, sender: str) -> str:
        """A sender's name, with the account where it has one."""
        name = self.names[sender].most_common(1)[0][0]
        return name if name == sender else f"{name} [{sender}]"

    def listed(self) -> str:
        """The speakers, for a message to people."""
        return listed(Counter({self.called(key): n for key, n in self.speakers().items()}))


def listed(speakers: Counter[str]) -> str:
    """Speakers with the number of their messages, for a message to people."""
    named = [f"{name} ({counted(n, 'message')})" for name, n in speakers.most_common(_MOST_LISTED)]
    more = len(speakers) - len(named)
    return ", ".join([*named, *([f"and {more:,} more"] if more else [])])
