"""What is measured of a model on a text: definitions in docs/evaluation.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from smallgpt import runtime
from smallgpt.chat import chatbot
from smallgpt.checkpoints.checkpoint import Checkpoint
from smallgpt.config import Config
from smallgpt.data.corpus import Corpus, match_tokenizer, without_characters
from smallgpt.data.packing import PackedRows
from smallgpt.data.pairs import Pair, sample_pairs
from smallgpt.data.text import read_lines
from smallgpt.tokenizer.characters import UNK
from smallgpt.training.choice import Choices, can_score, choose
from smallgpt.training.replies import figures_of, generate_replies
from smallgpt.training.validation import validate
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.words import counted

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Measured:
    """figures: by name, as in the file of `--json`; replies: to the messages of the first pairs;
    to_prompts: to the prompts."""

    figures: dict[str, Any]
    choices: Choices
    replies: list[str]
    to_prompts: list[str]


def pairs_for(models: Sequence[Checkpoint], corpus: Corpus, most: int, seed: int) -> list[Pair]:
    """Pairs of the text whose reply all the models can score."""
    can = [can_score(stored.tokenizer, stored.config.block_size) for stored in models]

    def fits(reply: str) -> bool:
        return all(each(reply) for each in can)

    return sample_pairs(corpus, np.arange(len(corpus)), most, seed, fits)


def comparable(models: Sequence[Checkpoint], corpus: Corpus) -> Corpus:
    """The text for the losses of all the models: a character that one of them does not know counts
    for none, so that all are measured on the same characters."""
    unknown = [
        {c for c in corpus.tokenizer.characters if UNK in stored.tokenizer.encode(c)}
        for stored in models
    ]
    only_some = set[str]().union(*unknown).difference(set[str].intersection(*unknown))
    if not only_some:
        return corpus
    characters = counted(len(only_some), "character")
    note(f"left out of both losses: {characters} of the text that only one model knows")
    return without_characters(corpus, only_some)


def measure(
    stored: Checkpoint,
    corpus: Corpus,
    to_choose: Sequence[Pair],
    to_reply: Sequence[Pair],
    prompts: Sequence[Sequence[str]],
    seed: int = 0,
    device: str = "auto",
    dtype: str | None = None,
) -> Measured:
    """All figures of a model.

    Characters the model does not know are not counted as targets of the loss.

    Args:
        stored: opened without a look at its weights.
        corpus: what the loss is measured on.
        to_choose: pairs for R10@1.
        to_reply: pairs whose messages are replied to.
        prompts: messages to reply to besides.
        dtype: measure the model as chat runs it in this precision; by default it predicts as in
            training, and replies in float32.
    """
    config, tokenizer = stored.config, stored.tokenizer
    here = runtime.start(Config(device=device))
    bot = chatbot.load(stored, device=here.device, dtype=dtype or "float32")
    model = bot.model
    if dtype is None:
        model = stored.model().to(here.device)
    else:
        here = runtime.Runtime(here.device, torch.float32, "the weights have the precision")
    matched, id_map = match_tokenizer(corpus, tokenizer)
    rows = PackedRows(matched, np.arange(len(matched)), config.block_size, config.seed, id_map)
    loss = validate(model, rows, here, np.arange(len(rows)), config.test_batch)
    choices = choose(model, tokenizer, to_choose, seed, here)
    replies = generate_replies(bot, [pair.messages for pair in to_reply], seed)
    to_prompts = generate_replies(bot, prompts, seed)
    # None is for runs that are stopped from outside.
    assert loss and choices and replies is not None and to_prompts is not None
    limit = min(bot.sampling.max_new_tokens, config.block_size // 2)
    at_limit = sum(len(tokenizer.encode(reply)) >= limit for reply in replies)
    figures = {
        **loss.as_dict(),
        "characters": loss.targets,
        **choices.as_dict(),
        **intervals(choices),
        "pairs": len(choices.by_information),
        "replies": len(replies),
        **figures_of(to_reply, replies),
        **({"reached_limit_share": at_limit / len(replies)} if replies else {}),
    }
    return Measured(figures, choices, replies, to_prompts)


def intervals(choices: Choices) -> dict[str, list[float]]:
    """The 95 % intervals of the shares (Wilson, 1927); none of no pairs."""

    def interval(right: Bools) -> list[float]:
        share = stats.binomtest(int(right.sum()), len(right)).proportion_ci(0.95, "wilson")
        return [float(share.low), float(share.high)]

    if not choices.as_dict():
        return {}
    return {
        "r10_at_1_95": interval(choices.by_information),
        "r10_at_1_likelihood_95": interval(choices.by_likelihood),
    }


def chance_of_difference(first: Bools, second: Bools) -> float:
    """McNemar's exact test of two models on the same pairs: how probable a difference in R10@1 of
    this size or a larger one is, were they equally good."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first == only_second:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def read_prompts(path: Path | None) -> list[list[str]]:
    """Prompts of a file, by default ours: one a line; messages of a longer talk have tabs between.

    Raises:
        UserError: there is none, or the file cannot be read.
    """
    if path is None:
        text = resources.files("smallgpt.evaluation").joinpath("prompts.txt").read_text("utf-8")
        lines = text.splitlines()
    else:
        lines = list(read_lines(path, translate=True))
    talks = ([message.strip() for message in line.split("\t")] for line in lines)
    prompts = [talk for talk in talks if any(talk)]
    if not prompts:
        raise UserError(f"{path} is empty", "write one prompt a line")
    for talk in prompts:
        if not all(talk):
            raise UserError(
                f"{path}: a message is empty: {' | '.join(talk)}",
                "write one tab between two messages of a talk",
            )
    return prompts
