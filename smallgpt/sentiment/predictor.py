"""A trained classifier in use: texts in, labels and probabilities out."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.config import SentimentConfig
from smallgpt.data.text import BLANK
from smallgpt.model.classifier import Classifier
from smallgpt.runtime import Runtime, choose_device, choose_precision
from smallgpt.sentiment.examples import Examples
from smallgpt.sentiment.task import judge
from smallgpt.tokenizer.characters import UNK, Tokenizer
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.words import counted


@dataclass(frozen=True)
class Prediction:
    """label: the likeliest; probabilities: of every label, by name."""

    label: str
    probabilities: dict[str, float]

    @property
    def probability(self) -> float:
        """That of the label."""
        return self.probabilities[self.label]


@dataclass(frozen=True)
class Predictor:
    """A classifier with its tokenizer, public as `smallgpt.Classifier`; threads may share it.

    names: the labels, in the order of the model's classes; config: how it was trained.
    """

    model: Classifier
    tokenizer: Tokenizer
    names: list[str]
    config: SentimentConfig
    runtime: Runtime

    def predict(self, texts: str | Iterable[str]) -> list[Prediction]:
        """The verdict on each text, however long. That on a blank one means nothing, and is noted.

        Args:
            texts: a list, an array, a column of a table, a generator …, or one text.

        Raises:
            UserError: one of them is not a string.
        """
        given = list(_checked(texts))
        note_blank(sum(not text.strip(BLANK) for text in given), "the verdict means nothing")
        return self._judged(given)

    def _judged(self, given: list[str]) -> list[Prediction]:
        if not given:
            return []
        verdicts = judge(self.model, self.rows_of(given), self.runtime, self.config.max_positions)
        assert verdicts is not None
        return [
            Prediction(self.names[row.argmax()], dict(zip(self.names, row.tolist(), strict=True)))
            for row in verdicts.probabilities()
        ]

    def predict_each(
        self, texts: str | Iterable[str], at_once: int = 512
    ) -> Iterator[tuple[str, Prediction]]:
        """Each text with its verdict, in bounded memory: `at_once` are read and judged together.

        The verdict on a blank text means nothing.

        Raises:
            UserError: as `predict`, when its turn comes.
        """
        iterator = _checked(texts)
        while chunk := list(itertools.islice(iterator, max(1, at_once))):
            yield from zip(chunk, self._judged(chunk), strict=True)

    def can_only_guess(self, text: str) -> bool:
        """Whether the model does not know most of the characters of a text that has some."""
        parts = self.tokenizer.spans(text.strip(BLANK))
        unknown = sum(len(part) for token, part in parts if token == UNK)
        return 2 * unknown > len(text.strip(BLANK))

    def rows_of(self, texts: Sequence[str]) -> Examples:
        """The texts as the model reads them; their labels are unknown, and 0."""
        config, unknown = self.config, np.zeros(len(texts), np.int64)
        return Examples(texts, unknown, self.tokenizer, config.block_size, config.use_mask)


def print_line(prediction: Prediction | None, text: str) -> None:
    """Print label, probability and text as a line; the first two are empty without a verdict."""
    verdict = f"{prediction.label}\t{prediction.probability:.4f}" if prediction else "\t"
    print(f"{verdict}\t{text}", flush=True)


def note_blank(count: int, consequence: str) -> None:
    """Say how many texts are blank, and what follows from it, where some are."""
    if count:
        note(f"{counted(count, 'text')} without a word: {consequence}")


def _checked(texts: str | Iterable[str]) -> Iterator[str]:
    """The texts; a UserError where one is none."""
    advice = 'give a list of texts, such as ["房间很干净"], or one column of a table'
    if isinstance(texts, str):
        texts = [texts]
    # Of a mapping or a table, iterating gives the keys or the names of the columns.
    if isinstance(texts, bytes | Mapping) or hasattr(texts, "columns"):
        raise UserError(f"a {type(texts).__name__} is not a list of texts", advice)
    try:
        iterator = iter(texts)
    except TypeError:
        raise UserError(f"{texts!r:.50} is not a list of texts", advice) from None
    for number, text in enumerate(iterator):
        if not isinstance(text, str):
            raise UserError(f"texts[{number}] is {text!r:.50}, not a string", advice)
        yield text


def load(path: str | Path, device: str | torch.device = "auto") -> Predictor:
    """A classifier from its checkpoint, or the folder of its run.

    `device` is auto, cpu, cuda, cuda:N or mps.

    Raises:
        UserError: there is no usable classifier at `path`, or no such device.
    """
    device = choose_device(str(device))
    stored = open_checkpoint(path, classifier=True)
    assert stored.labels is not None and isinstance(stored.config, SentimentConfig)
    model = Classifier(stored.config, len(stored.labels), stored.config.pooling).eval()
    model.load_state_dict(stored.weights)
    precision = choose_precision("auto", device, sum(p.numel() for p in model.parameters()))
    runtime = Runtime(device, precision.dtype, "as chat would")
    return Predictor(model.to(device), stored.tokenizer, stored.labels, stored.config, runtime)
