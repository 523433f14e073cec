"""Which characters drove a verdict: integrated gradients (Sundararajan et al., arXiv:1703.01365).

What is explained is the logit of the verdict less the mean of the other logits; a character's share
is positive where it speaks for the verdict. The baseline shows `<pad>` at every place of the text.
The shares add up to the difference between the text and that baseline, but for the error of the
numerical integral.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smallgpt.model.classifier import Classifier
from smallgpt.sentiment.predictor import Prediction, Predictor
from smallgpt.tokenizer.characters import PAD

POINTS = 32
"""Places between baseline and text where the gradient is taken."""
_GREEN, _RED = (46, 160, 67), (218, 54, 51)


@dataclass(frozen=True)
class Explanation:
    """characters: of the text, or what else its ids stand for; shares: how much each one speaks for
    the verdict, in logits; difference: what they add up to in theory: the verdict's margin over
    that of the baseline."""

    prediction: Prediction
    characters: list[str]
    shares: list[float]
    difference: float


def explain(predictor: Predictor, text: str) -> Explanation:
    """The verdict on a text and each character's share in it."""
    (prediction,) = predictor.predict([text])
    verdict = predictor.names.index(prediction.label)
    examples = predictor.rows_of([text])
    rows = len(examples.lengths)
    shares: list[float] = []
    difference = 0.0
    for row in range(rows):
        ids_1T, ends_1 = (t.to(predictor.runtime.device) for t in examples.gather(np.array([row])))
        text_of_row = slice(1, int(examples.lengths[row]) - 1)
        share_T, margin = _integrate(predictor.model, ids_1T, ends_1, text_of_row, verdict)
        shares += [share / rows for share in share_T]
        difference += margin / rows
    characters = [part for _, part in predictor.tokenizer.spans(text)]
    return Explanation(prediction, characters, shares, difference)


def _integrate(
    model: Classifier, ids_1T: Tensor, ends_1: Tensor, place: slice, verdict: int
) -> tuple[list[float], float]:
    """The shares of the ids at `place`, and the difference they should add up to."""

    def margin(x_1TE: Tensor) -> Tensor:
        """The verdict's logit less the mean of the others, where the first block is given `x`."""
        hook = model.transformer.drop.register_forward_hook(lambda module, given, result: x_1TE)
        try:
            logits = model(ids_1T, ends_1)[0].float()
        finally:
            hook.remove()
        return logits[verdict] - (logits.sum() - logits[verdict]) / (len(logits) - 1)

    with torch.no_grad():
        empty_1T = ids_1T.clone()
        empty_1T[:, place] = PAD
        own = model.transformer.embed(ids_1T)
        baseline = own.clone()
        baseline[:, place] = model.transformer.embed(empty_1T)[:, place]
        difference = float(margin(own) - margin(baseline))
    gradient = torch.zeros_like(own)
    for point in range(POINTS):
        position = (point + 0.5) / POINTS  # midpoint rule
        x_1TE = (baseline + position * (own - baseline)).requires_grad_(True)
        gradient += torch.autograd.grad(margin(x_1TE), x_1TE)[0]
    return ((own - baseline) * gradient / POINTS).sum(-1)[0, place].tolist(), difference


def strongest(explanation: Explanation, count: int = 10) -> str:
    """The characters with the largest shares, as text without colours."""
    pairs = zip(explanation.characters, explanation.shares, strict=True)
    ranked = sorted(pairs, key=lambda pair: -abs(pair[1]))[:count]
    return "  ".join(f"{character} {share:+.3f}" for character, share in ranked)


def to_terminal(explanation: Explanation) -> str:
    """The text with a background for each character: green for the verdict, red against it."""
    return "".join(
        character
        if character.isspace() or not share
        else f"\x1b[38;2;0;0;0;48;2;{';'.join(colour)}m{character}\x1b[0m"
        for character, share, colour in _coloured(explanation)
    )


def to_html(explanations: list[Explanation]) -> str:
    """A page of its own with all texts."""
    paragraphs = []
    for explanation in explanations:
        spans = "".join(
            f'<span style="background: rgb({",".join(colour)})" '
            f'title="{share:+.4f}">{html.escape(character)}</span>'
            for character, share, colour in _coloured(explanation)
        )
        label, probability = explanation.prediction.label, explanation.prediction.probability
        paragraphs.append(f"<p><b>{html.escape(label)}</b> {probability:.4f}<br>{spans}</p>\n")
    return (
        '<!doctype html>\n<html lang="zh"><head><meta charset="utf-8"><title>Small GPT</title>'
        "<style>body{max-width:50em;margin:2em auto;font:18px/1.8 sans-serif}"
        "p{white-space:pre-wrap}</style></head><body>\n"
        "<p>Green speaks for the verdict, red against it (integrated gradients).</p>\n"
        + "".join(paragraphs)
        + "</body></html>\n"
    )


def _coloured(explanation: Explanation) -> Iterator[tuple[str, float, list[str]]]:
    """Each character with its share and its colour (red, green, blue), the paler the weaker."""
    largest = max(map(abs, explanation.shares), default=0.0) or 1.0
    for character, share in zip(explanation.characters, explanation.shares, strict=True):
        full, strength = _GREEN if share > 0 else _RED, abs(share) / largest
        yield character, share, [str(round(255 + strength * (part - 255))) for part in full]
