"""Our tokenizers as llama.cpp has them: the same ids for the same text.

    characters      its Unigram ("t5"), where each character is a token
    our subwords    its BPE without words ("gpt2", with the pre-tokenizer "sarvam-moe")
    GPT-2's bytes   its BPE of bytes ("gpt2", "gpt-2")

The newline is the only control token: llama.cpp looks for control tokens in what is typed, and
"<pad>" is text there. What ends a reply is said elsewhere in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from smallgpt.tokenizer.characters import FIRST_CHARACTER, UNK, Tokenizer
from smallgpt.tokenizer.subwords import SubwordTokenizer
from smallgpt.utils.errors import UserError

NORMAL, CONTROL, UNUSED, BYTE = 1, 3, 5, 6
"""Types of tokens; no text gives an unused one."""
_SPACE = "\u2581"
"""How llama.cpp writes a space in a token."""
_PRIVATE = range(0x100000, 0x10FFFE)
"""Code points without a meaning, for what must not be taken for a space or an unknown character."""
_BPE_OPTIONS = (  # of which llama.cpp knows nothing
    "byte_fallback",
    "continuing_subword_prefix",
    "dropout",
    "end_of_word_suffix",
    "ignore_merges",
)
_LEADS, _CONTINUING = range(0xC2, 0xF5), range(0x80, 0xC0)
"""The bytes of UTF-8 that begin a character of several, and those behind them."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says about a tokenizer.

    Args:
        model: llama.cpp's kind of it.
        tokens, types: by id. The last `aliases` are further ids of `<unk>`.
        pre: how BPE divides text beforehand.
        charsmap: how Unigram replaces characters beforehand.
    """

    model: str
    tokens: list[str]
    types: list[int]
    pre: str = ""
    merges: list[str] = field(default_factory=list)
    charsmap: bytes = b""
    aliases: int = 0


def for_llama_cpp(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    """The same tokenizer for llama.cpp; ids without a token follow, up to `rows` of the embedding.

    Raises:
        UserError: llama.cpp would cut text in another way.
    """
    tokens = [*tokenizer.tokens(), *map(_unused, range(len(tokenizer), rows))]
    types = [NORMAL] * len(tokenizer) + [UNUSED] * (rows - len(tokenizer))
    types[:FIRST_CHARACTER] = UNUSED, CONTROL, UNUSED
    if not isinstance(tokenizer, SubwordTokenizer):
        return _characters(tokens, types)
    definition = tokenizer.definition
    model, before = definition["model"], definition.get("pre_tokenizer")
    added = [token for token in definition["added_tokens"] if token["id"] >= FIRST_CHARACTER]
    for token in added:  # by their names, llama.cpp would find them in text
        tokens[token["id"]], types[token["id"]] = _unused(token["id"]), UNUSED
    changes = definition.get("normalizer") or any(model.get(option) for option in _BPE_OPTIONS)
    if changes or not all(token["special"] for token in added):
        pass  # text is not only cut, or not by the model alone
    elif model.get("type") == "BPE":
        merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
        if tokenizer.of_pieces and not before:
            return _pieces(tokens, types, merges)
        if _is_gpt2s(before):
            return Vocabulary("gpt2", tokens, types, "gpt-2", [" ".join(pair) for pair in merges])
    elif _cuts_characters(tokenizer):
        return _characters(tokens, types)
    raise UserError(
        f"llama.cpp cannot cut text as the model's tokenizer does ({model.get('type')})",
        "it can do so with single characters, with our subwords and with GPT-2's bytes",
    )


def _unused(number: int) -> str:
    return f"<unused {number}>"


def _is_gpt2s(pre_tokenizer: Any) -> bool:
    values = pre_tokenizer or {}
    words = values.get("use_regex", True) and not values.get("add_prefix_space", True)
    return values.get("type") == "ByteLevel" and words


def _cuts_characters(tokenizer: SubwordTokenizer) -> bool:
    """Whether each character is by itself, and none is changed, in another program's tokenizer."""
    ids = {c: i for i, c in enumerate(tokenizer.characters, FIRST_CHARACTER) if len(c) == 1}
    text = "".join([*ids, " Aa\u00c9  \u3000\u9f98\u9f98", *reversed(ids)])
    return tokenizer.encode(text) == [ids.get(c, UNK) for c in text]


def _free_characters(tokens: Iterable[str]) -> Iterator[str]:
    """Private code points that are in none of the tokens."""
    taken = frozenset("".join(tokens))
    return (character for character in map(chr, _PRIVATE) if character not in taken)


# Characters.


