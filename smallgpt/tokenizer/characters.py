"""Characters <-> ids. One character is one token; three ids are control tokens.

    0 <unk>   a character the training text does not have
    1 <sep>   the end of an utterance: in text, the newline character itself
    2 <pad>   the end of a dialogue, and the filler behind it
    3 …       the characters, most frequent first

`<unk>` and `<pad>` cannot be written in text: typed, they are five characters each. A classifier
has two more control tokens behind the characters, `<start>` and `<extract>`, which its tokenizer
puts around each text. On disk this is a Hugging Face `tokenizer.json` that gives the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

UNK, SEP, PAD = 0, 1, 2
FIRST_CHARACTER = 3
START, EXTRACT = "<start>", "<extract>"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"

# Every message is one utterance, whoever speaks; see `as_utterance` for the same rule.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['content'] | replace('\\r\\n', ' ') | replace('\\n', ' ') | replace('\\r', ' ')"
    " | trim }}{{ '\\n' }}"
    "{% endfor %}"
)


def as_utterance(text: str) -> str:
    """One line: newlines become spaces, white space around is dropped (as in the chat template)."""
    return text.replace("\r\n", "\n").replace("\n", " ").replace("\r", " ").strip()


class Tokenizer:
    """A character vocabulary; those of subwords are derived from it.

    Args:
        characters: the characters in id order, starting at id 3; single and distinct.
        classifies: `<start>` and `<extract>` follow the characters.
    """

    def __init__(self, characters: Sequence[str], classifies: bool = False) -> None:
        self.characters = list(characters)
        self.classifies = classifies
        self._texts = ["\ufffd", "\n", "", *self.characters]  # by id
        self._id_of = {c: i for i, c in enumerate(self.characters, FIRST_CHARACTER)}
        self._id_of["\n"] = SEP
        distinct = len(self._id_of) == len(self.characters) + 1
        if not distinct or any(len(c) != 1 for c in self.characters):
            raise ValueError("a vocabulary needs distinct single characters other than the newline")

    def __len__(self) -> int:
        """Number of ids, the control tokens included."""
        return FIRST_CHARACTER + len(self.characters) + (2 if self.classifies else 0)

    @property
    def start(self) -> int:
        """The id of `<start>`; that of `<extract>` is the next one."""
        return FIRST_CHARACTER + len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Text to ids, one a character; a newline is `<sep>`, an unknown character `<unk>`."""
        return [self._id_of.get(character, UNK) for character in text]

    def spans(self, text: str) -> list[tuple[int, str]]:
        """The ids of a text, each with its part of the text; the parts join to the text."""
        return list(zip(self.encode(text), text, strict=True))

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text: `<sep>` is a newline, `<pad>` nothing, `<unk>` and unused ids U+FFFD."""
        return "".join(self._texts[i] if i < len(self._texts) else "\ufffd" for i in ids)

    def lengths(self) -> npt.NDArray[np.int64]:
        """How many characters each id stands for, (V,); a control token is one."""
        return np.ones(len(self), np.int64)

    def first_nats(self) -> npt.NDArray[np.float64] | None:
        """−log p(token | its first character), (V,), in any text: see training/validation.py. None
        where it is nothing, or not known."""
        return None

    def with_marks(self) -> Tokenizer:
        """The tokenizer of a classifier with the same characters."""
        return Tokenizer(self.characters, classifies=True)

    def extended(self, other: Tokenizer) -> Tokenizer:
        """This vocabulary and, behind it, the characters that only `other` has."""
        new = [c for c in other.characters if c not in self._id_of]
        return Tokenizer([*self.characters, *new]) if new else self

    def suppressed_ids(self) -> list[int]:
        """Ids a reply must not contain: `<unk>` and what no screen shows as text."""
        strange = [not all(map(is_text, text)) for text in self.characters]
        return [UNK, *(FIRST_CHARACTER + np.flatnonzero(strange)).tolist()]

    def save(self, directory: Path, **settings: Any) -> None:
        """Write `tokenizer.json`, and `tokenizer_config.json` with `settings`, for transformers."""
        backend = self.backend()
        if self.classifies:
            marks = [START, EXTRACT]
            backend.add_special_tokens(marks)
            backend.post_processor = TemplateProcessing(
                single=f"{START} $A {EXTRACT}",
                pair=f"{START} $A $B {EXTRACT}",
                special_tokens=[(mark, self.start + n) for n, mark in enumerate(marks)],
            )
        tokenizer_config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            # A typed "<pad>" is five characters, never the control token.
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
            **settings,
            **({} if self.classifies else {"chat_template": CHAT_TEMPLATE}),
        }
        (directory / TOKENIZER_FILE).write_text(backend.to_str(pretty=True) + "\n", "utf-8")
        text = json.dumps(tokenizer_config, ensure_ascii=False, indent=1)
        (directory / TOKENIZER_CONFIG_FILE).write_text(text + "\n", "utf-8")

    def tokens(self) -> list[str]:
        """By id, as `tokenizer.json` has them."""
        marks = [START, EXTRACT] if self.classifies else []
        return ["<unk>", "\n", "<pad>", *self.characters, *marks]

    def backend(self) -> tokenizers.Tokenizer:
        """The vocabulary as one of the `tokenizers` library, new at each call."""
        vocabulary = {token: i for i, token in enumerate(self.tokens())}
        backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, "<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens(["<unk>", "<pad>"])
        return backend


def added_token(number: int, content: str, special: bool = True) -> dict[str, Any]:
    """An entry of tokenizer.json: a token that is looked for before the text is cut."""
    return {
        "id": number,
        "content": content,
        **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        "special": special,
    }


def is_text(character: str) -> bool:
    """Whether a screen shows it as text, so that a reply may contain it."""
    return character.isprintable() or character in " \u3000"
