"""What the API and the page tell about the models."""

from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from smallgpt.checkpoints.checkpoint import read_manifest
from smallgpt.config import SamplingConfig
from smallgpt.server.service import Service
from smallgpt.tokenizer.characters import Tokenizer
from smallgpt.training.metrics import METRICS_FILE, records
from smallgpt.utils.errors import UserError

MOST_POINTS = 300
"""Of a curve."""


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["smallgpt"] = "smallgpt"
    kind: Literal["chat", "classifier"]


class Models(BaseModel):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


class Curve(BaseModel):
    """Losses in nats a character, as [step, loss]."""

    training: list[tuple[int, float]]
    validation: list[tuple[int, float]]


class ModelCard(Model):
    """A model, what it is like, and how it was trained."""

    parameters: int
    precision: str
    device: str
    context_length: int
    vocabulary: int
    tokenizer: Literal["characters", "subwords"]
    step: int | None
    sampling: dict[str, int | float] | None
    labels: list[str] | None
    curve: Curve


def served(service: Service) -> list[Model]:
    """The chat model and, where there is one, the classifier."""
    models = [Model(id=service.name, created=service.created, kind="chat")]
    if service.classifier:
        name = service.classifier.name
        models.append(Model(id=name, created=service.created, kind="classifier"))
    return models


def chat_card(service: Service) -> ModelCard:
    """The card of the chat model."""
    bot, source = service.bot, service.bot.source
    assert source is not None
    sampling = {key.name: getattr(bot.sampling, key.name) for key in fields(SamplingConfig)}
    return _card(
        served(service)[0],
        source.path,
        bot.tokenizer,
        parameters=source.parameters,
        precision=source.precision,
        device=source.device,
        context_length=bot.model.config.block_size,
        sampling=sampling,
        labels=None,
    )


def classifier_card(service: Service) -> ModelCard:
    """The card of the classifier."""
    thread = service.classifier
    assert thread is not None
    predictor = thread.predictor
    return _card(
        served(service)[1],
        thread.path,
        predictor.tokenizer,
        parameters=sum(weight.numel() for weight in predictor.model.parameters()),
        precision=str(predictor.runtime.dtype).removeprefix("torch."),
        device=str(predictor.runtime.device),
        context_length=predictor.config.block_size,
        sampling=None,
        labels=predictor.names,
    )


def _card(model: Model, checkpoint: Path, tokenizer: Tokenizer, **more: Any) -> ModelCard:
    """A card: what the checkpoint and the tokenizer say, and more."""
    return ModelCard(
        **model.model_dump(),
        vocabulary=len(tokenizer),
        tokenizer="subwords" if tokenizer.lengths().max() > 1 else "characters",
        step=_step(checkpoint),
        curve=curve(checkpoint.parent / METRICS_FILE),
        **more,
    )


def _step(path: Path) -> int | None:
    """How long the checkpoint was trained; None where it does not say."""
    try:
        step = read_manifest(path).get("step")
    except UserError:
        return None
    return step if isinstance(step, int) else None


def curve(path: Path) -> Curve:
    """The losses in a metrics.jsonl, thinned out; none where there is no such file."""
    training, validation = list[tuple[int, float]](), list[tuple[int, float]]()
    for record in records(path):
        step = record.get("step")
        for key, points in (("loss", training), ("validation_loss", validation)):
            loss = record.get(key)
            if isinstance(step, int) and isinstance(loss, float):
                points.append((step, loss))
    return Curve(training=_thinned(training), validation=_thinned(validation))


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `MOST_POINTS`: the means of equal spans, each at its last step."""
    spans = min(MOST_POINTS, len(points))
    cuts = [number * len(points) // spans for number in range(spans + 1)] if spans else []
    return [
        (points[end - 1][0], sum(loss for _, loss in points[begin:end]) / (end - begin))
        for begin, end in pairwise(cuts)
    ]
