"""The loop around `ClassifierTrainer.step`: when to validate, save, and stop; then the test."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from smallgpt.checkpoints import checkpoint, run_folder
from smallgpt.checkpoints.checkpoint import Checkpoint
from smallgpt.config import SentimentConfig
from smallgpt.data.reviews import Reviews, Split
from smallgpt.model.classifier import Classifier
from smallgpt.runtime import Runtime, python_command
from smallgpt.sentiment import baseline, report, scores
from smallgpt.sentiment.examples import Examples
from smallgpt.sentiment.trainer import ClassifierTrainer, FrozenStates, Verdicts, judge
from smallgpt.tokenizer.characters import Tokenizer
from smallgpt.training.interruption import StopRequest
from smallgpt.utils.errors import note

MOST_ROWS_TO_LEARN = 16
"""Of a longer review so many pieces are learnt from."""


@dataclass
class _Best:
    """The best validation so far: the lowest loss of the labels."""

    step: int = 0
    loss: float = float("inf")
    accuracy: float = 0.0


class Session:
    """One run: `train`, then `test`."""

    def __init__(
        self,
        config: SentimentConfig,
        here: Runtime,
        reviews: Reviews,
        split: Split,
        tokenizer: Tokenizer,
        model: Classifier,
    ) -> None:
        self.config, self.here, self.reviews, self.split = config, here, reviews, split
        self.tokenizer, self.model = tokenizer, model
        self.root = Path(config.checkpoint_root)
        self.seconds = 0.0
        train, validation, test = (self._examples(part) for part in ("train", "validation", "test"))
        self.validation_examples, self.test_examples = validation, test
        soft_labels = None
        if config.reference_weight:
            note("asking the baseline about the reviews to learn from ...")
            soft_labels = baseline.out_of_fold(reviews, split.train, config.split_seed)
        self.trainer = ClassifierTrainer(config, here, model, train, self.root, soft_labels)
        self.frozen_validation = (
            FrozenStates(model, validation, here, self.root) if config.frozen else None
        )
        self.best = _Best()
        self.history: list[dict[str, float]] = []
        self.last_step = config.last_step(self.trainer.steps_per_epoch)

    def _examples(self, name: str) -> Examples:
        part, config = self.reviews.part(getattr(self.split, name)), self.config
        most = MOST_ROWS_TO_LEARN if name == "train" else None
        return Examples(
            part.texts, part.labels, self.tokenizer, config.block_size, config.use_mask, most
        )

    def recall(self, stored: Checkpoint) -> None:
        """Go on with what was best when the checkpoint was made."""
        best = stored.manifest.get("best")
        if isinstance(best, dict):
            self.best = _Best(int(best["step"]), float(best["loss"]), float(best["accuracy"]))
        self.seconds = float(stored.manifest.get("seconds", 0.0))
        self.history = list(stored.manifest.get("history", []))

    def train(self, command: str) -> None:
        """Steps up to the last one, or until validation has not improved for `patience` times."""
        trainer, config = self.trainer, self.config
        with (
            StopRequest() as stop,
            tqdm(
                total=self.last_step,
                initial=trainer.completed,
                desc="training",
                unit="step",
                dynamic_ncols=True,
                file=sys.stderr,
            ) as bar,
        ):
            smoothed: float | None = None
            while trainer.completed < self.last_step and not self._patience_is_over():
                began = time.perf_counter()
                result = trainer.step()
                self.seconds += time.perf_counter() - began
                smoothed = result.loss if smoothed is None else 0.9 * smoothed + 0.1 * result.loss
                bar.set_postfix_str(f"loss {smoothed:.3f}", False)
                bar.update()
                last = trainer.completed == self.last_step
                if last or (config.eval_freq and trainer.completed % config.eval_freq == 0):
                    self._validate(bar, stop)
                elif stop.requested() or trainer.completed % config.save_freq == 0:
                    self._save({})
                if stop.requested():
                    break
        if stop.requested():
            note(f"stopped at step {trainer.completed}, saved in {self.root}")
            note(f"go on with: {python_command()} {command} resume_from=latest")
            raise SystemExit(stop.exit_code)

    def _patience_is_over(self) -> bool:
        since = [line for line in self.history if line["step"] > self.best.step]
        return 0 < self.config.patience <= len(since)

    def _validate(self, bar: Any, stop: StopRequest) -> None:
        step = self.trainer.completed
        verdicts = judge(
            self.model,
            self.validation_examples,
            self.here,
            self.config.test_batch,
            self.frozen_validation,
            stop.requested,
        )
        if verdicts is None:
            return self._save({})
        better = verdicts.loss < self.best.loss
        if better:
            self.best = _Best(step, verdicts.loss, verdicts.accuracy)
        line = {
            "step": step,
            "epoch": round(step / self.trainer.steps_per_epoch, 3),
            "validation_loss": verdicts.loss,
            "validation_accuracy": verdicts.accuracy,
            "seconds": round(self.seconds, 3),
        }
        self.history.append(line)
        bar.write(
            f"step {step}: validation loss {verdicts.loss:.4f}, accuracy "
            f"{100 * verdicts.accuracy:.2f} %{' (best)' if better else ''}",
            file=sys.stderr,
        )
        return self._save({k: line[k] for k in ("validation_loss", "validation_accuracy")})

    def _save(self, figures: dict[str, float]) -> None:
        notes = {
            **figures,
            "seconds": self.seconds,
            "best": dataclasses.asdict(self.best) if self.best.step else None,
            "history": self.history,
        }
        checkpoint.save(
            self.root,
            self.trainer.completed,
            self.config,
            self.tokenizer,
            self.model.state_dict(),
            self.trainer.state(),
            notes,
            self.reviews.names,
        )
        run_folder.prune(self.root, self.config.keep_last)

    def test(self) -> Path:
        """Judge the part kept for the test by the best model, and by the baseline."""
        path = run_folder.best(run_folder.checkpoints(self.root))
        self.model.load_state_dict(checkpoint.load(path, classifier=True).weights)
        began = time.perf_counter()
        verdicts = judge(self.model, self.test_examples, self.here, self.config.test_batch)
        assert verdicts is not None
        judging = time.perf_counter() - began
        note("training the baseline ...")
        began = time.perf_counter()
        learnt = np.concatenate([self.split.train, self.split.validation])
        classical = baseline.probabilities(self.reviews, learnt, self.split.test)
        result = self._result(path, verdicts, classical)
        result["test"]["judging_seconds"] = round(judging, 3)
        result["reference"]["training_seconds"] = round(time.perf_counter() - began, 3)
        report.write(self.root, result, verdicts, classical, self.reviews.part(self.split.test))
        print(f"{path}, step {result['best']['step']}, on reviews kept for the test:")
        print(scores.describe(result["test"]))
        print(f"baseline ({baseline.NAME}), on the same reviews:")
        print(scores.describe(result["reference"]))
        note(f"written: {self.root / report.REPORT_FILE} and {report.PICTURE_FILE}")
        note(
            f"use it: {python_command()} -m smallgpt sentiment predict {shlex.quote(str(path))} "
            '"房间很干净"'
        )
        return path

    def _result(
        self, path: Path, verdicts: Verdicts, classical: npt.NDArray[np.float64]
    ) -> dict[str, Any]:
        names, labels = self.reviews.names, self.reviews.labels[self.split.test]
        return {
            "model": str(path),
            "config": dataclasses.asdict(self.config),
            "reviews": {part: len(i) for part, i in vars(self.split).items()},
            "best": dataclasses.asdict(self.best),
            "validation": self.history,
            "test": {
                **scores.score(verdicts.probabilities(), labels, names),
                "training_seconds": round(self.seconds, 3),
            },
            "reference": {"name": baseline.NAME, **scores.score(classical, labels, names)},
        }
