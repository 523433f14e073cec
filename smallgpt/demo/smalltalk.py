"""The built-in corpus: everyday Chinese small talk, written from templates.

`smalltalk.yaml` holds the sentences; this file draws dialogues from them, and `judge.py` decides
whether a model's reply is one that the situation allows. The path of a dialogue:

    scripts (trees of turns) ──> one to four topics ──> a walk down each ──> lines of text

Training never sees a *held-out combination*: a user phrasing with one of its slot values, or
two user phrasings in a row. About a tenth of them, chosen by a stable hash of their text, are
kept for `held_out`; each word, phrasing and value alone does occur in training.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import yaml

from smallgpt.utils.words import counted

MAX_TURNS = 5  # a turn is one user line and one bot line: at most ten utterances
MEMORY_SHARE = 0.28  # of the dialogues: something said earlier is asked for at the end
CHAIN_SHARE = 0.25  # of the dialogues: the user goes on to another topic
STOP_EARLY = 0.12  # chance that the user leaves a topic before its script ends
HELD_OUT_SHARE = 0.10  # of the combinations

# How people end a typed line. The templates write ？ after a question and nothing otherwise.
QUESTION_ENDS = ("？", "？", "？", "", "", "", "?")
STATEMENT_ENDS = ("", "", "", "", "。", "。", "！", "！", "~")
END_MARKS = "？?。！~"  # do not tell two combinations apart

NAME = "小积"
"""The bot's."""
_ABOUT_NAME = re.compile("(?<!小)积")  # 积木, 积少成多, 积累
_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)(?::(\w+))?\}")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Line:
    """One way to say something: its alternatives are chosen, its slots still open.

    `text` is ready for `str.format_map`; `slots` maps each variable to the slot list it takes
    its value from, so `{dish:food}` is the variable "dish" over the list "food".
    """

    text: str
    slots: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Node:
    """One turn of a script and what may follow it.

    `users` and `bots` hold, for each phrasing of the file, the lines it stands for; every
    bot line answers every user line. A script starts only when the variables in `needs` have
    been said in the dialogue and those in `lacks` have not. `only` is "first" or "last" for
    a script that must open or close a dialogue, else "". `brings` names every variable that
    this turn or a later one may set; `answers` is what the user may say next, unfilled.
    """

    situation: str
    users: tuple[tuple[Line, ...], ...]
    bots: tuple[tuple[Line, ...], ...]
    then: tuple[Node, ...]
    brings: frozenset[str]
    answers: frozenset[str]
    needs: frozenset[str]
    lacks: frozenset[str]
    only: str
    weight: float


@dataclass(frozen=True)
class Templates:
    """The parsed file: slot lists by name, and the first turn of every script."""

    slots: Mapping[str, Sequence[str]]
    scripts: Sequence[Node]


@dataclass(frozen=True)
class Turn:
    """One turn as spoken. `said` holds the variables that the user's line sets.

    `pair` is the combination this turn forms, by text without final punctuation: ("", line)
    for a line with slots, else (previous user line, line); None for an opening without slots.
    """

    node: Node
    user: str
    bot: str
    said: Mapping[str, str]
    pair: tuple[str, str] | None


@cache
def templates() -> Templates:
    """The project's own templates, read once."""
    text = resources.files(__package__).joinpath("smalltalk.yaml").read_text("utf-8")
    raw: dict[str, Any] = yaml.safe_load(text)
    slots = {kind: values.split() for kind, values in raw["slots"].items()}
    situations = raw["situations"].items()
    return Templates(
        slots, [_node(slots, name, **script) for name, scripts in situations for script in scripts]
    )


def _node(
    slots: Mapping[str, Sequence[str]],
    situation: str,
    user: str,
    bot: str,
    then: Sequence[Mapping[str, Any]] = (),
    needs: str = "",
    lacks: str = "",
    only: str = "",
    weight: float = 1.0,
) -> Node:
    users, bots = (tuple(lines_of(p, slots) for p in side.splitlines()) for side in (user, bot))
    children = tuple(_node(slots, situation, **child) for child in then)
    names = frozenset(name for line in itertools.chain(*users, *bots) for name in line.slots)
    next_lines = itertools.chain.from_iterable(form for child in children for form in child.users)
    return Node(
        situation,
        users,
        bots,
        children,
        brings=names.union(*(child.brings for child in children)).difference(needs.split()),
        answers=frozenset(line.text.rstrip(END_MARKS) for line in next_lines),
        needs=frozenset(needs.split()),
        lacks=frozenset(lacks.split()),
        only=only,
        weight=weight,
    )


def lines_of(phrasing: str, slots: Mapping[str, Sequence[str]]) -> tuple[Line, ...]:
    """All lines that one phrasing stands for: "早[呀|]" gives "早呀" and "早".

    Raises:
        ValueError: it has unbalanced brackets, or a slot that is not in `slots`.
    """
    parts = _ALTERNATIVES.split(phrasing)  # literal, alternatives, literal, …
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    lines = []
    for text in map("".join, itertools.product(*choices)):
        kinds = {name: kind or name for name, kind in _SLOT.findall(text)}
        if set("[]|{}") & set(_SLOT.sub("", text)) or not slots.keys() >= {*kinds.values()}:
            raise ValueError(f"unbalanced brackets or an unknown slot in {phrasing!r}")
        lines.append(Line(_SLOT.sub(r"{\1}", text), kinds))
    return tuple(lines)


