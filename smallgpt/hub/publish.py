"""A checkpoint made ready to be given away: no training state, weights in parts, a model card."""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData, save_torch_state_dict

from smallgpt.checkpoints import adapter, checkpoint, gguf, huggingface
from smallgpt.checkpoints.checkpoint import Checkpoint
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.checkpoints.run_folder import MANIFEST_FILE
from smallgpt.config import Dtype, SentimentConfig
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note

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
judge = pipeline("text-classification", "PATH", top_k=None, truncation=True)
judge(["房间很干净"])"""
_TRUNCATES = """
Of a text of more than {} tokens transformers reads the beginning only. Small GPT reads all of
it, in pieces whose logits it averages: `smallgpt.load("PATH").predict([…])`.
"""
_LLAMA_CPP = """
Or with [llama.cpp](https://github.com/ggml-org/llama.cpp), on the screen or in the browser:

```
llama-cli -m {0}
llama-server -m {0}
```
"""
_REPLY = """\
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
messages = [{"role": "user", "content": "早上好呀"}]
inputs = tokenizer.apply_chat_template(
    messages, return_tensors="pt", return_dict=True,
)
tokenizer.decode(model.generate(**inputs)[0])"""


def make_ready(
    path: Path,
    target: Path,
    licence: str,
    most_bytes: str = MOST_BYTES,
    for_llama_cpp: bool = False,
    dtype: Dtype | None = None,
    about: Path | None = None,
    evaluation: Path | None = None,
) -> None:
    """Write a directory to upload: all but the training state, in Hugging Face's layout.

    Args:
        path: names a language model or a classifier, see `open_checkpoint`.
        licence: for the card, such as "mit"; an identifier of the hub, or "other".
        most_bytes: of a file of weights, such as "2GB".
        for_llama_cpp: add a GGUF file, by the name of `target`.
        dtype: of the weights: float32, bfloat16 or float16; None leaves them as they are.
        about: a text for the card.
        evaluation: what `smallgpt evaluate --json` wrote about this checkpoint, for the card.

    Raises:
        UserError: there is no usable checkpoint, `target` is there already or cannot be written;
            no GGUF file can be made (see `gguf.write`); `about` cannot be read, or `evaluation` is
            not of this checkpoint.
    """
    if target.exists():
        raise UserError(f"--output {target} is there already", "name another, or delete it")
    stored = _open(path)
    told = _read_text(about) if about else ""
    if (stored.path / CARD_FILE).exists() and not about:
        note(f"{stored.path / CARD_FILE} is not taken over: give a text for the new card, --about")
    measured = _read_evaluation(evaluation, stored.path) if evaluation else {}
    left_out = (checkpoint.STATE_FILE, MANIFEST_FILE, huggingface.WEIGHTS_FILE, CARD_FILE)
    tensors = huggingface.read_files(stored.path)
    if dtype:
        tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    with checkpoint.write_errors(str(target)), atomic.directory(target) as work:
        for file in stored.path.iterdir():
            if file.is_file() and file.name not in left_out:
                shutil.copyfile(file, work / file.name)
        # Anew: those of older checkpoints tell transformers less.
        stored.tokenizer.save(work, **checkpoint.tokenizer_settings(stored.config))
        save_torch_state_dict(tensors, work, max_shard_size=most_bytes, metadata={"format": "pt"})
        if dtype:
            described = huggingface.read_json(work / huggingface.CONFIG_FILE) | {"dtype": dtype}
            text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
            (work / huggingface.CONFIG_FILE).write_text(text, "utf-8")
        for file in work.iterdir():
            file.chmod(0o644)
        checkpoint.write_manifest(work, stored.manifest)
        # Not in the manifest: the card may be edited, and without GGUF the checkpoint is whole.
        gguf_file = target.name + gguf.SUFFIX if for_llama_cpp else ""
        if gguf_file:
            gguf.write(stored, work / gguf_file)
        text = card(stored, licence, gguf_file, told, measured)
        (work / CARD_FILE).write_text(text, "utf-8")


def _open(path: Path) -> Checkpoint:
    stored = open_checkpoint(path, classifier=None)
    if adapter.is_adapter(stored.path):
        merge = f"python -m smallgpt convert {path} --merge --output DIRECTORY"
        raise UserError(f"{path} is an adapter, not a whole model", f"merge it first: {merge}")
    if not stored.has_checksums:
        raise UserError(f"{path} is another program's model", "it is as ready as it can be")
    return stored


def _read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}", "give a text in UTF-8") from None


def _read_evaluation(file: Path, path: Path) -> dict[str, str]:
    """The facts for the card."""
    evaluated = huggingface.read_json(file)
    of = evaluated.get("checkpoint")
    advice = f"measure this one: python -m smallgpt evaluate {path} --data TEXT --json {file}"
    if isinstance(of, str) and Path(of).resolve() != path.resolve():
        raise UserError(f"{file} is not an evaluation of {path}, but of {of}", f"{advice} --force")
    try:
        if isinstance(of, str):
            return _evaluation_facts(evaluated)
    except (KeyError, TypeError, ValueError):
        pass
    raise UserError(f"{file} is not what smallgpt evaluate writes", f"{advice} --force")


def card(
    stored: Checkpoint,
    licence: str,
    gguf_file: str = "",
    about: str = "",
    measured: Mapping[str, str] | None = None,
) -> str:
    """The model card: what it is, learnt from what and how, how good it is, how to use it.

    Every figure is read from the checkpoint, or is in `measured`, what `smallgpt evaluate` found.
    """
    config = stored.config
    own, remark = huggingface.is_own(config), ""
    if stored.labels:
        kind = f"A classifier of Chinese texts ({', '.join(stored.labels)})"
        task, tag = "text-classification", "sentiment-analysis"
        call, example = 'predict(["房间很干净"])', _CLASSIFY
        if not own:
            remark = _TRUNCATES.format(config.block_size - 2)
        if isinstance(config, SentimentConfig) and not config.use_mask:
            example = example.replace("truncation=True", 'truncation=True, padding="max_length"')
    else:
        kind = "A language model of Chinese dialogues"
        task, tag = "text-generation", "conversational"
        call, example = 'reply("早上好呀")', _REPLY
    if own:
        argument = ', kind="classifier"' if stored.labels else ""
        example = f'import smallgpt\nmodel = smallgpt.load("PATH"{argument})\nmodel.{call}'
    if gguf_file:
        remark += _LLAMA_CPP.format(gguf_file)
    data = ModelCardData(
        language="zh",
        license=licence,
        library_name="smallgpt" if own else "transformers",
        pipeline_tag=task,
        tags=["smallgpt" if own else "gpt2", "small-gpt", tag],
    )
    trained_here = "original" not in stored.manifest
    name = Path(config.checkpoint_root).name if trained_here else stored.path.resolve().name
    parameters = sum(t.numel() for t in stored.weights.values())
    table = {**_facts(stored), **(measured or {})}
    facts = "\n".join(f"| {fact} | {value} |" for fact, value in table.items())
    about = f"\n{about.strip()}\n" if about else ""
    return f"""\
---
{data.to_yaml()}
---

# {name}

{kind}: a GPT-2 with {config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, \
a context of {config.block_size} ids and a vocabulary of {config.vocab_size:,}; \
{parameters / 1e6:.2f} M parameters. Made with Small GPT{", which alone runs it" if own else ""}.
{about}
## Training and evaluation

| | |
|---|---|
{facts}

## Use

```python
{example}
```
{remark}"""


def _evaluation_facts(evaluated: Mapping[str, Any]) -> dict[str, str]:
    """What `smallgpt evaluate` measured, of its figures by name."""
    text = ", ".join(Path(file).name for file in evaluated.get("data", ()))
    facts = {}
    if "bits_per_character" in evaluated:
        facts[f"bits a character on {text}"] = f"{evaluated['bits_per_character']:.3f}"
    if "r10_at_1" in evaluated:
        low, high = (f"{100 * end:.1f}" for end in evaluated["r10_at_1_95"])
        picked = f"{100 * evaluated['r10_at_1']:.1f} % (95 %: {low} to {high}; chance: 10 %)"
        facts[f"the right reply of ten (R10@1) on {text}"] = picked
    if "loops_share" in evaluated:
        facts["replies that loop"] = f"{100 * evaluated['loops_share']:.1f} %"
    if small_talk := evaluated.get("small_talk"):
        share, count = small_talk["share"], small_talk["replies"]
        facts["replies that fit in held-out small talk"] = f"{100 * share:.1f} % of {count:,}"
    return facts


def _facts(stored: Checkpoint) -> dict[str, str]:
    """How it was trained, and what its manifest and the report.json of its test measured."""
    config, manifest = stored.config, stored.manifest
    paths = config.data_paths()
    if isinstance(config, SentimentConfig):
        paths = [Path(config.sentimental_data_path)]
    facts = {"data": ", ".join(path.name for path in paths)}
    if "original" in manifest:  # of its training, the file tells no more
        facts["steps"] = f"{stored.step:,}, not with Small GPT"
    else:
        facts |= {
            "began with": Path(config.base_model or "random weights").name,
            "steps": f"{stored.step:,} of {config.train_batch} rows or texts",
            "optimizer": f"{config.optimizer}, lr {config.lr:g}",
            "weight decay": f"{config.weight_decay:g}",
            "dropout": f"{config.dropout:g}",
            "seed": f"{config.seed}",
        }
    figures = {
        title: f"{manifest[key]:.4f}"
        for key, title in _FIGURES.items()
        if isinstance(manifest.get(key), float)
    }
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        report = json.loads((stored.path.parent / "report.json").read_text("utf-8"))
        test, baseline = report["test"], report["reference"]["accuracy"]
        low, high = test["accuracy_95"]
        if Path(report["model"]).name == stored.path.name:
            always = report.get("commonest", {}).get("accuracy")
            figures |= {
                "test accuracy": f"{test['accuracy']:.4f} (95 %: {low:.4f} to {high:.4f})",
                "test macro F1": f"{test['macro_f1']:.4f}",
                "the baseline's test accuracy": f"{baseline:.4f}",
                **({"always the most frequent label": f"{always:.4f}"} if always else {}),
            }
    return facts | (figures or {"evaluation": "this checkpoint was not evaluated"})
