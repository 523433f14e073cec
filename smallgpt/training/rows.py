"""The rows of dialogues that a run learns from: those of its text, and those that are mixed in."""

from collections.abc import Iterable

import numpy as np

from smallgpt.config import Config
from smallgpt.data.chats.exports import warn_of_exports
from smallgpt.data.corpus import Corpus, IntArray, match_tokenizer, open_corpus, split
from smallgpt.data.dialogue_formats import text_chunks
from smallgpt.data.packing import Batch, PackedRows, RowOrder
from smallgpt.data.prepare import write
from smallgpt.demo import smalltalk
from smallgpt.distributed.world import World
from smallgpt.tokenizer.characters import Tokenizer
from smallgpt.utils.words import counted

SMALL_TALK_DIALOGUES = 10_000
"""To mix in: those of a thousand steps of two rows."""
MixedPart = tuple[Batch, int]
"""Some rows of a step, and how many characters the targets of all of it stand for."""


def pack_corpus(
    config: Config, corpus: Corpus, tokenizer: Tokenizer
) -> tuple[PackedRows, PackedRows]:
    """Training and validation rows, in the ids of `tokenizer`; `corpus` is in those of its text."""
    parts = split(len(corpus), config.train_percent, config.seed)
    train, held_back = _pack(config, corpus, tokenizer, parts)
    return train, held_back


def _pack(
    config: Config, corpus: Corpus, tokenizer: Tokenizer, parts: Iterable[IntArray]
) -> list[PackedRows]:
    """The rows of each part, which is the numbers of its dialogues, in the ids of `tokenizer`."""
    encoded, id_map = match_tokenizer(corpus, tokenizer)
    size, seed, replies_only = config.block_size, config.seed, config.loss_on == "replies"
    return [PackedRows(encoded, dialogues, size, seed, id_map, replies_only) for dialogues in parts]


def open_mixed(config: Config, world: World) -> Corpus | None:
    """The dialogues of `mix_path`, if some are mixed in; built-in ones are written first, once a
    run."""
    if not config.mixed_rows():
        return None

    def opened() -> Corpus:
        paths, own = config.mix_paths(), config.small_talk_path()
        if own in paths and not own.exists():
            texts = smalltalk.generate(SMALL_TALK_DIALOGUES, config.seed)
            write((text.split("\n") for text in texts), {own: 1.0})
        return open_corpus(paths, text_chunks)

    corpus = world.first_process_first(opened)
    if world.is_first:
        warn_of_exports(config.mix_paths())
    world.agree("the text of mix_path", corpus.fingerprint, "give every machine the same files")
    return corpus


class MixedRows:
    """The rows of each step that come from `mix_path`, so that what a base model knew is not
    forgotten.

    Args:
        corpus: those of `open_mixed`.
        tokenizer: of the model.
    """

    def __init__(self, config: Config, corpus: Corpus, tokenizer: Tokenizer, world: World) -> None:
        self.config = config
        (self.rows,) = world.first_process_first(
            lambda: _pack(config, corpus, tokenizer, [np.arange(len(corpus))])
        )
        self._order = RowOrder(len(self.rows), config.seed)

    def batch(self, step: int) -> Batch:
        """`config.mixed_rows()` rows, in an order of their own."""
        config, due = self.config, self.config.mixed_rows()
        seed = config.seed, 5, step
        numbers = self._order.take(step * due, due)
        return self.rows.batch(numbers, config.unk_rate, config.context_dropout, seed)

    def parts(self, step: int, count: int) -> list[MixedPart]:
        """The batch of a step in `count` parts of equal size, filled up with empty rows."""
        batch = self.batch(step)
        characters = max(1, self.rows.characters(batch))
        filled = batch.filled_up(-(-len(batch.ids) // count) * count)
        return [(part, characters) for part in filled.parts(count)]

    def __str__(self) -> str:
        count, whole = self.config.mixed_rows(), self.config.train_batch
        dialogues = counted(len(self.rows.dialogues), "dialogue")
        return f"mixed in: {count} of the {whole} rows of a step, of {dialogues}"
