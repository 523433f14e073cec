"""A trained classifier in use: texts, lines and files in, labels and probabilities out."""

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from tqdm import tqdm

from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.config import SentimentConfig
from smallgpt.data.tables import is_jsonl, read_rows
from smallgpt.model.classifier import Classifier
from smallgpt.runtime import Runtime, choose_device, choose_precision
from smallgpt.sentiment.examples import Examples
from smallgpt.sentiment.task import judge
from smallgpt.tokenizer.characters import Tokenizer
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note

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

    def print(self, text: str) -> None:
        """Print label, probability and text as a line."""
        print(f"{self.label}\t{self.probability:.4f}\t{text}", flush=True)


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
        while chunk := list(itertools.islice(iterator, at_once)):
            yield from zip(chunk, self.predict(chunk), strict=True)

    def rows_of(self, texts: Sequence[str]) -> Examples:
        """The texts as the model reads them; their labels are unknown, and 0."""
        config, unknown = self.config, np.zeros(len(texts), np.int64)
        return Examples(texts, unknown, self.tokenizer, config.block_size, config.use_mask)


def load(path: str | Path, device: str | torch.device = "auto") -> Predictor:
    """A classifier from its checkpoint, or the folder of its run.

    `device` is auto, cpu, cuda, cuda:N or mps.

    Raises:
        UserError: there is no usable classifier at `path`.
    """
    stored = open_checkpoint(path, classifier=True)
    assert stored.labels is not None and isinstance(stored.config, SentimentConfig)
    model = Classifier(stored.config, len(stored.labels), stored.config.pooling).eval()
    model.load_state_dict(stored.weights)
    device = choose_device(str(device))
    precision = choose_precision("auto", device, sum(p.numel() for p in model.parameters()))
    runtime = Runtime(device, precision.dtype, "as chat would")
    return Predictor(model.to(device), stored.tokenizer, stored.labels, stored.config, runtime)


def lines_of(file: TextIO) -> Iterator[str]:
    """The lines of standard input that are not blank.

    Raises:
        UserError: they are not UTF-8.
    """
    try:
        for line in file:
            if line.strip():
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8: {error.reason}", "convert it") from None


def judge_texts(predictor: Predictor, texts: Iterable[str]) -> None:
    """Print label, probability and text of each, as they come."""
    # One at a time from a terminal or a slow pipe; a list that is at hand all at once.
    at_once = 64 if isinstance(texts, list) else 1
    for text, prediction in predictor.predict_each(texts, at_once):
        prediction.print(text)


def judge_file(predictor: Predictor, source: Path, target: Path, text_column: str) -> None:
    """Copy a file of reviews with two more columns, verdict and probability.

    They are empty where a row has no text. `target` is complete or not there.

    Raises:
        UserError: a file cannot be read or written, or the text column is missing.
    """
    if target.is_dir() or (target.exists() and source.exists() and target.samefile(source)):
        raise UserError(f"--output {target} is the input, or a directory", "name another file")
    rows, again = itertools.tee(read_rows(source, [text_column]))
    judged = predictor.predict_each(row.cells[text_column] for row in again)
    pairs = tqdm(zip(rows, judged, strict=True), "judging", unit=" reviews", dynamic_ncols=True)
    empty, table = 0, None
    try:
        with atomic.file(target) as work, work.open("w", encoding="utf-8", newline="") as file:
            for row, (text, prediction) in pairs:
                verdict = (prediction.label, f"{prediction.probability:.6f}")
                if not text.strip():
                    empty, verdict = empty + 1, ("", "")
                cells = {**row.cells, "verdict": verdict[0], "probability": verdict[1]}
                if is_jsonl(target):
                    file.write(json.dumps(cells, ensure_ascii=False) + "\n")
                    continue
                if table is None:
                    separator = "\t" if target.suffix.lower() == ".tsv" else ","
                    table = csv.DictWriter(file, cells, delimiter=separator, extrasaction="ignore")
                    table.writeheader()
                table.writerow(cells)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from None
    note(f"{pairs.n - empty:,} judged, {empty:,} without a text; written: {target}")
