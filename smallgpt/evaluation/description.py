"""What is in a checkpoint, as text for the terminal."""

from pathlib import Path

from smallgpt.checkpoints import adapter, checkpoint
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.config import SentimentConfig
from smallgpt.utils.words import rounded, size


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
    adapts = []
    if adapter.is_adapter(path) and stored.has_checksums:
        base, rank = adapter.base_in(stored).path, stored.manifest["rank"]
        adapts = [f"  an adapter of rank {rank} for: {base} (the figures below are of both)"]
    hidden = ("sha256", "format", "history", "base", "labels", "rank")
    manifest = {k: v for k, v in stored.manifest.items() if k not in hidden}
    positions = config.block_size * config.n_embd
    parameters = sum(tensor.numel() for tensor in stored.weights.values()) - positions
    characters = [c for c in stored.tokenizer.characters if c.isprintable()]
    lines = [
        f"{path}: {verdict}",
        *adapts,
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
