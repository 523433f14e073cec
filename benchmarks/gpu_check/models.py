"""Checks of whole uses of a 300M model: chat, and fine-tuning to a classifier."""

from __future__ import annotations

import csv
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.generation import Ours, characters_for, save_random, shape_of
from benchmarks.gpu_check.report import Figures, Row, must, target
from benchmarks.gpu_check.setting import Setting, give_back_memory, own_root, run_steps
from benchmarks.measure import read_bandwidth, timed
from benchmarks.sentiment import made_reviews
from smallgpt.chat.chatbot import Chatbot
from smallgpt.config import SamplingConfig, SentimentConfig
from smallgpt.distributed.world import ALONE
from smallgpt.sentiment import recipe
from smallgpt.sentiment.task import ReviewTask
from smallgpt.tokenizer.characters import PAD, SEP
from smallgpt.utils.errors import UserError


def measure_chat(setting: Setting) -> Figures:
    """The same reply twice, in bfloat16 and in int8; seconds a character."""
    device = torch.device(setting.device)
    figures: Figures = {"bandwidth": read_bandwidth(4000 if device.type == "cuda" else 40, device)}
    for dtype in ("bfloat16", "int8"):
        try:
            ours = Ours(setting.chat_size, dtype, device)
            figures[dtype] = _two_replies(ours, setting) | {"bytes": ours.bytes_a_character()}
        except UserError as refusal:
            figures[dtype] = {"refused": refusal.problem}
    return figures


def _two_replies(ours: Ours, setting: Setting) -> Figures:
    with torch.no_grad():
        ours.model.wte.weight[[SEP, PAD]] = 0  # so that no reply ends early
    sampling = SamplingConfig(temperature=0, max_new_tokens=setting.characters)
    bot = Chatbot(ours.model, characters_for(shape_of(setting.chat_size)), sampling)
    warm_up = replace(sampling, max_new_tokens=2)  # loads the kernels
    list(bot.respond(["一"], torch.Generator(), warm_up)[0])
    prompt = "".join(chr(0x4E00 + n) for n in range(1, 20))
    replies = [timed(lambda: bot.conversation().reply(prompt)) for _ in range(2)]
    (first, said), (second, said_again) = replies
    count = max(1, len(said))
    return {"first": first / count, "second": second / count, "same": said == said_again}


def judge_chat(figures: Figures) -> list[Row]:
    """A character is quick, the first time too, and int8 is worth it or refused."""
    bf16, int8 = figures["bfloat16"], figures["int8"]
    second, times = bf16["second"], bf16["first"] / bf16["second"]
    share = bf16["bytes"] / figures["bandwidth"] / second
    rows = [
        must("the same reply twice", "yes" if bf16["same"] else "no", "yes", bf16["same"]),
        target(
            "a character, second time", f"{1000 * second:.2f} ms", "at most 5 ms", second <= 5e-3
        ),
        target("first time against second", f"{times:.2f} ×", "at most 1.5 ×", times <= 1.5),
        Row("share of the limit by reading memory", f"{share:.0%}"),
    ]
    what, wanted = "int8, a character", "as bfloat16 or refused"
    if "refused" in int8:
        return [*rows, target(what, f"refused: {int8['refused']}", wanted, True)]
    took = int8["second"]
    return [*rows, target(what, f"{1000 * took:.2f} ms", wanted, took <= second)]


def measure_sentiment(setting: Setting) -> Figures:
    """One epoch of fine-tuning from random weights; two where only the last block is trained."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        base = save_random(shape_of(setting.chat_size), folder / "base")
        file = folder / "reviews.csv"
        _write_reviews(file, setting.reviews)
        found = {"base_model": str(base), "sentimental_data_path": str(file)}
        changes: dict[str, Any] = found | {"device": setting.device}
        whole = _fine_tune(replace(setting.whole, **changes, max_epoch=1))
        give_back_memory()
        frozen = _epochs(replace(setting.frozen, **changes), 2)
    return whole | {"frozen_epochs": frozen, "large_step": setting.large_step}


def _write_reviews(file: Path, count: int) -> None:
    reviews = made_reviews(count)
    with file.open("w", encoding="utf-8", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["label", "review"])
        rows.writerows(zip(reviews.labels.tolist(), reviews.texts, strict=True))


def _fine_tune(config: SentimentConfig) -> Figures:
    """An epoch as sentimentalTrain.py runs it, but without the test."""
    with own_root(config) as config:
        task, trainer, expected = recipe.prepare(config, set(), ALONE)
        validating = 0.0
        validate = task.validate

        def timed_validation(*arguments: Any) -> Any:
            nonlocal validating
            seconds, result = timed(lambda: validate(*arguments))
            validating += seconds
            return result

        with patch.object(task, "validate", timed_validation):
            seconds, _ = timed(lambda: trainer.train("gpu_check"))
        steps, training = trainer.completed, trainer.seconds
        largest = _most_positions(task)
    cuda = config.device.startswith("cuda")
    return {
        "seconds": seconds,
        "training": training,
        "saving_share": max(0.0, 1 - (training + validating) / seconds),
        "steps": steps,
        "most_positions": largest,
        "expected_gb": expected / 1e9,
        "allocated_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9 if cuda else 0.0,
    }


def _most_positions(task: ReviewTask) -> int:
    """Of the steps of the first epoch."""
    config, examples = task.config, task.examples
    batches = examples.epoch(config.train_batch, (config.seed, 8, 0))
    return max(examples.batch(reviews).ids.numel() for reviews in batches)


def _epochs(config: SentimentConfig, count: int) -> list[float]:
    """Seconds of each epoch; the first one includes computing the states that are kept."""
    with own_root(config) as config:
        task, trainer, _ = recipe.prepare(config, set(), ALONE)
        seconds = []
        began = time.perf_counter()
        task.keep_states()
        for _ in range(count):
            run_steps(trainer, int(task.steps_per_epoch))
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
    return seconds


def judge_sentiment(figures: Figures) -> list[Row]:
    """The largest steps fit, saving is no burden, and kept states are worth it."""
    most, enough, share = figures["most_positions"], figures["large_step"], figures["saving_share"]
    times = figures["training"] / figures["frozen_epochs"][1]
    sizes = [figures[f"{name}_gb"] for name in ("allocated", "expected", "reserved")]
    memory = ", ".join(f"{gigabytes:.2f}" for gigabytes in sizes) + " GB"
    shown = ", ".join(f"{seconds:.1f}" for seconds in figures["frozen_epochs"])
    return [
        must("positions of the largest step", f"{most:,}", f"at least {enough:,}", most >= enough),
        Row("allocated, expected, reserved", memory),
        Row(f"an epoch of {figures['steps']} steps", f"{figures['seconds']:.1f} s"),
        target(
            "saving, at the end moments too, of that", f"{share:.0%}", "at most 20 %", share <= 0.2
        ),
        Row("frozen, epochs 1 and 2", f"{shown} s"),
        target("epoch 2 frozen against not frozen", f"{times:.1f} ×", "5 ×", times >= 5),
    ]
