"""Times in exports: 2024-03-01 12:30:05, 3/1/24, 3:05 PM, 2024年3月1日 下午3:05, Unix times."""

import itertools
import re
from collections.abc import Iterable
from datetime import UTC, datetime

_DATE = r"(?:\d{4}[-/.年]\s?\d{1,2}[-/.月]\s?\d{1,2}日?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})"
_DAY = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*\.?"
_WEEKDAY = (
    r"(?:\s*[（(]?(?:星期|周|週|礼拜|禮拜)?[一二三四五六日天][)）]?(?=\W|[上下凌中晚早]|$)"
    rf"|\s*[（(]?{_DAY}[)）]?)?"
)
_HALF = r"凌晨|清晨|早上|早晨|上午|中午|下午|傍晚|晚上|半夜|午夜"
CLOCK = (
    rf"(?:(?:{_HALF})\s?)?\d{{1,2}}[:：]\d{{2}}(?:[:：]\d{{2}}(?:[.,]\d{{1,6}})?)?"
    r"(?:\s?[AaPp]\.?\s?[Mm]\.?(?![A-Za-z]))?"
)
STAMP = rf"{_DATE}{_WEEKDAY}[,，]?[\sT]*{CLOCK}(?:\s?(?:Z|UTC)?[+-]\d\d:?\d\d|Z|\sUTC)?"
"""A pattern without groups: a date and a time of day."""
DATE_LINE = re.compile(rf"[\s=—–-]*(?:{_DAY},?\s*)?({_DATE}){_WEEKDAY}[\s=—–-]*")
"""A line of nothing but a date, which holds for the times of day that follow."""
_PARTS = re.compile(
    rf"(\d{{1,4}})[-/.年]\s?(\d{{1,2}})[-/.月]\s?(\d{{1,4}})日?{_WEEKDAY}[,，]?[\sT]*"
    rf"({_HALF})?\s?(\d{{1,2}})[:：](\d{{2}})(?:[:：](\d{{2}}))?[\d.,]*\s?([AaPp]?)"
    r"(?:\.?\s?[Mm])?.*?(?:([+-])(\d\d):?(\d\d))?$"
)
_UNIX = re.compile(r"(\d{10})(\d{3}|\d{6}|\d{9})?(?:\.\d+)?")
_ORDERS = ((2, 0, 1), (2, 1, 0), (0, 1, 2))
"""Where year, month and day are in 3/1/24: the American, the European, the Chinese order."""
YEAR_FIRST = _ORDERS[-1]

Order = tuple[int, int, int]


def seconds(text: str, order: Order = YEAR_FIRST) -> float | None:
    """The time in seconds, as if all clocks were set to UTC; None where the text holds no time.

    Args:
        order: where year, month and day are in a date that does not begin with a year of 4 digits.
    """
    text = text.strip()
    if unix := _UNIX.fullmatch(text):
        return float(unix[1])
    found = _PARTS.search(text)
    if not found:
        return None
    numbers = [int(number) for number in found.groups()[:3]]
    year, month, day = (numbers[i] for i in (YEAR_FIRST if len(found[1]) == 4 else order))
    hour, minute, second = int(found[5]), int(found[6]), int(found[7] or 0)
    try:
        moment = datetime(
            year + 2000 * (year < 100),
            month,
            day,
            _hour(hour, found[4] or found[8].upper()),
            minute,
            second,
            tzinfo=UTC,
        ).timestamp()
    except ValueError:
        return None
    offset = int(found[10]) * 3600 + int(found[11]) * 60 if found[9] else 0
    return moment - offset if found[9] == "+" else moment + offset


def _hour(hour: int, half: str) -> int:
    """The hour of 24 for one of a half of the day, such as 下午 3 or 12 AM."""
    if half in ("P", "下午", "傍晚") or (half == "中午" and hour < 11) or half == "晚上":
        return hour + 12 if hour < 12 else (0 if half == "晚上" and hour == 12 else hour)
    return 0 if half and half != "中午" and hour == 12 else hour


def order_of(stamps: Iterable[str]) -> Order:
    """The order of dates such as 3/1/24: the one in which all are dates, rising, and near."""
    stamps = list(stamps)
    costs = {}
    for order in _ORDERS:
        times = [seconds(stamp, order) for stamp in stamps]
        known = [time for time in times if time is not None]
        falls = sum(after < before for before, after in itertools.pairwise(known))
        span = max(known) - min(known) if known else 0.0
        # An export with the newest message first rises as well, backwards.
        costs[order] = (times.count(None), min(falls, max(0, len(known) - 1 - falls)), span)
    return min(costs, key=lambda order: costs[order])
