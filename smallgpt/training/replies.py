"""What the replies are like that a model generates: definitions in docs/evaluation.md."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from statistics import median

from tqdm import tqdm

from smallgpt.chat.chatbot import Chatbot
from smallgpt.chat.side_by_side import converse
from smallgpt.data.pairs import Pair
from smallgpt.distributed.world import ALONE, World
from smallgpt.training.validation import evaluation_mode


def generate_replies(
    bot: Chatbot,
    talks: Sequence[Sequence[str]],
    seed: int,
    stopped: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> list[str] | None:
    """A reply to each talk, by the chatbot's own sampling; None where a process was stopped.

    Each is drawn with a generator of its own, so it does not depend on the others. The processes of
    `world` share them; all get the replies of all.
    """
    own = range(len(talks))[world.rank :: world.size]
    said = dict[int, str]()

    def talk(number: int) -> Generator[Sequence[str], str, None]:
        said[number] = yield talks[number]

    seeded = ((talk(number), seed * 1_000_003 + number) for number in own)
    bar = tqdm(total=len(own), desc="replying", leave=False, delay=1, disable=not world.is_first)
    with evaluation_mode(bot.model), bar:
        for ended in converse(bot, seeded):
            bar.update(ended)
            if stopped():
                break
    parts = world.gather((said, stopped()))
    if any(was_stopped for _, was_stopped in parts):
        return None
    replies = [""] * len(talks)
    for part, _ in parts:
        for number, reply in part.items():
            replies[number] = reply
    return replies


def loops(reply: str, shortest: int = 1) -> bool:
    """Whether a span of `shortest` to 16 characters stands in it three times running."""
    return bool(re.search(rf"(.{{{shortest},16}}?)\1\1", reply, re.DOTALL))


def is_copy(reply: str, message: str) -> bool:
    """Whether they are equal but for punctuation and spaces."""
    return _bare(reply) == _bare(message)


def _bare(text: str) -> str:
    kept = (c for c in text.casefold() if unicodedata.category(c)[0] not in "PZ")
    return "".join(kept) or text.strip()


def distinct(replies: Sequence[str], n: int) -> float:
    """Different n-grams of characters as a share of all (Li et al., arXiv:1510.03055)."""
    grams = [reply[at : at + n] for reply in replies for at in range(len(reply) - n + 1)]
    return len(set(grams)) / max(1, len(grams))


def figures_of(pairs: Sequence[Pair], replies: Sequence[str]) -> dict[str, float]:
    """The figures of replies to the messages of pairs, by name; none of no replies.

    Shares are of the replies, lengths in characters.
    """
    if not replies:
        return {}
    copies = [is_copy(reply, pair.messages[-1]) for pair, reply in zip(pairs, replies, strict=True)]
    lengths = [len(reply) for reply in replies]
    return {
        "distinct_1": distinct(replies, 1),
        "distinct_2": distinct(replies, 2),
        "commonest_reply_share": Counter(replies).most_common(1)[0][1] / len(replies),
        "copies_share": sum(copies) / len(replies),
        "loops_share": sum(map(loops, replies)) / len(replies),
        "longer_loops_share": sum(loops(reply, shortest=2) for reply in replies) / len(replies),
        "mean_length": sum(lengths) / len(replies),
        "median_length": float(median(lengths)),
    }
