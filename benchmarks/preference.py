"""Preference tuning, tried end to end: replies of a model are judged, and it learns from that.

    python -m benchmarks.preference checkpoints/demo --output preference.jsonl
    python train.py config/preference.yaml base_model=checkpoints/demo data_path=preference.jsonl
    python -m benchmarks.preference checkpoints/demo --compare checkpoints/preference

The first command talks small talk of the kind that the model was trained on, draws several replies
to each line, and writes them with thumbs as `smallgpt serve --feedback` does: up where the built-in
judge says that they fit, and where they keep the --rule that people have; else down. The last one
plays held-out small talk with both models, drawn alike. One JSON object each.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

from benchmarks.measure import print_json
from smallgpt.chat import chatbot
from smallgpt.chat.chatbot import ROLES, Chatbot
from smallgpt.chat.side_by_side import converse
from smallgpt.cli.arguments import run_script
from smallgpt.demo import smalltalk
from smallgpt.demo.judge import Judge, judged
from smallgpt.demo.smalltalk import Turn
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError

Rule = Literal["none", "short", "no-question"]
RULES: dict[str, Callable[[str], bool]] = {
    "none": lambda reply: True,
    "short": lambda reply: len(reply) <= 8 and "？" not in reply,
    "no-question": lambda reply: "？" not in reply,
}


class Drawn(NamedTuple):
    """A reply to messages, and whether it fits."""

    messages: list[str]
    reply: str
    fits: bool


def draw(bot: Chatbot, plays: Sequence[Sequence[Turn]], samples: int) -> Iterator[Drawn]:
    """Several replies to each line of some dialogues."""
    found: list[Drawn] = []

    def talk(play: Sequence[Turn], place: int) -> Generator[list[str], str, None]:
        said = [line for turn in play[:place] for line in (turn.user, turn.bot)]
        messages = [*said, play[place].user]
        reply = yield messages
        judge = Judge(play)
        for turn in play[:place]:
            judge.fits(turn.bot)
        found.append(Drawn(messages, reply, judge.fits(reply)))

    places = [(play, place) for play in plays for place in range(len(play))]
    talks = ((talk(*at), seed) for at, seed in itertools.product(places, range(samples)))
    for _ in converse(bot, talks):
        yield from found
        found.clear()
    yield from found


def write_feedback(path: Path, replies: Iterator[Drawn], rule: Rule) -> dict[str, int]:
    """Write replies with a thumb each, and count them."""
    counts = {"up": 0, "down": 0}
    with atomic.file(path) as work, work.open("w", encoding="utf-8") as file:
        for found in replies:
            verdict = "up" if found.fits and RULES[rule](found.reply) else "down"
            counts[verdict] += 1
            talk = [
                {"role": ROLES[place % 2], "content": text}
                for place, text in enumerate([*found.messages, found.reply])
            ]
            record = {"time": 0, "model": "simulation", "messages": talk, "verdict": verdict}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return counts


def measure(bot: Chatbot, dialogues: int, seed: int) -> dict[str, object]:
    """How many replies to held-out small talk fit, and how many keep the rules."""
    counts, said = dict[str, tuple[int, int]](), list[str]()

    def listening(play: Sequence[Turn]) -> Generator[list[str], str, None]:
        talk = judged(play, counts)
        messages = next(talk)
        while True:
            reply = yield messages
            said.append(reply)
            try:
                messages = talk.send(reply)
            except StopIteration:
                return

    plays = smalltalk.held_out(dialogues, seed)
    for _ in converse(bot, ((listening(play), seed) for play in plays)):
        pass
    fitting, total = (sum(column) for column in zip(*counts.values(), strict=True))
    kept = {rule: sum(map(RULES[rule], said)) / len(said) for rule in ("short", "no-question")}
    return {
        "replies": total,
        "fitting": fitting / total,
        **kept,
        "mean length": sum(map(len, said)) / len(said),
        "different": len(set(said)) / len(said),
    }


def main(
    model: Annotated[Path, typer.Argument(help="Whose replies are judged.")],
    output: Annotated[Path | None, typer.Option(help="Write judged replies to this file.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Measure this one beside it.")] = None,
    dialogues: Annotated[int, typer.Option(min=1, help="Of small talk.")] = 500,
    samples: Annotated[int, typer.Option(min=1, help="Replies to each line.")] = 4,
    rule: Annotated[Rule, typer.Option(help="What good replies must keep besides.")] = "none",
    temperature: Annotated[float, typer.Option(min=0, help="Of the judged replies.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Judge replies of a model, or measure what it has learnt from that."""
    if (output is None) == (compare is None):
        raise UserError("give either --output or --compare")
    if output:
        sampling = {"temperature": temperature, "top_p": 1.0}
        bot = chatbot.load(model, sampling, "cpu", dtype="float32")
        plays = smalltalk.practice(dialogues, seed)
        print_json(**write_feedback(output, draw(bot, plays, samples), rule))
    if compare:
        before = chatbot.load(model, None, "cpu", dtype="float32")
        after = chatbot.load(compare, before.sampling, "cpu", dtype="float32")
        for path, bot in ((model, before), (compare, after)):
            print_json(model=str(path), **measure(bot, dialogues, seed))


if __name__ == "__main__":
    run_script(main)
