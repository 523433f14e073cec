"""How many replies to held-out small talk fit."""

from pathlib import Path

from tqdm import tqdm

from smallgpt import runtime
from smallgpt.chat import chatbot
from smallgpt.chat.side_by_side import converse
from smallgpt.demo import smalltalk
from smallgpt.demo.judge import judged


def fitting_replies(
    path: Path, dialogues: int, seed: int, device: str = "auto", dtype: str | None = None
) -> str:
    """Play held-out small talk; the share of fitting replies, the weakest situation first."""
    bot = chatbot.load(path, device=runtime.choose_device(device), dtype=dtype or "float32")
    plays = smalltalk.held_out(dialogues, seed)
    counts = dict[str, tuple[int, int]]()
    talks = ((judged(play, counts), seed) for play in plays)
    with tqdm(total=sum(map(len, plays)), unit="reply", leave=False) as bar:
        for ended in converse(bot, talks):
            bar.update(ended)
    return _table(counts)


def _table(counts: dict[str, tuple[int, int]]) -> str:
    """Fitting replies of all: one line a situation, the weakest first, and the total last."""
    rows = sorted(sorted(counts.items()), key=lambda item: item[1][0] / item[1][1])
    good, total = (sum(column) for column in zip(*counts.values(), strict=True))
    return "\n".join(
        f"{good:5d} of {total:5d}  {100 * good / total:5.1f} %  {name}"
        for name, (good, total) in [*rows, ("fitting in all", (good, total))]
    )
