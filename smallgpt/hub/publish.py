"""A checkpoint made ready to be given away: no training state, weights in parts, a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData, save_torch_state_dict

from smallgpt.checkpoints import checkpoint, huggingface
from smallgpt.checkpoints.checkpoint import Checkpoint
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

_CLASSIFY = """\
from transformers import pipeline
judge = pipeline("text-classification", "PATH", top_k=None)
judge(["房间很干净"])"""
_REPLY = """\
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
messages = [{"role": "user", "content": "早上好呀"}]
inputs = tokenizer.apply_chat_template(
    messages, return_tensors="pt", return_dict=True,
)
tokenizer.decode(model.generate(**inputs)[0])"""


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
    with checkpoint.write_errors(str(target)), atomic.directory(target) as work:
        _copy(stored.path, work, most_bytes)
        card(stored, licence).save(work / CARD_FILE)
        checkpoint.write_manifest(work, stored.manifest)


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
    own = huggingface.is_own(stored.config)
    library, tag = ("smallgpt", "smallgpt") if own else ("transformers", "gpt2")
    data = ModelCardData(
        language="zh",
        license=licence,
        library_name=library,
        pipeline_tag="text-classification" if classifies else "text-generation",
        tags=[tag, "small-gpt", "sentiment-analysis" if classifies else "conversational"],
    )
    ours = "original" not in stored.manifest
    name = Path(stored.config.checkpoint_root).name if ours else stored.path.resolve().name
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        _what(stored),
        _section("Training", _training(stored)),
        _section("Evaluation", _figures(stored)),
        _usage(stored),
    ]
    return ModelCard("\n\n".join(sections) + "\n")


def _section(title: str, rows: list[tuple[str, str]]) -> str:
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return f"## {title}\n\n" + ("\n".join(table) if rows else "This checkpoint was not evaluated.")


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


def _training(stored: Checkpoint) -> list[tuple[str, str]]:
    config = stored.config
    paths = config.data_paths()
    if isinstance(config, SentimentConfig):
        paths = [Path(config.sentimental_data_path)]
    data = ("data", ", ".join(Path(path).name for path in paths))
    if "original" in stored.manifest:  # of its training, the file tells no more
        return [data, ("steps", f"{stored.step:,}, not with Small GPT")]
    optimizer = f"{config.optimizer}, lr {config.lr:g}, weight decay {config.weight_decay:g}"
    return [
        *([("began with", Path(config.base_model).name)] if config.base_model else []),
        data,
        ("steps", f"{stored.step:,} of {config.train_batch} rows or texts"),
        ("optimizer", optimizer),
        ("dropout", f"{config.dropout:g}"),
        ("seed", f"{config.seed}"),
    ]


def _figures(stored: Checkpoint) -> list[tuple[str, str]]:
    """What the manifest says of validation, and report.json of the test of this very checkpoint."""
    manifest = stored.manifest
    rows = [
        (title, f"{manifest[key]:.4f}")
        for key, title in _FIGURES.items()
        if isinstance(manifest.get(key), float)
    ]
    try:
        report = json.loads((stored.path.parent / "report.json").read_text("utf-8"))
        test, baseline = report["test"], report["reference"]["accuracy"]
        low, high = test["accuracy_95"]
        if Path(report["model"]).name == stored.path.name:
            rows += [
                ("test accuracy", f"{test['accuracy']:.4f} (95 %: {low:.4f} to {high:.4f})"),
                ("test macro F1", f"{test['macro_f1']:.4f}"),
                ("the baseline's test accuracy", f"{baseline:.4f}"),
            ]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return rows


def _usage(stored: Checkpoint) -> str:
    if huggingface.is_own(stored.config):
        call = 'predict(["房间很干净"])' if stored.labels else 'reply("早上好呀")'
        code = f'import smallgpt\nmodel = smallgpt.load("PATH")\nmodel.{call}'
    else:
        code = _CLASSIFY if stored.labels else _REPLY
    return f"## Use\n\n```python\n{code}\n```"
