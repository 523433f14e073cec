"""The >>> prompt: on a terminal for people, from a pipe for programs.

From a pipe every line of standard input is a prompt, and standard output gets exactly one line a
reply. All else, the >>> included, goes to standard error.
"""

import sys
from collections.abc import Iterator

from smallgpt.chat.chatbot import Chatbot
from smallgpt.tokenizer.characters import as_utterance
from smallgpt.utils.errors import note

PROMPT = ">>> "
HELP = """\
Type what you want to say and press Enter.
  exit     leave (or Ctrl-D)
  flush    forget the conversation and begin anew
  /help    this text
Ctrl-C stops a reply; at the prompt it clears the line."""


def chat(bot: Chatbot) -> None:
    """Talk until `exit` or the end of input."""
    conversation = bot.conversation()
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if on_terminal:
        note("Chat: type and press Enter; exit leaves, flush forgets, /help explains.")
    for line in _typed_lines() if on_terminal else _piped_lines():
        prompt = as_utterance(line)
        if prompt == "exit":
            break
        if prompt == "flush":
            conversation.flush()
            note("(conversation forgotten)")
        elif prompt == "/help":
            note(HELP)
        elif not prompt:
            note("(nothing typed; /help explains)")
        else:
            _answer(conversation, prompt, on_terminal)


def _answer(conversation: Chatbot, prompt: str, on_terminal: bool) -> None:
    """Print the reply as it comes. On a terminal Ctrl-C ends the reply, else the program."""
    reply = conversation.stream(prompt)
    try:
        for chunk in reply:
            print(chunk, end="", flush=True)
    except KeyboardInterrupt:
        reply.close()
        if not on_terminal:
            raise
    print(flush=True)
    if left_out := conversation.left_out:
        note(f"(too long for the model: the first {left_out:,} characters were left out)")


def _piped_lines() -> Iterator[str]:
    """Lines of standard input; bytes that are not UTF-8 become U+FFFD."""
    while True:
        print(PROMPT, end="", file=sys.stderr, flush=True)
        if not (data := sys.stdin.buffer.readline()):
            note()
            return
        yield data.decode("utf-8", errors="replace")


def _typed_lines() -> Iterator[str]:
    """Lines typed on a terminal, with history and editing that knows wide characters."""
    from prompt_toolkit import PromptSession

    session = PromptSession[str]()
    while True:
        try:
            yield session.prompt(PROMPT)
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
