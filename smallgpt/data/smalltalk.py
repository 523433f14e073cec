"""The built-in corpus: everyday Chinese small talk, written from templates, and its judge.

`smalltalk.yaml` holds the sentences; this file draws dialogues from them and decides whether
a model's reply is one that the situation allows. The path of a dialogue:

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import yaml

MAX_TURNS = 5  # a turn is one user line and one bot line: at most ten utterances
MEMORY_SHARE = 0.28  # of the dialogues: something said earlier is asked for at the end
CHAIN_SHARE = 0.25  # of the dialogues: the user goes on to another topic
STOP_EARLY = 0.12  # chance that the user leaves a topic before its script ends
HELD_OUT_SHARE = 0.10  # of the combinations

# How people end a typed line. The templates write ？ after a question and nothing otherwise.
QUESTION_ENDS = ("？", "？", "？", "", "", "", "?")
STATEMENT_ENDS = ("", "", "", "", "。", "。", "！", "！", "~")
END_MARKS = "？?。！~"  # do not tell two combinations apart

_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)(?::(\w+))?\}")
_SLOT_NAME = re.compile(r"\{(\w+)\}")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Line:
    """One way to say something: its alternatives are chosen, its slots still open.

    `text` is ready for `str.format_map`; `slots` pairs each variable with the slot list
    it takes its value from, so `{dish:food}` is the variable "dish" over the list "food".
    """

    text: str
    slots: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class Node:
    """One turn of a script and what may follow it.

    `users` and `bots` hold, for each phrasing of the file, the lines it stands for; every
    bot line answers every user line. A script starts only when the variables in `needs` have
    been said in the dialogue and those in `lacks` have not. `only` is "first" or "last" for
    a script that must open or close a dialogue, else "". `brings` names every variable that
    this turn or a later one may set.
    """

    situation: str
    users: tuple[tuple[Line, ...], ...]
    bots: tuple[tuple[Line, ...], ...]
    then: tuple[Node, ...] = ()
    needs: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    brings: frozenset[str] = frozenset()
    only: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Templates:
    """The parsed file: slot lists by name, and the first turn of every script."""

    slots: Mapping[str, tuple[str, ...]]
    scripts: tuple[Node, ...]


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


# -- reading the templates -------------------------------------------------------------------


def parse(text: str) -> Templates:
    """Read templates from YAML `text`; ValueError names the situation and phrasing at fault."""
    raw: dict[str, Any] = yaml.safe_load(text)
    slots = {kind: tuple(values.split()) for kind, values in raw["slots"].items()}
    scripts = [
        _node(situation, script, slots, {}, frozenset())
        for situation, group in raw["situations"].items()
        for script in group
    ]
    return Templates(slots, tuple(scripts))


@cache
def templates() -> Templates:
    """The project's own templates, read once."""
    return parse(resources.files(__package__).joinpath("smalltalk.yaml").read_text("utf-8"))


def _node(
    situation: str,
    raw: Mapping[str, Any],
    slots: Mapping[str, Sequence[str]],
    known: Mapping[str, str],
    by_bot: frozenset[str],
) -> Node:
    """Build a turn and those after it. `known` and `by_bot`: variables set on the way here."""
    unknown = set(raw) - {"user", "bot", "then", "needs", "lacks", "only", "weight"}
    if unknown or raw.get("only", "") not in ("", "first", "last"):
        raise ValueError(f"{situation}: unknown key or value in {sorted(raw)}")
    needs = frozenset(raw.get("needs", "").split())
    known = {**known, **dict.fromkeys(needs, "")}
    by_bot = by_bot | needs
    users = tuple(_lines(situation, phrasing, slots) for phrasing in raw["user"].splitlines())
    bots = tuple(_lines(situation, phrasing, slots) for phrasing in raw["bot"].splitlines())
    for line in itertools.chain.from_iterable(users):
        if by_bot & {name for name, _ in line.slots}:
            raise ValueError(f"{situation}: in {line.text!r} the user repeats the bot's choice")
    said = _variables(situation, users, known)
    known = {**known, **said}
    told = _variables(situation, bots, known)
    known, by_bot = {**known, **told}, by_bot | told.keys()
    then = tuple(_node(situation, child, slots, known, by_bot) for child in raw.get("then", ()))
    return Node(
        situation,
        users,
        bots,
        then,
        needs,
        frozenset(raw.get("lacks", "").split()),
        frozenset(said) | frozenset(told) | frozenset().union(*(node.brings for node in then)),
        raw.get("only", ""),
        raw.get("weight", 1.0),
    )


