"""Which characters drove a verdict: integrated gradients (Sundararajan et al., arXiv:1703.01365).

What is explained is the logit of the verdict less the mean of the other logits; a character's share
is positive where it speaks for the verdict. The baseline shows `<pad>` at every place of the text.
The shares add up to the difference between the text and that baseline, but for the error of the
numerical integral.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
    shares: list[float] = []
    difference = 0.0
    rows = len(examples.lengths)
    for row in range(rows):
        ids, ends = examples.gather(np.array([row]))
        length = int(examples.lengths[row])
        of_row, of_margin = _integrate(predictor, ids, ends, slice(1, length - 1), verdict)
        shares += [share / rows for share in of_row]
        difference += of_margin / rows
    characters = [part for _, part in predictor.tokenizer.spans(text)]
    return Explanation(prediction, characters, shares, difference)


def _integrate(
    predictor: Predictor, ids_1T: Tensor, ends_1: Tensor, place: slice, verdict: int
) -> tuple[list[float], float]:
    """The shares of the ids at `place`, and the difference they should add up to."""
    model, device = predictor.model, predictor.runtime.device
    with torch.no_grad():
        ids_1T = ids_1T.to(device)
        empty_1T = ids_1T.clone()
        empty_1T[:, place] = PAD
        own = model.transformer.embed(ids_1T)
        baseline = own.clone()
        baseline[:, place] = model.transformer.embed(empty_1T)[:, place]
    path = (torch.arange(POINTS, device=device) + 0.5) / POINTS  # midpoint rule
    gradient = torch.zeros_like(own)
    for position in path:
        x_1TE = (baseline + position * (own - baseline)).requires_grad_(True)
        margin = _margin(predictor, x_1TE, ends_1, verdict)
        gradient += torch.autograd.grad(margin, x_1TE)[0]
    shares = ((own - baseline) * gradient / POINTS).sum(-1)[0, place]
    with torch.no_grad():
        full = _margin(predictor, own, ends_1, verdict)
        none = _margin(predictor, baseline, ends_1, verdict)
    return shares.tolist(), float(full - none)


def _margin(predictor: Predictor, x_1TE: Tensor, ends_1: Tensor, verdict: int) -> Tensor:
    """The verdict's logit less the mean of the others, where the first block is given `x_1TE`."""
    last_of_embedding = predictor.model.transformer.drop
    handle = last_of_embedding.register_forward_hook(lambda module, given, result: x_1TE)
    try:
        ids = torch.zeros(x_1TE.shape[:2], dtype=torch.int64, device=x_1TE.device)
        logits = predictor.model(ids, ends_1.to(x_1TE.device))[0].float()
    finally:
        handle.remove()
    return logits[verdict] - (logits.sum() - logits[verdict]) / (len(logits) - 1)


def to_terminal(explanation: Explanation) -> str:
    """The text with a background for each character: green for the verdict, red against it."""
    return "".join(
        character
        if character.isspace() or not strength
        else f"\x1b[38;2;0;0;0;48;2;{';'.join(map(str, colour))}m{character}\x1b[0m"
        for character, colour, strength in _coloured(explanation)
    )


def strongest(explanation: Explanation, count: int = 10) -> str:
    """The characters with the largest shares, as text without colours."""
    pairs = zip(explanation.characters, explanation.shares, strict=True)
    ranked = sorted(pairs, key=lambda pair: -abs(pair[1]))[:count]
    return "  ".join(f"{character} {share:+.3f}" for character, share in ranked)


def to_html(explanations: list[Explanation]) -> str:
    """A page of its own with all texts."""
    parts = []
    for explanation in explanations:
        spans = "".join(
            f'<span style="background: rgb({",".join(map(str, colour))})" '
            f'title="{share:+.4f}">{html.escape(character)}</span>'
            for (character, colour, _), share in zip(
                _coloured(explanation), explanation.shares, strict=True
            )
        )
        prediction = explanation.prediction
        parts.append(
            f"<p><b>{html.escape(prediction.label)}</b> {prediction.probability:.4f}<br>{spans}</p>"
        )
    return (
        '<!doctype html>\n<html lang="zh"><head><meta charset="utf-8"><title>Small GPT</title>'
        "<style>body{max-width:50em;margin:2em auto;font:18px/1.8 sans-serif}"
        "p{white-space:pre-wrap}</style></head><body>\n"
        "<p>Green speaks for the verdict, red against it (integrated gradients).</p>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _coloured(explanation: Explanation) -> list[tuple[str, tuple[int, int, int], float]]:
    """Each character with its colour, the paler the weaker, and its strength from 0 to 1."""
    strongest_share = max((abs(share) for share in explanation.shares), default=0.0) or 1.0
    coloured = []
    for character, share in zip(explanation.characters, explanation.shares, strict=True):
        strength = abs(share) / strongest_share
        full = _GREEN if share > 0 else _RED
        colour = tuple(round(255 + strength * (part - 255)) for part in full)
        coloured.append((character, (colour[0], colour[1], colour[2]), strength))
    return coloured
