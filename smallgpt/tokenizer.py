"""Characters <-> ids. One character is one token; three ids are control tokens.

    0 <unk>   a character the training text does not have
    1 <sep>   the end of an utterance: in text, the newline character itself
    2 <pad>   the end of a dialogue, and the filler behind it
    3 …       the characters, most frequent first

`<unk>` and `<pad>` cannot be written in text: typed, they are five characters each. On disk this
is a Hugging Face `tokenizer.json` that gives the same ids (see `save`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallgpt.errors import UserError

UNK, SEP, PAD = 0, 1, 2
FIRST_CHARACTER = 3
UNICODE_SIZE = 0x110000
"""Number of Unicode code points."""
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"

# Every message is one utterance, whoever speaks; see conversation.as_utterance for the same rule.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['content'] | replace('\\r\\n', ' ') | replace('\\n', ' ') | replace('\\r', ' ')"
    " | trim }}{{ '\\n' }}"
    "{% endfor %}"
)


class Tokenizer:
    """A character vocabulary.

    Args:
        characters: the characters in id order, starting at id 3; single and distinct.
    """

    def __init__(self, characters: Sequence[str]) -> None:
        self.characters = list(characters)
        self._id_of = {c: i for i, c in enumerate(self.characters, FIRST_CHARACTER)}
        self._id_of["\n"] = SEP
        distinct = len(self._id_of) == len(self.characters) + 1
        if not distinct or any(len(c) != 1 for c in self.characters):
            raise ValueError("a vocabulary needs distinct single characters other than the newline")

    def __len__(self) -> int:
        """Number of ids, the control tokens included."""
        return FIRST_CHARACTER + len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Text to ids, one a character; a newline is `<sep>`, an unknown character `<unk>`."""
        return [self._id_of.get(character, UNK) for character in text]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text: `<sep>` is a newline, `<pad>` nothing, `<unk>` and unused ids U+FFFD."""
        return "".join(map(self._text_of, ids))

    def _text_of(self, token: int) -> str:
        if token == SEP:
            return "\n"
        if token == PAD:
            return ""
        index = token - FIRST_CHARACTER
        return self.characters[index] if 0 <= index < len(self.characters) else "\ufffd"

    def lookup_table(self) -> npt.NDArray[np.uint32]:
        """Ids by Unicode code point, shape (0x110000,), for encoding whole files at once."""
        table = np.full(UNICODE_SIZE, UNK, dtype=np.uint32)
        table[[ord(c) for c in self.characters]] = np.arange(FIRST_CHARACTER, len(self))
        table[ord("\n")] = SEP
        return table

    def ids_from(self, other: Tokenizer) -> npt.NDArray[np.int64] | None:
        """For each id of `other` our id of the same character; None where all agree."""
        if other.characters == self.characters:
            return None
        return np.array([UNK, SEP, PAD, *self.encode("".join(other.characters))])

    def unspeakable(self) -> list[int]:
        """Ids a reply must not contain: `<unk>` and characters that are no text on a screen."""
        return [UNK] + [
            i for i, c in enumerate(self.characters, FIRST_CHARACTER) if not _is_text(c)
        ]

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which transformers reads as well."""
        vocabulary = {"<unk>": UNK, "\n": SEP, "<pad>": PAD}
        vocabulary |= {c: i for i, c in enumerate(self.characters, FIRST_CHARACTER)}
        special = {
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        tokenizer = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": UNK, "content": "<unk>"} | special,
                {"id": PAD, "content": "<pad>"} | special,
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "[\\s\\S]"},
                "behavior": "Isolated",
                "invert": False,
            },
            "post_processor": None,
            "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
        }
        _write_json(directory / TOKENIZER_FILE, tokenizer)
        tokenizer_config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            # A typed "<pad>" is five characters, never the control token.
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }
        _write_json(directory / TOKENIZER_CONFIG_FILE, tokenizer_config)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing, broken, or not a character vocabulary of ours.
        """
        path = directory / TOKENIZER_FILE
        try:
            vocabulary: dict[str, int] = json.loads(path.read_text("utf-8"))["model"]["vocab"]
            tokens = sorted(vocabulary, key=vocabulary.__getitem__)
            if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
                raise ValueError("ids have gaps")
            if tokens[:FIRST_CHARACTER] != ["<unk>", "\n", "<pad>"]:
                raise ValueError("control tokens are not where ours are")
            return cls(tokens[FIRST_CHARACTER:])
        except FileNotFoundError:
            raise UserError(f"{path} is missing", "is this a Small GPT checkpoint?") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a character vocabulary: {error}") from None


def _is_text(character: str) -> bool:
    return character.isprintable() or character in " \u3000"


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
