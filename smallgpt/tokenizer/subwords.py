"""Subword vocabularies: our own (see tokenizer/bpe.py), and those of other programs, of parts of
words or of bytes (WordPiece, BPE).

All have our order of ids (0 `<unk>`, 1 `<sep>`, 2 `<pad>`), into which checkpoints/foreign.py
brings those of others, so that everything else need not know the difference. The `tokenizers`
library splits the text.
"""

import itertools
import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from smallgpt.tokenizer.characters import (
    EXTRACT,
    FIRST_CHARACTER,
    PAD,
    SEP,
    START,
    TOKENIZER_FILE,
    UNK,
    Tokenizer,
    is_text,
)
from smallgpt.utils.errors import UserError

_SURROGATE = re.compile("[\ud800-\udfff]")  # half a pair is no character to the backend
_CONTINUES = "##"  # before a subword that does not begin a word
_INNER_BYTES = frozenset(map(chr, [*range(0xA1, 0xAD), *range(0xAE, 0xC0), *range(290, 324)]))
"""How GPT-2 writes the bytes of UTF-8 that do not begin a character, 0x80 to 0xBF."""


class SubwordTokenizer(Tokenizer):
    """A vocabulary of subwords.

    Args:
        definition: a tokenizer.json whose first ids are ours, without `<start>` and `<extract>`.
        classifies: these two follow the other ids.

    Raises:
        ValueError: the definition is not one that `tokenizers` reads, or its ids are not ours.
    """

    def __init__(self, definition: dict[str, Any], classifies: bool = False) -> None:
        self.definition = definition
        self.classifies = classifies
        try:
            self._backend = self.backend()
        except Exception as error:  # the library raises no narrower type
            raise ValueError(str(error)) from None
        self._backend.encode_special_tokens = True  # a typed "[SEP]" is text, never control
        tokens = _tokens_by_id(self._backend.get_vocab(with_added_tokens=True))
        self.characters = tokens[FIRST_CHARACTER:]
        self._special = {t["id"] for t in definition["added_tokens"] if t["special"]}
        decoder = (definition.get("decoder") or {}).get("type")
        self._bytes = decoder == "ByteLevel"
        self.of_pieces = decoder == "Fuse" and definition["model"].get("type") == "BPE"
        """Whether ids stand for parts of the text that join to it, by falling frequency."""
        self._texts = ["\ufffd", "\n", "", *self.characters]  # by id, where ids are pieces

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any], bool]]:
        # The library's own pickle forgets `encode_special_tokens`.
        return type(self), (self.definition, self.classifies)

    def encode(self, text: str) -> list[int]:
        """Text to ids; a newline is `<sep>`."""
        return [token for token, _ in self.spans(text)]

    def encode_all(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each of many texts, as from `encode`, in less time."""
        lines = [_SURROGATE.sub("\ufffd", text).split("\n") for text in texts]
        flat = list(itertools.chain.from_iterable(lines))
        encoded = iter(self._backend.encode_batch_fast(flat, add_special_tokens=False))
        result = []
        for group in lines:
            ids: list[int] = []
            for encoding in itertools.islice(encoded, len(group)):
                ids += [*encoding.ids, SEP]
            result.append(ids[:-1])
        return result

    def spans(self, text: str) -> list[tuple[int, str]]:
        """The ids of a text, each with its part of the text; the parts join to the text.

        What a subword leaves out, such as a space, belongs to the subword before it.
        """
        result: list[tuple[int, str]] = []
        for number, line in enumerate(text.split("\n")):
            if number:
                result.append((SEP, "\n"))
            encoding = self._backend.encode(
                _SURROGATE.sub("\ufffd", line), add_special_tokens=False
            )
            begins = [begin for begin, _ in encoding.offsets]
            cuts = [0, *begins[1:], len(line)]
            parts = [line[begin:end] for begin, end in itertools.pairwise(cuts)]
            result += zip(encoding.ids, parts, strict=bool(begins))
        return result

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text: `<sep>` is a newline, `<pad>` nothing."""
        if self.of_pieces:
            return super().decode(ids)
        text = ""
        for control, group in itertools.groupby(ids, lambda token: token in (SEP, PAD)):
            run = list(group)
            text += "\n" * run.count(SEP) if control else self._run_to_text(run)
        return text

    def _run_to_text(self, run: list[int]) -> str:
        if self._bytes:
            return self._backend.decode(run, skip_special_tokens=False)
        text = ""
        for token in run:
            subword = "\ufffd" if token == UNK else self._backend.id_to_token(token) or "\ufffd"
            continues = subword.startswith(_CONTINUES) and len(subword) > len(_CONTINUES)
            if continues:
                subword = subword.removeprefix(_CONTINUES)
            elif text and _is_alphabetic(text[-1]) and _is_alphabetic(subword[0]):
                text += " "
            text += subword
        return text

    def lengths(self) -> npt.NDArray[np.int64]:
        """How many characters each id stands for, (V,); of bytes, how many begin in it."""
        within = [
            sum(c not in _INNER_BYTES for c in token)
            if self._bytes and number not in self._special
            else len(token.removeprefix(_CONTINUES))
            for number, token in enumerate(self.characters, FIRST_CHARACTER)
        ]
        return np.array([1, 1, 1, *within, *[1, 1] * self.classifies])

    def first_nats(self) -> npt.NDArray[np.float64] | None:
        """−log p(piece | its first character), (V,), where p of an id falls as 1 / id (Zipf's law);
        None where ids are not pieces by falling frequency. It is 0 for control tokens."""
        if not self.of_pieces:
            return None
        share = 1 / np.arange(FIRST_CHARACTER, FIRST_CHARACTER + len(self.characters))
        firsts = np.array([ord(piece[0]) for piece in self.characters])
        alike = np.bincount(firsts, share)[firsts]
        return np.pad(np.log(alike / share), (FIRST_CHARACTER, 2 * self.classifies))

    def with_marks(self) -> Tokenizer:
        """The tokenizer of a classifier with the same subwords."""
        return SubwordTokenizer(self.definition, classifies=True)

    def extended(self, other: Tokenizer) -> Tokenizer:
        """This vocabulary and, behind it, the characters of `other` that are `<unk>` in it."""
        # Other programs leave out white space.
        wanted = (c for c in other.characters if self.of_pieces or c.strip())
        new = [c for c in wanted if UNK in self.encode(c)]
        if not new:
            return self
        definition = json.loads(json.dumps(self.definition))
        definition["model"]["vocab"] |= {c: len(self) + n for n, c in enumerate(new)}
        return SubwordTokenizer(definition)

    def suppressed_ids(self) -> list[int]:
        """Ids a reply must not contain: `<unk>`, the other program's control tokens, and subwords
        that no screen shows as text."""
        others = range(FIRST_CHARACTER, len(self))
        strange = [i for i in others if not all(map(is_text, self.decode([i])))]
        return sorted({UNK, *self._special, *strange} - {SEP, PAD})

    def backend(self) -> tokenizers.Tokenizer:
        """The vocabulary as one of the `tokenizers` library, new at each call."""
        return tokenizers.Tokenizer.from_str(json.dumps(self.definition))


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    """The pieces of a vocabulary of ours in id order, starting at id 3; none where it is another
    one, or all are single characters."""
    own = isinstance(tokenizer, SubwordTokenizer) and tokenizer.of_pieces
    return tokenizer.characters if own and max(map(len, tokenizer.characters)) > 1 else []


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a checkpoint directory, of characters or of subwords.

    Raises:
        UserError: it is missing, broken, or does not have our order of ids.
    """
    path = directory / TOKENIZER_FILE
    try:
        definition = json.loads(path.read_text("utf-8"))
        kind, vocabulary = definition["model"].get("type"), definition["model"]["vocab"]
        tokens = set(vocabulary) - {"<unk>", "<pad>", START, EXTRACT}
        if kind not in (None, "WordLevel") or any(len(token) > 1 for token in tokens):
            added = definition["added_tokens"]
            classifies = [token["content"] for token in added[-2:]] == [START, EXTRACT]
            if classifies:
                definition |= {"added_tokens": added[:-2], "post_processor": None}
            return SubwordTokenizer(definition, classifies)
        characters = _tokens_by_id(vocabulary)[FIRST_CHARACTER:]
        classifies = characters[-2:] == [START, EXTRACT]
        return Tokenizer(characters[:-2] if classifies else characters, classifies)
    except FileNotFoundError:
        raise UserError(f"{path} is missing", "is this a Small GPT checkpoint?") from None
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a vocabulary of Small GPT: {error}") from None


def _tokens_by_id(vocabulary: dict[str, int]) -> list[str]:
    """The tokens in the order of their ids.

    Raises:
        ValueError: the ids have gaps, or the first three are not ours.
    """
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError("ids have gaps or are given twice")
    if tokens[:FIRST_CHARACTER] != ["<unk>", "\n", "<pad>"]:
        raise ValueError("control tokens are not where ours are")
    return tokens


def _is_alphabetic(character: str) -> bool:
    """Whether words of such letters stand apart from each other."""
    category = unicodedata.category(character)
    return category in ("Lu", "Ll", "Lt", "Nd") and ord(character) < 0x2E80
