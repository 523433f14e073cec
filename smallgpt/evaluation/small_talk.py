"""How many replies to held-out small talk fit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from smallgpt import runtime
from smallgpt.chat import chatbot
from smallgpt.chat.side_by_side import converse
from smallgpt.demo import smalltalk
from smallgpt.demo.judge import judged


@dataclass(frozen=True)
class FittingReplies:
    """By situation: how many replies fit, of how many."""

    counts: dict[str, tuple[int, int]]

    @property
    def total(self) -> tuple[int, int]:
        """The same of all situations together."""
        good, total = (sum(column) for column in zip(*self.counts.values(), strict=True))
        return good, total

    def as_dict(self) -> dict[str, Any]:
        """The figures by name."""
        good, total = self.total
        return {"fitting": good, "replies": total, "share": good / total}

    def __str__(self) -> str:
        """One line a situation, the weakest first, and the total last."""
        rows = sorted(sorted(self.counts.items()), key=lambda item: item[1][0] / item[1][1])
        return "\n".join(
            f"{good:5d} of {total:5d}  {100 * good / total:5.1f} %  {name}"
            for name, (good, total) in [*rows, ("fitting in all", self.total)]
        )


def fitting_replies(
    path: Path, dialogues: int, seed: int, device: str = "auto", dtype: str | None = None
) -> FittingReplies:
    """Play held-out small talk, and count the replies that fit."""
    bot = chatbot.load(path, device=runtime.choose_device(device), dtype=dtype or "float32")
    plays = smalltalk.held_out(dialogues, seed)
    counts = dict[str, tuple[int, int]]()
    talks = ((judged(play, counts), seed) for play in plays)
    with tqdm(total=sum(map(len, plays)), unit="reply", leave=False) as bar:
        for ended in converse(bot, talks):
            bar.update(ended)
    return FittingReplies(counts)
