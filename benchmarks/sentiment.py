"""Speed of fine-tuning a classifier: the plain recipe against ours, frozen and not.

    python -m benchmarks.sentiment

The plain recipe pads every piece of a review to 256 positions, in float32, with explicit attention
and an unfused AdamW. Seconds are those of an epoch over the same reviews: of the plain recipe a few
steps are timed and multiplied, ours are whole epochs. Frozen, the first epoch includes computing
the states that are kept. One JSON object.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from benchmarks.measure import SIZES, Contestant, Size, print_json, size_named, timed
from benchmarks.plain import PlainGPT
from smallgpt import runtime
from smallgpt.cli.arguments import run_script
from smallgpt.config import SentimentConfig
from smallgpt.data.reviews import Reviews, Split, read_reviews
from smallgpt.model.classifier import Classifier
from smallgpt.sentiment.examples import Examples
from smallgpt.sentiment.task import ReviewTask
from smallgpt.tokenizer.characters import Tokenizer
from smallgpt.training.trainer import Trainer
from smallgpt.utils.errors import UserError, note

HOTELS = Path("../shared/data/ChnSentiCorp_htl_train.csv")
ROW = 256
BATCH = 24


def reviews_to_use(path: Path | None, count: int) -> tuple[Reviews, Tokenizer]:
    """Some reviews of the file, the hotel reviews, or else made ones of like length; and a
    vocabulary of theirs."""
    path = path or (HOTELS if HOTELS.exists() else None)
    if path is None:
        note("reviews: random characters, of the lengths of hotel reviews")
        reviews = made_reviews(count)
    else:
        note(f"reviews: {path}")
        everything = read_reviews(path, "review", "label")
        if count > len(everything):
            raise UserError(f"{path} has only {len(everything):,} reviews", "lower --reviews")
        reviews = everything.part(np.random.default_rng(0).permutation(len(everything))[:count])
    characters = sorted(set("".join(reviews.texts)) - {"\n"})
    return reviews, Tokenizer(characters, classifies=True)


def made_reviews(count: int) -> Reviews:
    """Random characters, of the lengths of hotel reviews, with random labels."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(4.4, 0.95, count), 2, 3000).astype(int)
    texts = ["".join(map(chr, generator.integers(0x4E00, 0x5800, n))) for n in lengths]
    return Reviews(texts, generator.integers(0, 2, count), ["0", "1"])


class PlainClassifier(nn.Module):
    """The plain network; the head reads one position of each row."""

    def __init__(self, size: Size, vocabulary: int) -> None:
        super().__init__()
        self.body = PlainGPT(vocabulary, size.layers, size.heads, size.width, ROW)
        self.body.head = nn.Identity()  # type: ignore[assignment]
        self.score = nn.Linear(size.width, 2, bias=False)

    def forward(self, ids: Tensor, ends: Tensor) -> Tensor:
        """Logits, (B, 2)."""
        states: Tensor = self.body(ids)
        return self.score(states[torch.arange(len(ids)), ends])


class PlainSide:
    """The plain recipe in a process of its own."""

    def __init__(self, size: str, path: Path | None, count: int) -> None:
        reviews, tokenizer = reviews_to_use(path, count)
        examples = Examples(reviews.texts, reviews.labels, tokenizer, ROW, use_mask=True)
        self.ids = torch.full((len(examples.lengths), ROW), 2)
        for number in range(len(self.ids)):
            row, _ = examples.gather(np.array([number]))
            self.ids[number, : row.shape[1]] = row[0]
        self.ends = torch.from_numpy(examples.lengths) - 1
        self.labels = torch.from_numpy(np.repeat(reviews.labels, examples.counts))
        torch.manual_seed(0)
        self.model = PlainClassifier(SIZES[size], len(tokenizer))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, foreach=False)
        self.order = torch.randperm(len(self.ids))
        self.at = 0

    def epoch(self, steps: int) -> float:
        """Seconds of an epoch, from those of some steps."""
        return median(timed(self._step)[0] for _ in range(steps)) * len(self.ids) / BATCH

    def _step(self) -> None:
        rows = self.order[(self.at + torch.arange(BATCH)) % len(self.order)]
        self.at += BATCH
        logits = self.model(self.ids[rows], self.ends[rows])
        loss = F.cross_entropy(logits, self.labels[rows])
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=False)
        self.optimizer.step()


class OurSide:
    """`Trainer`, as sentimentalTrain.py runs it."""

    def __init__(self, size: str, path: Path | None, count: int, frozen: bool) -> None:
        reviews, tokenizer = reviews_to_use(path, count)
        config = SentimentConfig(
            **SIZES[size].keys(),  # type: ignore[arg-type]
            block_size=ROW,
            vocab_size=len(tokenizer),
            train_batch=BATCH,
            frozen=frozen,
            device="cpu",
        )
        here = runtime.start(config)
        runtime.seed_everything(0)
        model = Classifier(config, 2).train()
        everything = np.arange(len(reviews))
        split = Split(everything, everything[:0], everything[:0])
        task = ReviewTask(config, here, model, tokenizer, reviews, split)
        self.trainer = Trainer(config, here, task)
        self.seconds_of_states = 0.0
        if frozen:
            folder = Path(tempfile.gettempdir())
            self.seconds_of_states, _ = timed(
                lambda: task.examples.keep_states(model, here, folder, config.max_positions)
            )

    def states(self) -> float:
        """Seconds of what is done once."""
        return self.seconds_of_states

    def epoch(self) -> float:
        """Seconds of an epoch."""
        steps = range(int(self.trainer.task.steps_per_epoch))
        return timed(lambda: [self.trainer.step() for _ in steps])[0]


def main(
    data: Annotated[Path | None, typer.Option(help="Reviews: CSV with review and label.")] = None,
    size: Annotated[str, typer.Option(help=", ".join(SIZES))] = "12M",
    reviews: Annotated[int, typer.Option(min=BATCH, help="How many of them.")] = 960,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Of the plain recipe, a round.")] = 3,
) -> None:
    """Print seconds of an epoch of the plain recipe, ours and ours frozen, and their ratios."""
    size_named(size)
    plain_seconds, whole_seconds, frozen_seconds = [], [], []
    with ExitStack() as stack:
        plain = stack.enter_context(Contestant(PlainSide, size, data, reviews))
        whole = stack.enter_context(Contestant(OurSide, size, data, reviews, False))
        frozen = stack.enter_context(Contestant(OurSide, size, data, reviews, True))
        plain.call("epoch", 1)
        for number in range(rounds):
            note(f"round {number + 1} of {rounds}")
            plain_seconds.append(plain.call("epoch", steps))
            whole_seconds.append(whole.call("epoch"))
            frozen_seconds.append(frozen.call("epoch"))
        states = frozen.call("states")
    ratios = [p / w for p, w in zip(plain_seconds, whole_seconds, strict=True)]
    frozen_ratios = [w / f for w, f in zip(whole_seconds, frozen_seconds, strict=True)]
    print_json(
        size=size,
        reviews=reviews,
        plain_epoch_s=median(plain_seconds),
        ours_epoch_s=median(whole_seconds),
        ratio=median(ratios),
        ratios=[round(r, 2) for r in ratios],
        frozen_states_s=states,
        frozen_epoch_s=median(frozen_seconds),
        frozen_ratio=median(frozen_ratios),
        frozen_ratios=[round(r, 2) for r in frozen_ratios],
    )


if __name__ == "__main__":
    run_script(main)
