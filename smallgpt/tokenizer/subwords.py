"""Vocabularies of other programs: word pieces, or pieces of bytes, instead of characters.

They have our order of ids (0 `<unk>`, 1 `<sep>`, 2 `<pad>`), into which formats/huggingface.py
brings them, so that everything else need not know the difference. Text is cut by the `tokenizers`
library.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallgpt.tokenizer.characters import (
    EXTRACT,
    FIRST_CHARACTER,
    PAD,
    SEP,
    START,
    TOKENIZER_FILE,
    UNK,
    Tokenizer,
    added_token,
    is_text,
    write_files,
)
from smallgpt.utils.errors import UserError

CONTINUES = "##"
"""Before a piece that does not begin a word."""


class Pieces(Tokenizer):
    """A vocabulary of pieces of words or of bytes.

    Args:
        definition: a tokenizer.json whose first ids are ours, without `<start>` and `<extract>`.
        classifies: these two follow the other ids.

    Raises:
        ValueError: the definition is not one that `tokenizers` reads, or its ids are not ours.
    """

    def __init__(self, definition: dict[str, Any], classifies: bool = False) -> None:
        import tokenizers  # only here: models of characters need not wait for it

        self.definition = definition
        self.classifies = classifies
        try:
            self._backend = tokenizers.Tokenizer.from_str(json.dumps(definition))
        except Exception as error:  # the library raises no narrower type
            raise ValueError(str(error)) from None
        self._backend.encode_special_tokens = True  # a typed "[SEP]" is text, never control
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        by_id = sorted(vocabulary, key=vocabulary.__getitem__)
        if [vocabulary[token] for token in by_id] != list(range(len(by_id))):
            raise ValueError("ids have gaps or are given twice")
        if by_id[:FIRST_CHARACTER] != ["<unk>", "\n", "<pad>"]:
            raise ValueError("control tokens are not where ours are")
        self.characters = by_id[FIRST_CHARACTER:]
        self._special = {t["id"] for t in definition["added_tokens"] if t["special"]}
        self._bytes = isinstance(self._backend.decoder, tokenizers.decoders.ByteLevel)

    def encode(self, text: str) -> list[int]:
        """Text to ids; a newline is `<sep>`."""
        return [token for token, _ in self.spans(text)]

    def spans(self, text: str) -> list[tuple[int, str]]:
        """The ids of a text, each with its part of the text; the parts join to the text.

        What a piece leaves out, such as a space, belongs to the piece before it.
        """
        result: list[tuple[int, str]] = []
        for number, line in enumerate(text.split("\n")):
            if number:
                result.append((SEP, "\n"))
            encoding = self._backend.encode(line, add_special_tokens=False)
            begins = [begin for begin, _ in encoding.offsets]
            cuts = [0, *begins[1:], len(line)]
            parts = [line[begin:end] for begin, end in itertools.pairwise(cuts)]
            result += zip(encoding.ids, parts, strict=bool(begins))
        return result

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text: `<sep>` is a newline, `<pad>` nothing."""
        text, run = "", []
        for token in [*ids, SEP]:
            if token not in (SEP, PAD):
                run.append(token)
                continue
            text += self._run_to_text(run) + ("\n" if token == SEP else "")
            run = []
        return text[:-1]

    def _run_to_text(self, run: list[int]) -> str:
        if self._bytes:
            return self._backend.decode(run, skip_special_tokens=False)
        text = ""
        for token in run:
            piece = "\ufffd" if token == UNK else self._backend.id_to_token(token) or "\ufffd"
            continues = piece.startswith(CONTINUES) and len(piece) > len(CONTINUES)
            piece = piece.removeprefix(CONTINUES) if continues else piece
            if text and not continues and _is_alphabetic(text[-1]) and _is_alphabetic(piece[0]):
                text += " "
            text += piece
        return text

    def lookup_table(self) -> npt.NDArray[np.uint32]:
        """There is none: a piece is no character."""
        raise TypeError("pieces have no table of characters")

    def with_marks(self) -> Tokenizer:
        """The tokenizer of a classifier with the same pieces."""
        return Pieces(self.definition, classifies=True)

    def extended(self, other: Tokenizer) -> Tokenizer:
        """This vocabulary and, behind it, the characters of `other` that are `<unk>` in it."""
        new = [c for c in other.characters if c.strip() and UNK in self.encode(c)]
        if not new:
            return self
        definition = json.loads(json.dumps(self.definition))
        definition["model"]["vocab"] |= {c: len(self) + n for n, c in enumerate(new)}
        return Pieces(definition)

    def ids_from(self, other: Tokenizer) -> npt.NDArray[np.int64] | None:
        """There is no such table; see data.vocabulary."""
        raise TypeError("pieces have no table of characters")

    def unspeakable(self) -> list[int]:
        """Ids a reply must not contain: `<unk>`, the other program's control tokens, and pieces
        that are no text on a screen."""
        others = range(FIRST_CHARACTER, len(self))
        strange = [i for i in others if not all(map(is_text, self.decode([i])))]
        return sorted({UNK, *self._special, *strange} - {SEP, PAD})

    def save(self, directory: Path, **settings: Any) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which transformers reads as well."""
        definition = json.loads(json.dumps(self.definition))
        if self.classifies:
            for number, mark in enumerate((START, EXTRACT)):
                definition["added_tokens"].append(added_token(self.start + number, mark))
            definition["post_processor"] = self.around_each_text()
        write_files(directory, definition, self.classifies, settings)


def load(directory: Path) -> Tokenizer:
    """The tokenizer of a checkpoint directory, of characters or of pieces.

    Raises:
        UserError: it is missing, broken, or does not have our order of ids.
    """
    try:
        return Tokenizer.load(directory)
    except UserError as problem:
        path = directory / TOKENIZER_FILE
        try:
            definition = json.loads(path.read_text("utf-8"))
            added = definition["added_tokens"]
            classifies = [token["content"] for token in added[-2:]] == [START, EXTRACT]
            if classifies:
                definition |= {"added_tokens": added[:-2], "post_processor": None}
            return Pieces(definition, classifies)
        except (OSError, ValueError, KeyError, TypeError):
            raise problem from None


def _is_alphabetic(character: str) -> bool:
    """Whether words of such letters stand apart from each other."""
    category = unicodedata.category(character)
    return category in ("Lu", "Ll", "Lt", "Nd") and ord(character) < 0x2E80
