"""Text -> dialogues -> token ids, once; afterwards from a cache beside the data.

The cache is a folder of plain arrays, memory-mapped, so a text may be larger than memory:

    ids.npy           every dialogue's ids in a row: utterance <sep> utterance … <pad>
    ends.npy          where each dialogue ends in ids.npy (exclusive), int64
    vocabulary.json   the characters in id order, and counts
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallgpt.data.dialogue_formats import text_pieces
from smallgpt.data.text import check_files, fingerprint
from smallgpt.tokenizer.characters import FIRST_CHARACTER, PAD, SEP, UNICODE_SIZE, Tokenizer
from smallgpt.tokenizer.subwords import Pieces
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note

CACHE_FOLDER = ".smallgpt_cache"
CACHE_VERSION = 1
RARE_SHARE = 0.01
"""The rarest characters that together make up this share of the text stand in for unknown ones."""
_END_OF_DIALOGUE = UNICODE_SIZE  # a code point of our own in the spooled text
_CHUNK = 1 << 20  # code points; small enough that the processor's cache holds much of the work


@dataclass(frozen=True)
class Corpus:
    """The dialogues of the text, as ids in the vocabulary of that text.

    ids: all dialogues in a row, each closed by one `<pad>`; uint16 or uint32, memory-mapped.
    ends: end of each dialogue in `ids`, exclusive; int64.
    tokenizer: the text's own vocabulary.
    rare_from: ids from here on are the rarest characters (`RARE_SHARE` of the text).
    characters: characters of utterances; separators do not count.
    conversations: dialogues of two or more utterances.
    fingerprint: hash of the files.
    """

    ids: npt.NDArray[Any]
    ends: npt.NDArray[np.int64]
    tokenizer: Tokenizer
    rare_from: int
    characters: int
    conversations: int
    fingerprint: str

    def __len__(self) -> int:
        """Number of dialogues."""
        return len(self.ends)

    def dialogue(self, index: int) -> list[int]:
        """The ids of one dialogue, its closing `<pad>` included."""
        start = int(self.ends[index - 1]) if index else 0
        return [int(i) for i in self.ids[start : self.ends[index]]]


def open_corpus(paths: list[Path]) -> Corpus:
    """Encode the files, or open the cache of an earlier time. The key is their content.

    Raises:
        UserError: a file is missing, empty, undecodable, or there is no dialogue of two utterances.
    """
    check_files(paths)
    key = fingerprint(paths)
    cache = _cache_folder(paths[0]) / f"{key}-v{CACHE_VERSION}"
    if not _is_complete(cache):
        _build(cache, paths)
    return _open(cache, key)


def split(dialogues: int, train_percent: float, seed: int) -> tuple[Any, Any]:
    """Choose dialogues for training and validation: two sorted index arrays, disjoint, complete.

    Raises:
        UserError: fewer than two dialogues; each part needs at least one.
    """
    if dialogues < 2:
        raise UserError(
            "the text has only one dialogue",
            "add more, with a blank line between them: one part is kept for validation",
        )
    order = np.random.default_rng((seed, 0)).permutation(dialogues)
    train = min(max(1, round(dialogues * train_percent)), dialogues - 1)
    return np.sort(order[:train]), np.sort(order[train:])


def _cache_folder(data: Path) -> Path:
    """Beside the data; in the user's cache folder where that place is read-only."""
    beside = data.resolve().parent / CACHE_FOLDER
    place = beside if beside.is_dir() else beside.parent
    # The mode is looked at too, because to root every folder seems writable.
    if os.access(place, os.W_OK) and place.stat().st_mode & 0o222:
        return beside
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "smallgpt"


def _is_complete(cache: Path) -> bool:
    return (cache / "vocabulary.json").is_file()


def _open(cache: Path, key: str) -> Corpus:
    try:
        meta = json.loads((cache / "vocabulary.json").read_text("utf-8"))
        return Corpus(
            ids=np.load(cache / "ids.npy", mmap_mode="r"),
            ends=np.load(cache / "ends.npy"),
            tokenizer=Tokenizer(meta["characters_in_id_order"]),
            rare_from=meta["rare_from"],
            characters=meta["characters"],
            conversations=meta["conversations"],
            fingerprint=key,
        )
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        raise UserError(
            f"the cache {cache} is damaged: {error}", "delete that folder; it is made anew"
        ) from None


def _build(cache: Path, paths: list[Path]) -> None:
    """Encode into a folder that is complete or not there at all, whoever else does the same."""
    try:
        with atomic.directory(cache) as work:
            _encode(paths, work)
    except OSError as error:
        if _is_complete(cache):
            return  # another process was faster: its cache is as good
        raise UserError(
            f"cannot write the cache {cache}: {error.strerror or error}",
            "while it is made it needs six bytes a character on disk",
        ) from None


