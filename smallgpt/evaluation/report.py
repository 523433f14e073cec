"""What `smallgpt evaluate --data` prints and writes."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smallgpt.checkpoints.checkpoint import Checkpoint
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.data.corpus import describe, open_corpus
from smallgpt.data.dialogue_formats import text_chunks
from smallgpt.evaluation.measures import (
    Measured,
    chance_of_difference,
    comparable,
    measure,
    pairs_for,
    read_prompts,
)
from smallgpt.evaluation.small_talk import FittingReplies
from smallgpt.training.choice import CANDIDATES
from smallgpt.training.replies import figures_of
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note

_LABEL, _COLUMN = 41, 13
"""Characters of a line of the table."""


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _range(low_high: Sequence[float]) -> str:
    return "{:.1f} to {:.1f}".format(*(100 * value for value in low_high))


_ROWS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "validation_loss": ("loss, nats a character", "{:.4f}".format),
    "perplexity": ("perplexity", "{:,.2f}".format),
    "bits_per_character": ("bits a character", "{:.3f}".format),
    "characters": ("characters", "{:,}".format),
    "r10_at_1": ("right reply of ten (R10@1; chance: 10 %)", _share),
    "r10_at_1_95": ("  95 % interval", _range),
    "r10_at_1_likelihood": ("  by likelihood alone", _share),
    "r10_at_1_likelihood_95": ("  95 % interval", _range),
    "pairs": ("  pairs", "{:,}".format),
    "replies": ("replies", "{:,}".format),
    "distinct_1": ("  distinct-1", "{:.3f}".format),
    "distinct_2": ("  distinct-2", "{:.3f}".format),
    "commonest_reply_share": ("  the commonest reply", _share),
    "copies_share": ("  copies of the message", _share),
    "loops_share": ("  loops: 1 to 16 characters, three times", _share),
    "longer_loops_share": ("  loops: 2 to 16 characters, three times", _share),
    "mean_length": ("  mean length, characters", "{:.1f}".format),
    "median_length": ("  median length", "{:.1f}".format),
    "reached_limit_share": ("  as long as max_new_tokens allows", _share),
}
"""Label and form of each figure."""


def on_text(
    paths: Sequence[Path],
    files: list[Path],
    *,
    pairs: int = 500,
    replies: int = 200,
    seed: int = 0,
    prompts: Path | None = None,
    output: Path | None = None,
    device: str = "auto",
    dtype: str | None = None,
    small_talk: Callable[[], FittingReplies] | None = None,
) -> str:
    """Measure one model on a text, or two side by side; all of it as text for the terminal.

    Args:
        paths: of one or two checkpoints.
        pairs: for R10@1, at most.
        replies: that are generated, at most.
        prompts: a file of prompts, instead of ours.
        output: where all figures go as JSON.
        device, dtype: see `measures.measure`.
        small_talk: measures what else is to be told of the first model, behind the rest.

    Raises:
        UserError: a model or a text cannot be used, or the file not be written.
    """
    if output and not output.parent.is_dir():  # told now, and not in some minutes
        raise UserError(f"{output} cannot be written: there is no folder {output.parent}")
    talks = read_prompts(prompts)
    models = [open_checkpoint(path, verify_weights=False) for path in paths]
    corpus = open_corpus(files, text_chunks)
    describe(corpus)
    for stored in models:
        _note_if_trained_on(stored, files)
    sampled = pairs_for(models, corpus, max(pairs, replies), seed)
    to_choose, to_reply = sampled[:pairs], sampled[:replies]
    for_loss = comparable(models, corpus)
    measured = []
    for name, stored in zip("AB", models, strict=False):
        note(f"{name}: {stored.path}")
        measured.append(measure(stored, for_loss, to_choose, to_reply, talks, seed, device, dtype))
    true_replies = [pair.reply for pair in to_reply]
    human = figures_of(to_reply, true_replies)
    comparison = _comparison(measured)
    talked = small_talk() if small_talk else None
    if output:
        models_figures = [
            {
                "checkpoint": str(stored.path),
                **each.figures,
                "prompts": _listed(talks, each.to_prompts),
                "samples": _listed([pair.messages for pair in to_reply], each.replies),
            }
            for stored, each in zip(models, measured, strict=True)
        ]
        contents = {
            **models_figures[0],
            "data": [str(file) for file in files],
            "dialogues": len(corpus),
            "seed": seed,
            "dtype": dtype,
            "true_replies": {**human, "samples": true_replies},
            **({"small_talk": talked.as_dict()} if talked else {}),
            **({"compared_with": models_figures[1]} if len(models) > 1 else {}),
            **comparison,
        }
        _write(output, contents)
    columns = {
        **{name: each.figures for name, each in zip("AB", measured, strict=False)},
        **({"true replies": {"replies": len(true_replies), **human}} if human else {}),
    }
    named = [f"{name}: {stored.path}" for name, stored in zip("AB", models, strict=False)]
    lines = [*named, "", *_table(columns), *_tell(comparison)]
    for talk, *answers in zip(talks, *(each.to_prompts for each in measured), strict=True):
        lines += ["", " / ".join(talk)]
        lines += [f"  {name}  {reply}" for name, reply in zip("AB", answers, strict=False)]
    return "\n".join([*lines, *([str(talked)] if talked else [])])


def _note_if_trained_on(stored: Checkpoint, files: list[Path]) -> None:
    config = stored.config
    learnt = {path.resolve() for path in (*config.data_paths(), *config.mix_paths())}
    if stored.has_checksums and learnt & {file.resolve() for file in files}:
        note(
            f"{stored.path} was trained on most of this text: the figures are better than on a new "
            "one"
        )


def _comparison(measured: Sequence[Measured]) -> dict[str, float]:
    """Whether two models differ in R10@1 by more than chance."""
    if len(measured) < 2 or not measured[0].figures["pairs"]:
        return {}
    first, second = (each.choices for each in measured)
    return {
        "r10_at_1_p": chance_of_difference(first.by_information, second.by_information),
        "r10_at_1_likelihood_p": chance_of_difference(first.by_likelihood, second.by_likelihood),
    }


def _tell(comparison: Mapping[str, float]) -> list[str]:
    if not comparison:
        return []
    p = comparison["r10_at_1_p"]
    much = "by more" if p < 0.05 else "by no more"
    return [f"R10@1 of A and B differs {much} than chance explains (McNemar: p = {p:.2g})"]


def _table(columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each figure that one of the columns has."""
    lines = [" " * _LABEL + "".join(f"{name:>{_COLUMN}}" for name in columns)]
    for key, (label, form) in _ROWS.items():
        cells = [form(figures[key]) if key in figures else "" for figures in columns.values()]
        if any(cells):
            line = f"{label:<{_LABEL}}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells)
            lines.append(line.rstrip())
    if not any("r10_at_1" in figures for figures in columns.values()):
        lines.append(f"no R10@1: it needs {CANDIDATES} pairs with different replies (--pairs)")
    return lines


def _listed(talks: Sequence[Sequence[str]], replies: Sequence[str]) -> list[dict[str, Any]]:
    together = zip(talks, replies, strict=True)
    return [{"messages": list(talk), "reply": reply} for talk, reply in together]


def _write(path: Path, contents: dict[str, Any]) -> None:
    try:
        with atomic.file(path) as work:
            text = json.dumps(contents, ensure_ascii=False, indent=1) + "\n"
            # The name of a file may hold bytes that are no text.
            work.write_text(text, "utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
