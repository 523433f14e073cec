"""How messages are worded."""

import math


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 dialogue", "2,000 dialogues"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def size(number: float) -> str:
    """Bytes as a person reads them: "0.4 kB", "13 MB", "2.4 GB"."""
    units = {"GB": 1e9, "MB": 1e6, "kB": 1e3}
    unit = next((unit for unit, least in units.items() if number >= least), "kB")
    value = number / units[unit]
    return f"{value:,.{1 if value < 10 else 0}f} {unit}"


def rounded(value: object) -> object:
    """A number with four digits that count, or all before the point; anything else as it is."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    return round(value) if abs(value) >= 1000 else float(f"{value:.4g}")
