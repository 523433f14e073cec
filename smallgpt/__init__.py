"""Small GPT: train a small GPT on dialogues, and talk with it.

import smallgpt
bot = smallgpt.load("checkpoints/demo/cpt1200")
bot.reply("早上好呀")
for piece in bot.stream("昨晚睡得好吗？"):
    print(piece, end="", flush=True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smallgpt.chatbot import Chatbot as Chatbot
    from smallgpt.chatbot import load as load
    from smallgpt.errors import UserError as UserError

__all__ = ["Chatbot", "UserError", "load"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `import smallgpt` does not wait for torch.
    if name in ("Chatbot", "load"):
        from smallgpt import chatbot

        return getattr(chatbot, name)
    if name == "UserError":
        from smallgpt.errors import UserError

        return UserError
    raise AttributeError(f"module 'smallgpt' has no attribute {name!r}")
