"""How messages are worded."""


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 dialogue", "2,000 dialogues"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
