"""Recipe: labelled reviews and a trained model -> a classifier, and how good it is.

`run` reads top to bottom: reviews, model, loop, test.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path

import torch

from smallgpt import runtime
from smallgpt.checkpoints import huggingface
from smallgpt.checkpoints.checkpoint import Checkpoint, with_shape_of
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.config import ModelConfig, SentimentConfig
from smallgpt.data.reviews import read_and_split
from smallgpt.distributed.world import World
from smallgpt.model.classifier import Classifier
from smallgpt.sentiment.session import Session
from smallgpt.tokenizer.characters import SEP, Tokenizer
from smallgpt.training import resume
from smallgpt.utils.errors import UserError, note


def run(config: SentimentConfig, command: str = "sentimentalTrain.py …") -> Path:
    """Train as configured, test once, and return the best checkpoint.

    Args:
        command: what the user typed behind `python`, for the message that says how to go on.

    Raises:
        UserError: something the user can put right; earlier checkpoints are intact.
        SystemExit: 130 or 143 after Ctrl-C or SIGTERM, with the state saved.
    """
    root = Path(config.checkpoint_root)
    with ExitStack() as held:
        resume.take(root, held)

        # 1. Reviews: read, and shared out by label.
        resumed = resume.find(config, World(), classifier=True)
        reviews, split = read_and_split(config, resumed.stored.labels if resumed else None)

        # 2. Model: the base's body with a fresh head, or what a run goes on from.
        here = runtime.start(config)
        source = resumed.stored if resumed else _open_base(config)
        tokenizer = source.tokenizer.with_marks()
        config = _with_shape_of(source.config, config, len(tokenizer))
        runtime.seed_everything(config.seed)
        model = restore(source, config, tokenizer, reviews.names)
        model.to(here.device).train()
        session = Session(config, here, reviews, split, tokenizer, model)
        _describe_run(session, source)

        # 3. Loop: step, and now and then validate and save.
        trainer = session.trainer
        if resumed:
            note(f"going on from {resumed.stored.path}")
            trainer.load_state(resumed.state)
            session.recall(resumed.stored)
        session.train(command)

        # 4. Test: the best model, once.
        return session.test()


def _open_base(config: SentimentConfig) -> Checkpoint:
    texts = config.data_paths()  # of a `.pth`
    return open_checkpoint(config.base_model or "", texts=texts, classifier=None, key="base_model")


def _with_shape_of(
    stored: ModelConfig, config: SentimentConfig, vocab_size: int
) -> SentimentConfig:
    """`config` with the network that the base has, but for its output head; only the dropout is
    the config's.

    Raises:
        UserError: it has an output head that the language model's loss would need.
    """
    if config.lm_weight and not stored.tied:
        raise UserError(
            "lm_weight: the output head of base_model has weights of its own, and is not kept",
            "set lm_weight: 0",
        )
    shaped = with_shape_of(stored, config, vocab_size)
    return dataclasses.replace(shaped, tied=True)


def restore(
    source: Checkpoint, config: SentimentConfig, tokenizer: Tokenizer, names: list[str]
) -> Classifier:
    """The classifier to train.

    A base with the same labels and pooling keeps its head; ids that no character has are dropped,
    and `<start>` and `<extract>` begin as copies of `<sep>`.
    """
    weights = dict(source.weights)
    if source.labels is None:
        weights.pop(huggingface.LM_HEAD, None)
        weights = {f"transformer.{name}": tensor for name, tensor in weights.items()}
        used = weights["transformer.wte.weight"][: tokenizer.start]
        weights["transformer.wte.weight"] = torch.cat([used, used[[SEP, SEP]]])
    model = Classifier(config, len(names), config.pooling)
    head = weights.get(huggingface.HEAD)
    if source.labels != names or head is None or head.shape != model.score.weight.shape:
        weights[huggingface.HEAD] = model.score.weight.detach()
    model.load_state_dict(weights)
    return model


def _describe_run(session: Session, source: Checkpoint) -> None:
    config, reviews, split = session.config, session.reviews, session.split
    by_label = ", ".join(
        f"{name}: {int((reviews.labels == n).sum()):,}" for n, name in enumerate(reviews.names)
    )
    note(f"reviews: {len(reviews):,} ({by_label})")
    note(
        f"split: {len(split.train):,} to train, {len(split.validation):,} to choose the best "
        f"model, {len(split.test):,} to test it once"
    )
    note(
        f"rows: {config.block_size} positions at most; {session.trainer.examples.cut:,} long "
        "reviews to train on are cut into pieces"
    )
    note(f"base: {source.path}, {config.n_layer} layers, {config.n_embd} wide")
    learning = sum(p.numel() for p in session.model.parameters() if p.requires_grad) / 1e6
    note(f"learning: {learning:.2f} M parameters{' (the rest is frozen)' if config.frozen else ''}")
    note(f"device: {session.here}")
