"""A checkpoint made ready to be given away: no training state, weights in parts, a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData, save_torch_state_dict

from smallgpt.checkpoints import checkpoint, huggingface
from smallgpt.checkpoints.checkpoint import Checkpoint, first_line
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.checkpoints.run_folder import MANIFEST_FILE
from smallgpt.config import SentimentConfig
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError

CARD_FILE = "README.md"
MOST_BYTES = "2GB"
"""Larger weights are stored in several files, as the hub wants them."""
_FIGURES = {
    "validation_loss": "validation loss, nats",
    "perplexity": "validation perplexity",
    "bits_per_character": "validation bits a character",
    "validation_accuracy": "validation accuracy",
}


def make_ready(path: Path, target: Path, licence: str, most_bytes: str = MOST_BYTES) -> None:
    """Write a directory to upload.

    Args:
        path: names a language model or a classifier, see `open_checkpoint`.
        licence: for the card, such as "mit"; an identifier of the hub, or "other".
        most_bytes: of a file of weights, such as "2GB".

    Raises:
        UserError: there is no usable checkpoint, `target` is there already or cannot be written.
    """
    if target.exists():
        raise UserError(f"--output {target} is there already", "name another, or delete it")
    stored = open_checkpoint(path, classifier=None)
    if not stored.has_checksums:
        raise UserError(f"{path} is another program's model", "it is as ready as it can be")
    try:
        with atomic.directory(target) as work:
            _copy(stored.path, work, most_bytes)
            card(stored, licence).save(work / CARD_FILE)
            checkpoint.write_manifest(work, stored.manifest)
    except checkpoint.WRITE_ERRORS as error:
        raise UserError(f"{target} cannot be written: {first_line(error)}") from None


def _copy(path: Path, work: Path, most_bytes: str) -> None:
    """All but the training state; weights as they are in the file, in Hugging Face's layout."""
    left_out = (checkpoint.STATE_FILE, MANIFEST_FILE, huggingface.WEIGHTS_FILE)
    for file in path.iterdir():
        if file.is_file() and file.name not in left_out:
            shutil.copyfile(file, work / file.name)
    tensors = huggingface.read_files(path)
    save_torch_state_dict(tensors, work, max_shard_size=most_bytes, metadata={"format": "pt"})
    for file in work.iterdir():
        file.chmod(0o644)


def card(stored: Checkpoint, licence: str) -> ModelCard:
    """The model card: what it is, learnt from what and how, how good it is, how to use it.

    Every figure is read from the checkpoint.
    """
    classifies = stored.labels is not None
    own = "smallgpt" if huggingface.is_own(stored.config) else None
    data = ModelCardData(
        language="zh",
        license=licence,
        library_name=own or "transformers",
        pipeline_tag="text-classification" if classifies else "text-generation",
        tags=[own or "gpt2", "small-gpt", "sentiment-analysis" if classifies else "conversational"],
    )
    ours = "original" not in stored.manifest
    name = Path(stored.config.checkpoint_root).name if ours else stored.path.resolve().name
    sections = [f"# {name}", _what(stored), _training(stored), _figures(stored), _usage(stored)]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _what(stored: Checkpoint) -> str:
    config = stored.config
    parameters = sum(t.numel() for t in stored.weights.values())
    kind = (
        f"A classifier of Chinese texts ({', '.join(stored.labels)})"
        if stored.labels
        else "A language model of Chinese dialogues"
    )
    return (
        f"{kind}: a GPT-2 with {config.n_layer} layers, {config.n_head} heads, width "
        f"{config.n_embd}, a context of {config.block_size} ids and a vocabulary of "
        f"{config.vocab_size:,}; {parameters / 1e6:.2f} M parameters. Made with Small GPT"
        + (", which alone runs it." if huggingface.is_own(config) else ".")
    )


def _training(stored: Checkpoint) -> str:
    config = stored.config
    files = [Path(str(file)).name for file in config.data_paths()]
    if isinstance(config, SentimentConfig):
        files = [Path(config.sentimental_data_path).name]
    if "original" in stored.manifest:  # of its training, the file tells no more
        rows = [("data", ", ".join(files)), ("steps", f"{stored.step:,}, not with Small GPT")]
        return "## Training\n\n" + _table(rows)
    rows = [
        ("data", ", ".join(files)),
        ("steps", f"{stored.step:,} of {config.train_batch} rows or texts"),
        (
            "optimizer",
            f"{config.optimizer}, lr {config.lr:g}, weight decay {config.weight_decay:g}",
        ),
        ("dropout", f"{config.dropout:g}"),
        ("seed", f"{config.seed}"),
    ]
    if config.base_model:
        rows.insert(0, ("began with", Path(config.base_model).name))
    return "## Training\n\n" + _table(rows)


def _figures(stored: Checkpoint) -> str:
    rows = [
        (title, f"{stored.manifest[key]:.4f}")
        for key, title in _FIGURES.items()
        if isinstance(stored.manifest.get(key), float)
    ]
    rows += _tested(stored)
    if not rows:
        return "## Evaluation\n\nThis checkpoint was not evaluated."
    return "## Evaluation\n\n" + _table(rows)


def _tested(stored: Checkpoint) -> list[tuple[str, str]]:
    """What a classifier's report says of this very checkpoint on the test part."""
    try:
        report = json.loads((stored.path.parent / "report.json").read_text("utf-8"))
        if Path(report["model"]).name != stored.path.name:
            return []
        test = report["test"]
        low, high = test["accuracy_95"]
        return [
            ("test accuracy", f"{test['accuracy']:.4f} (95 %: {low:.4f} to {high:.4f})"),
            ("test macro F1", f"{test['macro_f1']:.4f}"),
            ("the classical reference's", f"{report['reference']['accuracy']:.4f}"),
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _usage(stored: Checkpoint) -> str:
    if huggingface.is_own(stored.config):
        call = 'predict(["房间很干净"])' if stored.labels else 'reply("早上好呀")'
        code = ["import smallgpt", 'model = smallgpt.load("PATH")', f"model.{call}"]
    elif stored.labels:
        code = [
            "from transformers import pipeline",
            'judge = pipeline("text-classification", "PATH", top_k=None)',
            'judge(["房间很干净"])',
        ]
    else:
        code = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            'model = AutoModelForCausalLM.from_pretrained("PATH")',
            'tokenizer = AutoTokenizer.from_pretrained("PATH")',
            'messages = [{"role": "user", "content": "早上好呀"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, return_tensors="pt", return_dict=True',
            ")",
            "tokenizer.decode(model.generate(**inputs)[0])",
        ]
    return "## Use\n\n```python\n" + "\n".join(code) + "\n```"