def _encode(paths: list[Path], work: Path) -> None:
    """Two passes: the text goes to disk as code points and is counted, then becomes ids."""
    spool = work / "code_points.bin"
    counts, first_seen, ends = _spool(paths, spool)
    if not len(ends):
        raise UserError(f"{_names(paths)}: no text in it", "put dialogues in it, see README.md")
    used = np.flatnonzero(counts)
    # Falling frequency, ties by first appearance.
    order = used[np.lexsort((first_seen[used], -counts[used]))]
    tokenizer = Tokenizer([chr(code) for code in order])
    conversations, separators = _write_ids(spool, work / "ids.npy", tokenizer, ends)
    spool.unlink()
    if not conversations:
        raise UserError(
            f"{_names(paths)}: {len(ends):,} dialogues, but none of two utterances",
            "write one utterance a line and leave a blank line between dialogues only",
        )
    np.save(work / "ends.npy", ends)
    share = np.cumsum(counts[order]) / counts.sum()
    meta = {
        "files": [str(path) for path in paths],
        "dialogues": len(ends),
        "conversations": conversations,
        "characters": int(ends[-1]) - len(ends) - separators,
        "rare_from": FIRST_CHARACTER + int(np.searchsorted(share, 1 - RARE_SHARE)) + 1,
        "characters_in_id_order": tokenizer.characters,
    }
    (work / "vocabulary.json").write_text(json.dumps(meta, ensure_ascii=False), "utf-8")


def _spool(
    paths: list[Path], spool: Path
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Write the clean text as uint32 code points.

    Returns:
        counts and position of the first appearance by code point, (0x110000,) each, of the whole
        raw text without newlines (the rule of the published vocabulary), and the dialogues' ends.
    """
    counts = np.zeros(UNICODE_SIZE, np.int64)
    first_seen = np.full(UNICODE_SIZE, np.iinfo(np.int64).max)
    ends: list[npt.NDArray[np.int64]] = []
    seen = written = 0
    with spool.open("wb") as out:
        for path in paths:
            at_start = written
            for raw, clean in text_pieces(path):
                raw_codes = _code_points(raw)
                _count(raw_codes, counts, first_seen, seen)
                seen += len(raw_codes)
                codes = raw_codes if clean == raw else _code_points(clean)
                codes = _mark_ends(codes)
                ends.append(np.flatnonzero(codes == _END_OF_DIALOGUE) + written + 1)
                codes.tofile(out)
                written += len(codes)
            if written > at_start:  # the end of a file ends its last dialogue
                np.array([_END_OF_DIALOGUE], np.uint32).tofile(out)
                written += 1
                ends.append(np.array([written]))
    counts[ord("\n")] = 0
    return counts, first_seen, np.concatenate(ends) if ends else np.empty(0, np.int64)


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _count(
    codes: npt.NDArray[np.uint32],
    counts: npt.NDArray[np.int64],
    first_seen: npt.NDArray[np.int64],
    seen: int,
) -> None:
    here = np.bincount(codes)
    counts = counts[: len(here)]  # up to the highest code point in use, far from all
    new = (here > 0) & (counts == 0)
    if new.any():
        where = np.flatnonzero(new[codes])[::-1]  # backwards: the first appearance is set last
        first_seen[codes[where]] = where + seen
    counts += here


def _mark_ends(codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Two newlines in a row become one end-of-dialogue mark."""
    newline = codes == ord("\n")
    first_of_two = np.flatnonzero(newline[:-1] & newline[1:])
    marked = codes.copy()
    marked[first_of_two] = _END_OF_DIALOGUE
    return np.delete(marked, first_of_two + 1)


def _write_ids(
    spool: Path, path: Path, tokenizer: Tokenizer, ends: npt.NDArray[np.int64]
) -> tuple[int, int]:
    """Turn code points into ids.

    Returns:
        how many dialogues have two utterances or more, and the number of `<sep>`.
    """
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    table = np.append(tokenizer.lookup_table(), PAD).astype(dtype)
    header = {"descr": table.dtype.str, "fortran_order": False, "shape": (int(ends[-1]),)}
    conversation = np.zeros(len(ends), bool)
    total = start = 0
    # Read and written, not mapped: mapped files would count as memory of the process.
    with spool.open("rb") as codes, path.open("wb") as ids:
        np.lib.format.write_array_header_1_0(ids, header)
        while len(part := table[np.fromfile(codes, np.uint32, _CHUNK)]):
            part.tofile(ids)
            separators = np.flatnonzero(part == SEP) + start
            conversation[np.searchsorted(ends, separators, side="right")] = True
            total += len(separators)
            start += len(part)
    return int(conversation.sum()), total


def _names(paths: list[Path]) -> str:
    return ", ".join(map(str, paths))


def describe(corpus: Corpus) -> None:
    """Print what the text holds."""
    note(
        f"text: {len(corpus):,} dialogues ({corpus.conversations:,} of two or more utterances), "
        f"{corpus.characters:,} characters, vocabulary {len(corpus.tokenizer):,}"
    )


def in_ids_of(corpus: Corpus, tokenizer: Tokenizer) -> tuple[Corpus, npt.NDArray[Any] | None]:
    """The corpus, and for each of its ids that of `tokenizer` (None where all agree).

    Where the model reads pieces of words, the corpus is encoded anew, in memory: such models are
    fine-tuned on texts that fit there.
    """
    if isinstance(tokenizer, Pieces):
        return _encoded(corpus, tokenizer), None
    return corpus, tokenizer.ids_from(corpus.tokenizer)


def _encoded(corpus: Corpus, tokenizer: Pieces) -> Corpus:
    ids, ends, end = [], [], 0
    for number in range(len(corpus)):
        text = corpus.tokenizer.decode(corpus.dialogue(number))
        of_dialogue = np.array([*tokenizer.encode(text), PAD], np.uint32)
        end += len(of_dialogue)
        ids.append(of_dialogue)
        ends.append(end)
    return dataclasses.replace(
        corpus,
        ids=np.concatenate(ids),
        ends=np.array(ends, np.int64),
        tokenizer=tokenizer,
        rare_from=len(tokenizer),  # nothing is shown as <unk>: pieces stand for what is rare
    )