def _lines(situation: str, phrasing: str, slots: Mapping[str, Sequence[str]]) -> tuple[Line, ...]:
    """All lines that one phrasing stands for: "早[呀|]" gives "早呀" and "早"."""
    parts = _ALTERNATIVES.split(phrasing)  # literal, alternatives, literal, …
    if any(mark in part for part in parts[::2] for mark in "[]|"):
        raise ValueError(f"{situation}: unbalanced brackets in {phrasing!r}")
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    lines = []
    for text in ("".join(chosen) for chosen in itertools.product(*choices)):
        found = tuple((name, kind or name) for name, kind in _SLOT.findall(text))
        if any(mark in _SLOT.sub("", text) for mark in "{}"):
            raise ValueError(f"{situation}: unbalanced braces in {phrasing!r}")
        for _, kind in found:
            if kind not in slots:
                raise ValueError(f"{situation}: unknown slot {kind!r} in {phrasing!r}")
        lines.append(Line(_SLOT.sub(r"{\1}", text), found))
    return tuple(lines)


def _variables(
    situation: str, phrasings: Iterable[Iterable[Line]], known: Mapping[str, str]
) -> dict[str, str]:
    """The variables that every one of these lines sets, besides those already `known`."""
    new = [
        ({name: kind for name, kind in line.slots if name not in known}, line.text)
        for line in itertools.chain.from_iterable(phrasings)
    ]
    if not new:
        raise ValueError(f"{situation}: a turn without phrasings")
    for variables, text in new:
        if variables != new[0][0]:
            raise ValueError(f"{situation}: {text!r} and {new[0][1]!r} set different slots")
    return new[0][0]


# -- drawing dialogues -----------------------------------------------------------------------


def generate(dialogues: int, seed: int) -> Iterator[str]:
    """Yield `dialogues` distinct training dialogues, lines joined by newlines.

    The lines alternate user, bot, …; the same seed gives the same text on every machine.
    """
    for turns in itertools.islice(_distinct(seed, want_held_out=False), dialogues):
        yield _text(turns)


@dataclass(frozen=True)
class HeldOutDialogue:
    """A dialogue with at least one combination that `generate` never emits."""

    turns: tuple[Turn, ...]

    @property
    def user_turns(self) -> tuple[str, ...]:
        return tuple(turn.user for turn in self.turns)

    @property
    def reference(self) -> tuple[str, ...]:
        """One fitting reply for each user turn."""
        return tuple(turn.bot for turn in self.turns)

    @property
    def situations(self) -> tuple[str, ...]:
        """The situation of each user turn; they differ where the topic changes."""
        return tuple(turn.node.situation for turn in self.turns)

    @property
    def held_out_pairs(self) -> tuple[tuple[str, str], ...]:
        return tuple(turn.pair for turn in self.turns if turn.pair and is_held_out(turn.pair))


def held_out(dialogues: int, seed: int) -> list[HeldOutDialogue]:
    """Draw `dialogues` distinct dialogues for evaluation, in the proportions of training."""
    drawn = itertools.islice(_distinct(seed, want_held_out=True), dialogues)
    return [HeldOutDialogue(turns) for turns in drawn]


