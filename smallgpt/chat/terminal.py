"""The >>> prompt: on a terminal for people, from a pipe for programs.

From a pipe every line of standard input is a prompt but `exit`, `flush` and `/help`, and standard
output gets exactly one line a reply. All else, the >>> included, goes to standard error.
"""

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from smallgpt.chat import commands
from smallgpt.chat.chatbot import Chatbot
from smallgpt.chat.words import ENGLISH, Words, of_locale
from smallgpt.tokenizer.characters import as_utterance
from smallgpt.utils.errors import note
from smallgpt.utils.paths import user_folder

if TYPE_CHECKING:
    from prompt_toolkit.history import History

PROMPT = ">>> "
HELP = """\
Every line is a message, and gets a reply of one line, but for these:
  exit     leave (or the end of input)
  flush    forget the conversation and begin anew
  /help    this text
On a terminal there are more commands, and Ctrl-C stops a reply."""


def chat(bot: Chatbot) -> None:
    """Talk until `exit` or the end of input."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        _with_a_person(bot.conversation())
    else:
        _with_a_program(bot.conversation())


def _with_a_program(conversation: Chatbot) -> None:
    for line in _plain_lines(sys.stderr):
        prompt = as_utterance(line)
        if prompt == "exit":
            break
        if prompt == "flush":
            conversation.flush()
            note(ENGLISH.forgotten)
        elif prompt == "/help":
            note(HELP)
        elif not prompt:
            note(ENGLISH.nothing_typed)
        else:
            _show(conversation.stream(prompt), conversation, ENGLISH)


def _with_a_person(conversation: Chatbot) -> None:
    words = of_locale()
    if conversation.source:
        note(words.describe(conversation.source))
        if (card := Path(conversation.source.path, "README.md")).is_file():
            note(words.card.format(card))
    note(words.welcome)
    for line in _typed_lines():
        prompt = as_utterance(line)
        if not prompt:
            note(words.nothing_typed)
            continue
        if commands.leaves(prompt):
            break
        if commands.is_command(prompt):
            reply = commands.run(prompt, conversation, words)
        else:
            if (lines := len(line.strip().splitlines())) > 1:
                note(words.joined.format(lines))
            reply = conversation.stream(prompt)
        if reply:
            _show(reply, conversation, words, stoppable=True)


def _show(
    reply: Generator[str, None, None], conversation: Chatbot, words: Words, stoppable: bool = False
) -> None:
    """Print the reply as it comes. Ctrl-C ends the reply if it is `stoppable`, else the program."""
    try:
        for chunk in reply:
            print(chunk, end="", flush=True)
    except KeyboardInterrupt:
        reply.close()
        if not stoppable:
            raise
    print(flush=True)
    if left_out := conversation.left_out:
        note(words.left_out.format(left_out))


def _plain_lines(output: TextIO) -> Iterator[str]:
    """Lines of standard input; bytes that are not UTF-8 become U+FFFD.

    On a terminal Ctrl-C begins a new line.
    """
    while True:
        print(PROMPT, end="", file=output, flush=True)
        try:
            data = sys.stdin.buffer.readline()
        except KeyboardInterrupt:
            if output is not sys.stdout:
                raise
            note()
            continue
        if not data:
            note()
            return
        yield data.decode("utf-8", errors="replace")


def _typed_lines() -> Iterator[str]:
    """Lines typed on a terminal, with history and editing that knows wide characters."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.utils import is_dumb_terminal

    if is_dumb_terminal():  # it has no cursor to move: the system's own line editing must do
        yield from _plain_lines(sys.stdout)
        return
    session = PromptSession[str](history=_history())
    while True:
        try:
            yield session.prompt(PROMPT)
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _history() -> "History":
    """Lines typed at earlier starts, in a file that only the user can read.

    Where there is no place for it, those typed since this start.
    """
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Lines(FileHistory):
        def store_string(self, string: str) -> None:
            with suppress(OSError):  # such as of a full disk: no line typed is worth the talk
                super().store_string(string)

    folder = user_folder("XDG_STATE_HOME")
    if folder is not None:
        file = folder / "chat_history"
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.touch(mode=0o600)
            file.chmod(0o600)
            if file.is_file() and os.access(file, os.R_OK | os.W_OK):
                return Lines(file)
    return InMemoryHistory()
