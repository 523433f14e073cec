"""A trained classifier in use: texts in, labels and probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.config import SentimentConfig
from smallgpt.model.classifier import Classifier
from smallgpt.runtime import Runtime, choose_precision
from smallgpt.sentiment.examples import Examples
from smallgpt.sentiment.task import judge
from smallgpt.tokenizer.characters import Tokenizer

ROWS_AT_A_TIME = 64


@dataclass(frozen=True)
class Prediction:
    """label: the likeliest; probabilities: of every label, by name."""

    label: str
    probabilities: dict[str, float]

    @property
    def probability(self) -> float:
        """That of the label."""
        return self.probabilities[self.label]


class Predictor:
    """A classifier with its tokenizer.

    Args:
        names: the labels, in the order of the model's classes.
        config: how the classifier was trained.
    """

    def __init__(
        self,
        model: Classifier,
        tokenizer: Tokenizer,
        names: list[str],
        config: SentimentConfig,
        runtime: Runtime,
    ) -> None:
        self.model, self.tokenizer, self.names = model, tokenizer, names
        self.config, self.runtime = config, runtime

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """The verdict on each text, however long. A text of no characters has a verdict, too.

        Raises:
            TypeError: `texts` is one text instead of a list of them.
        """
        if isinstance(texts, str):
            raise TypeError("predict takes a list of texts: predict([text])")
        if not texts:
            return []
        verdicts = judge(self.model, self.rows_of(texts), self.runtime, ROWS_AT_A_TIME)
        assert verdicts is not None
        return [
            Prediction(self.names[row.argmax()], dict(zip(self.names, row.tolist(), strict=True)))
            for row in verdicts.probabilities()
        ]

    def predict_each(
        self, texts: Iterable[str], at_once: int = 512
    ) -> Iterator[tuple[str, Prediction]]:
        """Each text with its verdict, in bounded memory: `at_once` are read and judged together."""
        iterator = iter(texts)
        while chunk := list(islice(iterator, at_once)):
            yield from zip(chunk, self.predict(chunk), strict=True)

    def rows_of(self, texts: Sequence[str]) -> Examples:
        """The texts as the model reads them; their labels are unknown, and 0."""
        config, unknown = self.config, np.zeros(len(texts), np.int64)
        return Examples(texts, unknown, self.tokenizer, config.block_size, config.use_mask)


def load(path: str | Path, device: str | torch.device = "cpu") -> Predictor:
    """A classifier from its checkpoint, or the folder of its run.

    Raises:
        UserError: there is no usable classifier at `path`.
    """
    stored = open_checkpoint(path, classifier=True)
    assert stored.labels is not None and isinstance(stored.config, SentimentConfig)
    model = Classifier(stored.config, len(stored.labels), stored.config.pooling).eval()
    model.load_state_dict(stored.weights)
    device = torch.device(device)
    precision = choose_precision("auto", device, sum(p.numel() for p in model.parameters()))
    runtime = Runtime(device, precision.dtype, "as chat would")
    return Predictor(model.to(device), stored.tokenizer, stored.labels, stored.config, runtime)
