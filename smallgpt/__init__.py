"""Small GPT: train a small GPT on dialogues, and talk with it.

import smallgpt
bot = smallgpt.load("checkpoints/demo")
bot.reply("早上好呀")
for chunk in bot.stream("昨晚睡得好吗？"):
    print(chunk, end="", flush=True)
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    import torch

    from smallgpt.chat.chatbot import Chatbot
    from smallgpt.config import SamplingConfig
    from smallgpt.sentiment.predictor import Predictor
    from smallgpt.sentiment.predictor import Predictor as Classifier
    from smallgpt.utils.errors import UserError

_PUBLIC = {
    "Chatbot": "smallgpt.chat.chatbot:Chatbot",
    "Classifier": "smallgpt.sentiment.predictor:Predictor",
    "Predictor": "smallgpt.sentiment.predictor:Predictor",
    "SamplingConfig": "smallgpt.config:SamplingConfig",
    "UserError": "smallgpt.utils.errors:UserError",
}
__version__ = "0.1.0"
__all__ = ["Chatbot", "Classifier", "Predictor", "SamplingConfig", "UserError", "load"]


@overload
def load(
    path: str | Path,
    sampling: SamplingConfig | Mapping[str, Any] | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    dtype: str = "auto",
    wait: bool = True,
    *,
    kind: Literal["chatbot"] | None = None,
) -> Chatbot: ...


@overload
def load(
    path: str | Path, *, device: str | torch.device = "auto", kind: Literal["classifier"]
) -> Classifier: ...


def load(
    path: str | Path,
    sampling: SamplingConfig | Mapping[str, Any] | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    dtype: str = "auto",
    wait: bool = True,
    *,
    kind: Literal["chatbot", "classifier"] | None = None,
) -> Chatbot | Classifier:
    """Open a model: a Chatbot to talk with, or a Classifier of texts.

    Several threads may use one model: a Classifier as it is, a Chatbot with a `conversation()` for
    each of them.

    Args:
        path: a checkpoint directory, the folder of a run (its best checkpoint, else its newest), a
            GPT-2 directory of another program, or a converted `.pth`.
        sampling: how replies are drawn, by default as the checkpoint was configured; of a mapping,
            such as {"temperature": 0.8}, the keys that differ from that.
        device: auto, cpu, cuda, cuda:N or mps; auto is the fastest there is.
        seed: the same seed and the same talk give the same replies.
        dtype: precision of the weights: auto, float32, bfloat16, float16, int8 or int4.
        wait: False returns while the weights are still made ready.
        kind: what the model must be; None takes both. No type checker can look into the checkpoint:
            it takes the model for a Chatbot unless `kind` is "classifier". A classifier has no
            sampling, seed, dtype and wait.

    Raises:
        UserError: there is no usable model at `path`, it is of the other kind, or an argument is
            not what it should be.
    """
    from smallgpt.chat import chatbot
    from smallgpt.checkpoints import open
    from smallgpt.utils.errors import UserError

    if kind not in (None, "chatbot", "classifier"):
        raise UserError(f"kind: {kind!r} is unknown", "use 'chatbot', 'classifier' or None")
    path = open.find_checkpoint(path)
    if kind == "chatbot" or (kind is None and not open.is_classifier(path)):
        return chatbot.load(path, sampling, device, seed, dtype, wait)
    from smallgpt.sentiment import predictor

    if (sampling, seed, dtype, wait) != (None, 0, "auto", True):
        raise UserError(f"{path} is a classifier", "of the settings it takes the device only")
    return predictor.load(path, device)


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `import smallgpt` does not wait for torch.
    if name not in _PUBLIC:
        raise AttributeError(f"module 'smallgpt' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(import_module(module), attribute)