def is_held_out(pair: tuple[str, str]) -> bool:
    """Whether a combination (see `Turn.pair`) is kept out of training."""
    digest = hashlib.blake2s("\n".join(pair).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**32


def _distinct(seed: int, want_held_out: bool) -> Iterator[tuple[Turn, ...]]:
    rng, deck, seen = random.Random(seed), _Deck(templates()), set[bytes]()
    repeats = 0
    while repeats < 100_000:  # the templates hold far more dialogues than any corpus needs
        turns = deck.draw(rng, want_held_out)
        mark = hashlib.blake2s(_text(turns).encode(), digest_size=12).digest()
        repeats = repeats + 1 if mark in seen else 0
        if not repeats:
            seen.add(mark)
            yield turns
    raise ValueError(f"the templates gave {len(seen)} distinct dialogues, then only repeats")


class _Deck:
    """Draws dialogues; knows which scripts may stand where, and which tell what others ask."""

    def __init__(self, source: Templates) -> None:
        self.slots = source.slots
        self.asking = [node for node in source.scripts if node.needs]
        self.free = [node for node in source.scripts if not node.needs]
        self.telling = {
            node: [teller for teller in self.free if node.needs <= teller.brings]
            for node in self.asking
        }
        self.followers = {
            node: {
                line.text.rstrip(END_MARKS)
                for child in node.then
                for line in itertools.chain.from_iterable(child.users)
            }
            for node in _all_nodes(source.scripts)
        }

    def draw(self, rng: random.Random, want_held_out: bool) -> tuple[Turn, ...]:
        """One dialogue, with or without a held-out combination.

        Its kind is drawn first, then topics until they go together, so that the shares of the
        kinds are the same on both sides.
        """
        kind = rng.random()
        while True:
            turns = self._try(rng, kind)
            if turns and want_held_out == any(t.pair and is_held_out(t.pair) for t in turns):
                return turns

    def _try(self, rng: random.Random, kind: float) -> tuple[Turn, ...] | None:
        if kind < MEMORY_SHARE:
            (ask,) = _weighted(rng, self.asking, 1)
            between = _weighted(rng, self.free, _pick(rng, (0, 1, 1, 2)))
            topics = [*_weighted(rng, self.telling[ask], 1), *between, ask]
        else:
            topics = _weighted(rng, self.free, 2 if kind < MEMORY_SHARE + CHAIN_SHARE else 1)
        if any(script.only == "first" for script in topics[1:]):
            return None
        if any(script.only == "last" for script in topics[:-1]):
            return None
        talk = _Talk(self)
        if all(talk.add(rng, script) for script in topics):
            return tuple(talk.turns)
        return None


class _Talk:
    """A dialogue as it grows."""

    def __init__(self, deck: _Deck) -> None:
        self.deck = deck
        self.turns: list[Turn] = []
        self.known: dict[str, str] = {}

    def add(self, rng: random.Random, script: Node) -> bool:
        """Walk down one script; False where it cannot stand here, or takes too long."""
        known = self.known.keys()
        if not script.needs <= known or known & (script.lacks | script.brings):
            return False
        node = script
        while True:
            line = _pick(rng, _pick(rng, node.users))
            if node is script and self.turns:
                if line.text.rstrip(END_MARKS) in self.deck.followers[self.turns[-1].node]:
                    return False  # it would read as the answer to the bot's last line
            said = self._fill(rng, line)
            user = line.text.format_map(self.known)
            pair = None
            if line.slots:
                pair = ("", user.rstrip(END_MARKS))
            elif self.turns:
                pair = (self.turns[-1].user.rstrip(END_MARKS), user.rstrip(END_MARKS))
            if user.endswith("？"):
                user = user[:-1] + _pick(rng, QUESTION_ENDS)
            else:
                user += _pick(rng, STATEMENT_ENDS)
            answer = _pick(rng, _pick(rng, node.bots))
            self._fill(rng, answer)
            bot = answer.text.format_map(self.known)
            self.turns.append(Turn(node, user, bot, said, pair))
            if len(self.turns) > MAX_TURNS:
                return False
            if not node.then or rng.random() < STOP_EARLY:
                return True
            node = _pick(rng, node.then)

    def _fill(self, rng: random.Random, line: Line) -> dict[str, str]:
        """Set the variables that `line` brings up; no value occurs twice in a dialogue."""
        new: dict[str, str] = {}
        for name, kind in line.slots:
            if name not in self.known:
                values = self.deck.slots[kind]
                value = _pick(rng, values)
                while value in self.known.values():
                    value = _pick(rng, values)
                self.known[name] = new[name] = value
        return new


def _pick(rng: random.Random, options: Sequence[_T]) -> _T:
    """One of the options. Uses only `random()`, whose sequence Python promises to keep."""
    return options[int(rng.random() * len(options))]


def _weighted(rng: random.Random, scripts: Sequence[Node], count: int) -> list[Node]:
    """`count` scripts, each drawn in proportion to its weight."""
    return rng.choices(scripts, [node.weight for node in scripts], k=count)


def _all_nodes(scripts: Iterable[Node]) -> Iterator[Node]:
    for node in scripts:
        yield node
        yield from _all_nodes(node.then)


def _text(turns: Iterable[Turn]) -> str:
    return "\n".join(f"{turn.user}\n{turn.bot}" for turn in turns)


# -- judging replies -------------------------------------------------------------------------


class Judge:
    """Judges the replies to one dialogue, in order.

    A reply fits when, stripped, it is one of the bot lines of its turn with every variable at
    the value it has in this dialogue. What the bot is free to choose (a film to recommend) is
    set by its own reply, and asked for later as said. A misfit that still names exactly one
    value for such a variable sets it too; one that names none, or several, leaves it open, and
    the next reply that fits may set it: later memory is wrong only if it cannot be right.
    """

    def __init__(self, dialogue: HeldOutDialogue) -> None:
        self._turns = dialogue.turns
        self._known: dict[str, str] = {}
        self._next = 0

    def fits(self, turn_index: int, reply: str) -> bool:
        """Whether `reply` fits turn `turn_index`; ValueError when turns are not in order."""
        if turn_index != self._next:
            raise ValueError(f"turn {self._next} is to be judged next, not {turn_index}")
        self._next += 1
        turn = self._turns[turn_index]
        self._known.update(turn.said)
        lines = list(itertools.chain.from_iterable(turn.node.bots))
        for line in lines:
            match = self._pattern(line).fullmatch(reply.strip())
            if match:
                self._known.update(match.groupdict())
                return True
        for name, kind in dict(itertools.chain.from_iterable(ln.slots for ln in lines)).items():
            named = [value for value in self._open_values(kind) if value in reply]
            if name not in self._known and len(named) == 1:
                self._known[name] = named[0]
        return False

    def _pattern(self, line: Line) -> re.Pattern[str]:
        kinds, parts = dict(line.slots), _SLOT_NAME.split(line.text)  # literal, name, literal, …
        for i, part in enumerate(parts):
            if i % 2 and part not in self._known:
                values = "|".join(map(re.escape, self._open_values(kinds[part])))
                parts[i] = f"(?P={part})" if part in parts[1:i:2] else f"(?P<{part}>{values})"
            else:
                parts[i] = re.escape(self._known[part] if i % 2 else part)
        return re.compile("".join(parts))

    def _open_values(self, kind: str) -> list[str]:
        """The values of a slot list that nobody has used in this dialogue."""
        return [v for v in templates().slots[kind] if v not in self._known.values()]


@dataclass(frozen=True)
class Score:
    """How many replies fit: (fitting, all) by situation, and the misfits for reading.

    A misfit is the conversation up to and with the reply, user and bot lines alternating.
    """

    by_situation: Mapping[str, tuple[int, int]]
    misfits: tuple[tuple[str, ...], ...] = field(default=(), repr=False)

    @property
    def fitting(self) -> int:
        return sum(fitting for fitting, _ in self.by_situation.values())

    @property
    def total(self) -> int:
        return sum(total for _, total in self.by_situation.values())

    @property
    def share(self) -> float:
        """Fitting replies over all replies, 0 to 1; 0 when there are none."""
        return self.fitting / self.total if self.total else 0.0


def judge_all(dialogues: Iterable[HeldOutDialogue], respond: Callable[[list[str]], str]) -> Score:
    """Play the dialogues with `respond`, which gets the conversation so far and replies.

    The conversation alternates user and bot lines, holds the bot's own earlier replies, and
    ends with the user's line.
    """
    counts: dict[str, tuple[int, int]] = {}
    misfits = []
    for dialogue in dialogues:
        judge, history = Judge(dialogue), list[str]()
        for index, turn in enumerate(dialogue.turns):
            history.append(turn.user)
            reply = respond(list(history))
            history.append(reply)
            fits = judge.fits(index, reply)
            fitting, total = counts.get(turn.node.situation, (0, 0))
            counts[turn.node.situation] = (fitting + fits, total + 1)
            if not fits:
                misfits.append(tuple(history))
    return Score(dict(sorted(counts.items())), tuple(misfits))
