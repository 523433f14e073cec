"""Placeholders for what must not be learnt: numbers of people, e-mail, addresses, names.

What is found is what is written in the usual way; 一三八 for 138, nicknames in a text, or a place
described in words are not.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from smallgpt.utils.words import counted

_PLACE = r"[^\W\d_A-Za-z我你您他她它们在是到去的了住给寄送址发叫说这那每个]"
_UNIT = (
    rf"(?:{_PLACE}{{2,7}}?(?:省|自治区|自治州|(?<![城超股楼菜夜门上])市)"
    rf"|{_PLACE}{{1,6}}?(?:(?<!小)[区區]|县|縣|镇|鎮|乡|街道)"
    rf"|(?:{_PLACE}|\d){{1,8}}?(?:大道|大街|路|街|巷|弄|胡同|小区|花园|公寓|大厦|村|苑)"
    r"|(?:[A-Za-z]|[A-Za-z]?\d{1,5}(?:[-－]\d{1,5}){0,4})"
    r"(?:[号號][楼樓院]?|栋|幢|座|单元|層|层|[楼樓]|室|户))"
)
_LARGE_AND_SMALL = re.compile(r"(?:省|自治区|市).*[区區县縣州镇鎮市]")
_SAID = r"(?:号码?|[iI][dD])?\s?[:：是为]{0,2}\s?"  # between the word and the number
_WECHAT_WORD = r"(?:微信|[薇威vV]信|(?<![A-Za-z])(?:[vVwW][xX]|[wW]e[cC]hat))"
_WECHAT_ID = r"[A-Za-z][A-Za-z\d_-]{5,19}"
_KINDS = {
    "e-mail address": (
        "[邮箱]",
        re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+", re.ASCII),
    ),
    "WeChat id": (
        "[微信号]",
        re.compile(
            # Without a sign that an id follows, it has a digit: 微信Windows版 is none.
            rf"wxid_[A-Za-z\d_-]+|(?P<said>加.{{0,4}}?{_WECHAT_WORD}{_SAID}(?={_WECHAT_ID})"
            rf"|{_WECHAT_WORD}(?:号\s?[:：是为]{{0,2}}|\s?[:：是为]{{1,2}})\s?(?={_WECHAT_ID})"
            rf"|{_WECHAT_WORD}\s?(?=[A-Za-z_-]{{1,19}}\d)){_WECHAT_ID}"
        ),
    ),
    "QQ number": (
        "[QQ号]",
        re.compile(rf"(?P<said>(?:[qQ]{{2}}|扣扣)群?{_SAID})[1-9]\d{{4,10}}(?!\d)"),
    ),
    "passport": (
        "[护照]",
        re.compile(rf"(?P<said>(?:护照|護照|通行证){_SAID})[A-Za-z]{{1,2}}\d{{7,8}}(?!\d)"),
    ),
    "car plate": (
        "[车牌]",
        re.compile(
            r"[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼][A-Za-z]\s?[·•.-]?\s?"
            r"(?=(?:[A-Za-z]*\d){3})(?:[A-Za-z\d]{5,6}|[A-Za-z\d]{4}[挂学警港澳领])(?![A-Za-z\d])"
        ),
    ),
    "identity number": (
        "[身份证]",
        re.compile(
            r"(?<!\d)[1-9]\d{5}(?:(?:18|19|20)\d\d)(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]"
            r"(?!\d)"
        ),
    ),
    "bank card": ("[银行卡]", re.compile(r"(?<!\d)\d{4}(?:[ -]?\d{4}){3}(?:[ -]?\d{1,3})?(?!\d)")),
    "phone number": (
        "[电话]",
        re.compile(
            r"(?<!\d)(?:(?:\+|00)?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}(?!\d)"
            r"|(?<!\d)\(?0\d{2,3}\)?[- ]?\d{7,8}(?!\d)"
            r"|(?<!\d)[48]00[- ]?\d{3}[- ]?\d{4}(?!\d)"
            r"|\+\d{1,3}(?:[- ]?\(?\d{1,4}\)?){2,5}(?!\d)"
        ),
    ),
    "address": ("[地址]", re.compile(rf"(?:{_UNIT}\s?){{2,}}(?:\d{{2,4}}(?!\d))?")),
}
_WORTH_A_LOOK = re.compile(rf"\d{{3}}|\d[A-Za-z]\d|@|\d[号號]|[市省县縣区區]|wxid_|{_WECHAT_WORD}")
_FULL_WIDTH = {ord("０") + n: str(n) for n in range(10)} | {ord("＠"): "@"}
_SHORTEST_NAME = 2


class Redactor:
    """Counts what should not be learnt, and with `replace` puts placeholders there.

    Args:
        names: of people, to be replaced as well; it may grow while dialogues are read. Names of
            one character stay: they occur in too many words.
    """

    def __init__(self, replace: bool, names: set[str]) -> None:
        self.replace = replace
        self.names = names
        self.found: Counter[str] = Counter()
        self._pattern: tuple[int, re.Pattern[str] | None] = (0, None)

    def apply(self, dialogues: Iterable[list[str]]) -> Iterator[list[str]]:
        """Stream the dialogues, with placeholders if they are wanted."""
        for dialogue in dialogues:
            yield [self._redacted(utterance) for utterance in dialogue]

    def _redacted(self, text: str) -> str:
        plain = text.translate(_FULL_WIDTH)
        if _WORTH_A_LOOK.search(plain):
            for kind, (placeholder, pattern) in _KINDS.items():
                plain = self._substitute(kind, placeholder, pattern, plain)
            text = plain if self.replace else text
        names = self._name_pattern() if self.replace else None
        return self._substitute("name", "[名字]", names, text) if names else text

    def _substitute(self, kind: str, placeholder: str, pattern: re.Pattern[str], text: str) -> str:
        def replaced(match: re.Match[str]) -> str:
            if kind == "address" and not _is_address(match[0]):
                return match[0]
            self.found[kind] += 1
            return (match.groupdict().get("said") or "") + placeholder

        return pattern.sub(replaced, text)

    def _name_pattern(self) -> re.Pattern[str] | None:
        if self._pattern[0] != len(self.names):
            names = sorted((n for n in self.names if len(n) >= _SHORTEST_NAME), key=len)[::-1]
            choices = "|".join(
                (r"(?<![A-Za-z0-9_])" if name[0].isascii() else "")
                + re.escape(name)
                + (r"(?![A-Za-z0-9_])" if name[-1].isascii() else "")
                for name in names
            )
            self._pattern = len(self.names), re.compile(choices) if names else None
        return self._pattern[1]

    def line(self) -> str:
        """What was found, for people; "" where there was nothing."""
        found = ", ".join(counted(count, kind) for kind, count in self.found.most_common())
        if not found:
            return "replaced: nothing was found" if self.replace else ""
        if self.replace:
            return f"replaced: {found}"
        return (
            f"warning: it contains {found}: a model may repeat them to others\n"
            "  -> --redact puts placeholders there"
        )


def _is_address(text: str) -> bool:
    """Two places in words, such as 路口 and 小区, are none: a number, or city and district, is."""
    return bool(re.search(r"\d", text) or _LARGE_AND_SMALL.search(text))
