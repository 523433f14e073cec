"""A classifier in a thread of its own."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from smallgpt.sentiment.explain import explain
from smallgpt.sentiment.predictor import Predictor
from smallgpt.server.errors import queue_full
from smallgpt.server.protocol import Classification, Weight

AT_ONCE = 16
"""Texts judged together; behind them others may have their turn, and who has left is noticed."""


class ClassifierThread:
    """Judges texts for requests, a few at a time, in turn.

    Args:
        name: the model's id.
        path: its checkpoint.
        queue: requests that may wait.
    """

    def __init__(self, name: str, path: Path, predictor: Predictor, queue: int) -> None:
        self.name, self.path, self.predictor, self.queue = name, path, predictor, queue
        self._waiting = 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="classifier")

    async def classify(self, texts: list[str], explained: bool) -> list[Classification]:
        """The verdict on each text.

        Raises:
            ApiError: the queue is full.
        """
        if self._waiting > self.queue:
            raise queue_full(1)
        self._waiting += 1
        step, loop = 1 if explained else AT_ONCE, asyncio.get_running_loop()
        judge = self._explain if explained else self._judge
        try:
            verdicts = list[Classification]()
            for begin in range(0, len(texts), step):
                some = texts[begin : begin + step]
                verdicts += await loop.run_in_executor(self._executor, judge, some, begin)
            return verdicts
        finally:
            self._waiting -= 1

    def tokens(self, texts: list[str]) -> int:
        """How many the texts have in all."""
        return sum(len(self.predictor.tokenizer.encode(text)) for text in texts)

    def _judge(self, texts: list[str], begin: int) -> list[Classification]:
        pairs = self.predictor.predict_each(texts)
        return [
            Classification(
                index=begin + number,
                label=prediction.label,
                probs=list(prediction.probabilities.values()),
                num_classes=len(prediction.probabilities),
            )
            for number, (_, prediction) in enumerate(pairs)
        ]

    def _explain(self, texts: list[str], begin: int) -> list[Classification]:
        (verdict,) = self._judge(texts, begin)
        explanation = explain(self.predictor, texts[0])
        parts = zip(explanation.characters, explanation.shares, strict=True)
        verdict.explanation = [Weight(text=part, weight=share) for part, share in parts]
        return [verdict]
