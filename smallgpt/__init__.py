"""Small GPT: train a small GPT on dialogues, and talk with it.

import smallgpt
bot = smallgpt.load("checkpoints/demo")
bot.reply("早上好呀")
for chunk in bot.stream("昨晚睡得好吗？"):
    print(chunk, end="", flush=True)
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smallgpt.chat.chatbot import Chatbot as Chatbot
    from smallgpt.sentiment.predictor import Predictor as Predictor
    from smallgpt.utils.errors import UserError as UserError

_MODULES = {
    "Chatbot": "smallgpt.chat.chatbot",
    "Predictor": "smallgpt.sentiment.predictor",
    "UserError": "smallgpt.utils.errors",
}
__version__ = "0.1.0"
__all__ = ["Chatbot", "Predictor", "UserError", "load"]


def load(path: str | Path, *arguments: Any, **settings: Any) -> Any:
    """Open a model: a Chatbot, or a Predictor where it is a classifier.

    `path` is a checkpoint directory, the folder of a run (its best checkpoint, else its newest), a
    GPT-2 directory of another program, or a converted `.pth`; the settings are those of
    smallgpt.chat.chatbot.load and smallgpt.sentiment.predictor.load.

    Raises:
        UserError: there is no usable checkpoint at `path`.
    """
    from smallgpt.chat import chatbot
    from smallgpt.checkpoints import checkpoint, open

    path = open.find_checkpoint(path)
    if checkpoint.is_classifier(path):
        from smallgpt.sentiment import predictor

        return predictor.load(path, *arguments, **settings)
    return chatbot.load(path, *arguments, **settings)


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `import smallgpt` does not wait for torch.
    if name not in _MODULES:
        raise AttributeError(f"module 'smallgpt' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
