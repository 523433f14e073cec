"""How good a checkpoint is, and what is in it; as text for the terminal."""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from smallgpt import runtime
from smallgpt.chat import chatbot
from smallgpt.checkpoints import checkpoint
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.config import Config, SentimentConfig
from smallgpt.data.corpus import match_tokenizer, open_corpus
from smallgpt.data.dialogue_formats import text_chunks
from smallgpt.data.packing import PackedRows
from smallgpt.demo import smalltalk
from smallgpt.demo.judge import judge_all
from smallgpt.training.validation import validate
from smallgpt.utils.words import rounded, size


def on_text(path: Path, files: list[Path], device: str = "auto", dtype: str | None = None) -> str:
    """Loss, perplexity and bits per character of a checkpoint over all dialogues of a text.

    Characters the model does not know are not counted as targets.

    Args:
        dtype: measure the model as chat runs it in this precision; by default as training does.
    """
    stored = open_checkpoint(path, verify_weights=dtype is None)
    config = stored.config
    here = runtime.start(Config(device=device))
    if dtype is None:
        model = stored.model().to(here.device)
    else:
        model = chatbot.load(path, device=here.device, dtype=dtype).model
        here = runtime.Runtime(here.device, torch.float32, "the weights have the precision")
    corpus, id_map = match_tokenizer(open_corpus(files, text_chunks), stored.tokenizer)
    rows = PackedRows(corpus, np.arange(len(corpus)), config.block_size, config.seed, id_map)
    measured = validate(model, rows, here, np.arange(len(rows)), config.test_batch)
    return str(measured)


def on_smalltalk(
    path: Path, dialogues: int, seed: int, device: str = "auto", dtype: str | None = None
) -> str:
    """Play held-out small talk; the share of fitting replies, the weakest situation first."""
    bot = chatbot.load(path, device=runtime.choose_device(device), dtype=dtype or "float32")
    plays = smalltalk.held_out(dialogues, seed)
    with tqdm(total=sum(map(len, plays)), unit="reply", leave=False) as bar:

        def respond(history: list[str]) -> str:
            bar.update()
            chunks, _ = bot.respond(history, torch.Generator().manual_seed(seed))
            return "".join(chunks)

        counts = judge_all(plays, respond)
    return _table(counts)


def _table(counts: dict[str, tuple[int, int]]) -> str:
    """Fitting replies of all: one line a situation, the weakest first, and the total last."""
    rows = sorted(counts.items(), key=lambda item: item[1][0] / item[1][1])
    good, total = (sum(column) for column in zip(*counts.values(), strict=True))
    return "\n".join(
        f"{good:5d} of {total:5d}  {100 * good / total:5.1f} %  {name}"
        for name, (good, total) in [*rows, ("fitting in all", (good, total))]
    )


def describe_checkpoint(path: Path) -> str:
    """Step, shape, scores, vocabulary and files of a checkpoint that is whole."""
    stored = open_checkpoint(path, classifier=None)
    path = stored.path
    config = stored.config
    trained_on = ", ".join(map(str, config.data_paths()))
    if isinstance(config, SentimentConfig):
        trained_on = f"{config.sentimental_data_path}, from {config.base_model}"
    if not stored.has_checksums:
        verdict = "a model of another program, which has no checksums to check"
        trained_on = "unknown"
    elif (path / checkpoint.STATE_FILE).exists():
        checkpoint.verify(path, stored.manifest, checkpoint.STATE_FILE)
        verdict = "whole, all checksums right"
    else:
        verdict = "all checksums right; but it has no training state to resume"
    hidden = ("sha256", "format", "history")
    manifest = {k: v for k, v in stored.manifest.items() if k not in hidden}
    positions = config.block_size * config.n_embd
    parameters = sum(tensor.numel() for tensor in stored.weights.values()) - positions
    characters = [c for c in stored.tokenizer.characters if c.isprintable()]
    lines = [
        f"{path}: {verdict}",
        *(f"  {name}: {rounded(value)}" for name, value in manifest.items()),
        f"  parameters: {parameters:,} (and {positions:,} for positions)",
        f"  shape: {config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, "
        f"context {config.block_size}, vocabulary {config.vocab_size:,}",
        f"  characters: {''.join(characters[:40])}{' …' if len(characters) > 40 else ''}",
        *([f"  tells apart: {', '.join(stored.labels)}"] if stored.labels else []),
        f"  trained on: {trained_on}",
        *(f"  {f.name}: {size(f.stat().st_size)}" for f in sorted(path.iterdir())),
    ]
    return "\n".join(lines)