def generate(dialogues: int, seed: int, name: str = NAME) -> Iterator[str]:
    """Yield `dialogues` distinct training dialogues, lines joined by newlines.

    The lines alternate user, bot, …; the same seed gives the same text on every machine.

    Args:
        name: of the bot. Where it is another one, what is said about the characters of ours is left
            out.
    """
    texts: Iterator[str] = map(_text, _distinct(seed, want_held_out=False))
    if name != NAME:
        texts = (text.replace(NAME, name) for text in texts if not _ABOUT_NAME.search(text))
    yield from itertools.islice(texts, dialogues)


def held_out(dialogues: int, seed: int) -> list[tuple[Turn, ...]]:
    """Draw `dialogues` distinct dialogues for evaluation, in the proportions of training.

    Each has at least one combination (see `Turn.pair`) that `generate` never emits.
    """
    return list(itertools.islice(_distinct(seed, want_held_out=True), dialogues))


def practice(dialogues: int, seed: int) -> list[tuple[Turn, ...]]:
    """Draw `dialogues` distinct dialogues of the kind that `generate` emits."""
    return list(itertools.islice(_distinct(seed, want_held_out=False), dialogues))


def is_held_out(pair: tuple[str, str]) -> bool:
    """Whether a combination (see `Turn.pair`) is kept out of training."""
    digest = hashlib.blake2s("\n".join(pair).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**32


def _distinct(seed: int, want_held_out: bool) -> Iterator[tuple[Turn, ...]]:
    rng, seen, repeats = random.Random(seed), set[bytes](), 0
    while repeats < 100_000:  # the templates hold far more dialogues than any corpus needs
        kind, turns = rng.random(), None
        # Again until the topics go together and lie on the wanted side; the kind stays, so
        # that memory and changes of topic have the same share on both sides.
        while not turns or want_held_out != any(t.pair and is_held_out(t.pair) for t in turns):
            turns = _talk(rng, _topics(rng, kind))
        mark = hashlib.blake2s(_text(turns).encode(), digest_size=12).digest()
        repeats = repeats + 1 if mark in seen else 0
        if not repeats:
            seen.add(mark)
            yield turns
    found = counted(len(seen), "distinct dialogue")
    raise ValueError(f"the templates gave {found}, then only repeats")


def _topics(rng: random.Random, kind: float) -> list[Node]:
    """The scripts of one dialogue; `kind`, 0 to 1, says whether it tests memory or chains."""
    asking = [node for node in templates().scripts if node.needs]
    free = [node for node in templates().scripts if not node.needs]
    if kind >= MEMORY_SHARE:
        return _weighted(rng, free, 2 if kind < MEMORY_SHARE + CHAIN_SHARE else 1)
    (ask,) = _weighted(rng, asking, 1)
    telling = _weighted(rng, [node for node in free if ask.needs <= node.brings], 1)
    return [*telling, *_weighted(rng, free, _pick(rng, (0, 1, 1, 2))), ask]


def _talk(rng: random.Random, topics: Sequence[Node]) -> tuple[Turn, ...] | None:
    """Walk down these scripts, one after the other; None where they do not go together."""
    turns: list[Turn] = []
    known: dict[str, str] = {}
    for place, script in enumerate(topics):
        only = {"first": place == 0, "last": place == len(topics) - 1, "": True}
        if not only[script.only] or not script.needs <= known.keys():
            return None
        if known.keys() & (script.lacks | script.brings):
            return None
        nodes: Sequence[Node] = (script,)
        while nodes:
            node = _pick(rng, nodes)
            line = _pick(rng, _pick(rng, node.users))
            if len(turns) == MAX_TURNS:
                return None
            if turns and node is script and line.text.rstrip(END_MARKS) in turns[-1].node.answers:
                return None  # it would read as the answer to the bot's last line
            turns.append(_turn(rng, node, line, known, turns[-1].user if turns else ""))
            nodes = () if rng.random() < STOP_EARLY else node.then
    return tuple(turns)


def _turn(rng: random.Random, node: Node, line: Line, known: dict[str, str], before: str) -> Turn:
    """Say `line` and one reply, adding to `known`; `before` is the user's last line or ""."""
    said = _fill(rng, line, known)
    user = line.text.format_map(known)
    bare = user.rstrip(END_MARKS)
    user = bare + _pick(rng, QUESTION_ENDS if user.endswith("？") else STATEMENT_ENDS)
    pair = ("" if line.slots else before.rstrip(END_MARKS), bare) if line.slots or before else None
    reply = _pick(rng, _pick(rng, node.bots))
    _fill(rng, reply, known)
    return Turn(node, user, reply.text.format_map(known), said, pair)


def _fill(rng: random.Random, line: Line, known: dict[str, str]) -> dict[str, str]:
    """Set the variables of `line` that are not `known`; no value occurs twice in a dialogue."""
    new = {}
    for name, kind in line.slots.items():
        if name not in known:
            values = [v for v in templates().slots[kind] if v not in known.values()]
            known[name] = new[name] = _pick(rng, values)
    return new


def _pick(rng: random.Random, options: Sequence[_T]) -> _T:
    """One of the options. Uses only `random()`, whose sequence Python promises to keep."""
    return options[int(rng.random() * len(options))]


def _weighted(rng: random.Random, scripts: Sequence[Node], count: int) -> list[Node]:
    """`count` scripts, each drawn in proportion to its weight."""
    return rng.choices(scripts, [node.weight for node in scripts], k=count)


def _text(turns: Iterable[Turn]) -> str:
    return "\n".join(f"{turn.user}\n{turn.bot}" for turn in turns)