def _characters(tokens: list[str], types: list[int]) -> Vocabulary:
    """Of Unigram all tokens are characters, so that a text can be cut in one way only.

    llama.cpp would make one token of several unknown characters in a row, and a space of U+2581;
    so both become other characters before: U+FFFD, the text of `<unk>`, and a private one.
    """
    known = [token for token in tokens[FIRST_CHARACTER:] if len(token) == 1]
    private = _free_characters(known)
    unknown, bar = next(private) if "\ufffd" in known else "\ufffd", next(private)
    written = {" ": _SPACE, _SPACE: bar}
    types = [t if len(c) == 1 else UNUSED for t, c in zip(types, tokens, strict=True)]
    tokens = [written.get(token, token) for token in tokens]
    tokens[UNK], types[UNK] = unknown, NORMAL
    replaced = {_SPACE: bar} if _SPACE in known else {}
    return Vocabulary("t5", tokens, types, charsmap=_charsmap(known, replaced, unknown))


_Node: TypeAlias = "dict[int, _Node | int]"
"""By byte what follows it: further bytes, or where the text is that replaces the character."""


def _charsmap(known: Sequence[str], replaced: Mapping[str, str], unknown: str) -> bytes:
    """SentencePiece's precompiled_charsmap, which says what replaces characters before text is cut:
    those in `replaced`, and by `unknown` all that are not known."""
    texts = [unknown, *replaced.values()]
    starts = np.cumsum([0, *(len(text.encode()) + 1 for text in texts)]).tolist()
    values = {c.encode(): start for c, start in zip(replaced, starts[1:], strict=False)}
    kept = {c.encode() for c in known if c not in replaced}
    begun = {encoded[:length] for encoded in {*values, *kept} for length in (1, 2, 3)}
    # Where nothing is known, all bytes that may follow have the same below them: by their number.
    below: list[_Node | int] = [starts[0]]
    for _ in range(3):
        below.append(dict.fromkeys(_CONTINUING, below[-1]))

    def after(path: bytes, missing: int) -> _Node | int:
        if not missing or path not in begun:
            return values.get(path, below[missing])
        paths = {byte: path + bytes([byte]) for byte in _CONTINUING}
        return {byte: after(p, missing - 1) for byte, p in paths.items() if p not in kept}

    ascii_bytes = (byte for byte in range(1, 0x80) if bytes([byte]) not in kept)
    root: _Node = {byte: after(bytes([byte]), 0) for byte in ascii_bytes}
    root |= {b: after(bytes([b]), 1 + (b >= 0xE0) + (b >= 0xF0)) for b in _LEADS}
    units = _double_array(root)
    return units.nbytes.to_bytes(4, "little") + units.tobytes() + "\0".join([*texts, ""]).encode()


def _double_array(root: _Node) -> npt.NDArray[np.uint32]:
    """A trie of bytes as llama.cpp reads it (a double array with XOR; Kanda et al., 2018).

    A unit's bits 0-7 are its byte, bit 8 says that a value follows, bits 10-30 XOR the unit's index
    are the base of what follows, and that XOR a byte is the index of the next unit. Bit 31 marks a
    value, which stands at the base itself.
    """
    units, bases = [0], dict[int, int]()

    def place(node: _Node | int) -> int:
        key = node if isinstance(node, int) else -id(node)
        if key not in bases:
            # A value is alone among the 256 units that a byte can lead to.
            size = 64 if key < 0 and node is not root else 256
            begin = -len(units) % size + len(units)
            units.extend([0] * (begin + size - len(units)))
            bases[key] = base = begin if size == 256 else begin ^ _CONTINUING.start
            if isinstance(node, int):
                units[base] = 1 << 31 | node
            else:
                for byte, child in node.items():
                    unit = base ^ byte
                    units[unit] = (place(child) ^ unit) << 10 | isinstance(child, int) << 8 | byte
        return bases[key]

    units[0] = place(root) << 10
    return np.array(units, "<u4")


# Subwords.


def _pieces(tokens: list[str], types: list[int], merges: Sequence[tuple[str, ...]]) -> Vocabulary:
    """BPE whose merges are ours. Of an unknown character llama.cpp looks up the bytes, and leaves
    out those that are no token: the first byte stands for it, as a further id of `<unk>`.

    A typed U+2581 is a space there.
    """
    first = (b for b in range(0x80) if chr(b) not in tokens)
    aliases = [f"<0x{byte:02X}>" for byte in (*first, *_LEADS)]
    bar = next(_free_characters(tokens))
    written = str.maketrans({" ": _SPACE, _SPACE: bar})
    return Vocabulary(
        "gpt2",
        [*(token.translate(written) for token in tokens), *aliases],
        types + [BYTE] * len(aliases),
        "sarvam-moe",
        [" ".join(part.translate(written) for part in pair) for pair in merges],
        aliases=len(aliases),
    )
