"""Which characters drove a verdict: integrated gradients (Sundararajan et al., arXiv:1703.01365).

What is explained is the logit of the verdict less the mean of the other logits; a character's share
is positive where it speaks for the verdict. The baseline shows `<pad>` at every place of the text.
The shares add up to the difference between the text and that baseline, but for the error of the
numerical integral.
"""

import html
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smallgpt.data.text import BLANK
from smallgpt.model.classifier import Classifier
from smallgpt.sentiment.predictor import Prediction, Predictor, note_blank, print_line
from smallgpt.tokenizer.characters import PAD
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note

POINTS = 32
"""Places between baseline and text where the gradient is taken."""
_MOST_SHOWN = 9
"""Labels besides the verdict."""
_GREEN, _RED = (46, 160, 67), (218, 54, 51)
_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Why these verdicts?</title>
<meta name="viewport" content="width=device-width">
<style>body{max-width:50em;margin:2em auto;padding:0 1.5em;font:18px/1.8 sans-serif;\
color:#000;background:#fff}.text{white-space:pre-wrap}</style></head><body>
<h1>Why these verdicts?</h1>
<p>Green characters speak for the verdict, red ones against it, the more the stronger the colour
(integrated gradients).</p>
"""


@dataclass(frozen=True)
class Explanation:
    """characters: of the text, or what else its ids stand for; shares: how much each one speaks for
    the verdict, in logits; difference: what they add up to in theory: the verdict's margin over
    that of the baseline."""

    prediction: Prediction
    characters: list[str]
    shares: list[float]
    difference: float

    def strongest(self, count: int = 10) -> str:
        """The characters with the largest shares, as text without colours."""
        ranked = np.argsort(-np.abs(self.shares), kind="stable")[:count]
        return "  ".join(f"{self.characters[n]} {self.shares[n]:+.3f}" for n in ranked)

    def to_terminal(self) -> str:
        """The text, each character on green where it is for the verdict, on red against it."""
        return "".join(
            character
            if character.isspace() or not share
            else f"\x1b[38;2;0;0;0;48;2;{red};{green};{blue}m{character}\x1b[0m"
            for character, share, (red, green, blue) in self._coloured()
        )

    def to_html(self) -> str:
        """Verdict, probabilities of all labels, and the text with such colours."""
        spans = "".join(
            f'<span style="background: rgb({red},{green},{blue})" title="{share:+.4f}">'
            f"{html.escape(character)}</span>"
            for character, share, (red, green, blue) in self._coloured()
        )
        ranked = sorted(self.prediction.probabilities.items(), key=lambda pair: -pair[1])
        (label, first), *others = ((html.escape(name), f"{100 * p:.1f} %") for name, p in ranked)
        rest = "".join(f", {name} {probability}" for name, probability in others[:_MOST_SHOWN])
        return (
            f"<h2>Verdict: {label}</h2>\n<p><b>{label} {first}</b>{rest}</p>\n"
            f'<p class="text" lang="zh">{spans}</p>\n'
        )

    def _coloured(self) -> Iterable[tuple[str, float, list[int]]]:
        """Each character, its share and its colour (red, green, blue), the paler the weaker."""
        shares = np.array(self.shares)[:, None]
        strength = np.abs(shares) / (np.abs(shares).max(initial=0.0) or 1.0)
        colours = np.rint(255 + strength * (np.where(shares > 0, _GREEN, _RED) - 255))
        return zip(self.characters, self.shares, colours.astype(int).tolist(), strict=True)


def explain(predictor: Predictor, text: str) -> Explanation:
    """The verdict on a text and each character's share in it."""
    ((_, prediction),) = predictor.predict_each(text)
    verdict = predictor.names.index(prediction.label)
    examples = predictor.rows_of([text])
    rows = len(examples.lengths)
    shares: list[float] = []
    difference = 0.0
    for row in range(rows):
        ids_1T, ends_1 = (t.to(predictor.runtime.device) for t in examples.gather(np.array([row])))
        inside = slice(1, int(examples.lengths[row]) - 1)
        share_T, margin = _integrate(predictor.model, ids_1T, ends_1, inside, verdict)
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


def explain_texts(predictor: Predictor, texts: Iterable[str], page: Path | None) -> None:
    """Print each verdict with what drove it; with `page`, write them as HTML too.

    Raises:
        UserError: the page cannot be written.
    """
    paragraphs, blank = [], 0
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for text in texts:
        if not text.strip(BLANK):
            blank += 1
            print_line(None, text)
            paragraphs.append("<h2>No text</h2>\n")
            continue
        explanation = explain(predictor, text)
        print_line(explanation.prediction, explanation.to_terminal() if colours else text)
        if not colours:
            print(f"  {explanation.strongest()}", flush=True)
        paragraphs.append(explanation.to_html())
    note_blank(blank, "not judged")
    if page is not None:
        try:
            with atomic.file(page) as work:
                work.write_text(_PAGE + "".join(paragraphs) + "</body></html>\n", "utf-8")
        except OSError as error:
            raise UserError(f"{page} cannot be written: {error.strerror}") from None
        note(f"written: {page}")
