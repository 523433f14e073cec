"""Text -> dialogues -> token ids, once; afterwards from a cache beside the data.

The cache is a folder of plain arrays, memory-mapped, so a text may be larger than memory:

    ids.npy           every dialogue's ids in a row: utterance <sep> utterance … <pad>
    ends.npy          where each dialogue ends in ids.npy (exclusive), int64
    vocabulary.json   the characters in id order, and counts

Folders beside it hold what follows from it: the vocabulary of subwords that its training part
gives, and the ids of all dialogues in a vocabulary of subwords.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from smallgpt.data.text import check_files, fingerprint, read_text
from smallgpt.tokenizer.bpe import learn
from smallgpt.tokenizer.characters import FIRST_CHARACTER, PAD, SEP, TOKENIZER_FILE, UNK, Tokenizer
from smallgpt.tokenizer.subwords import SubwordTokenizer, load_tokenizer, pieces_of
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.paths import can_make, user_folder
from smallgpt.utils.words import counted

CACHE_FOLDER = ".smallgpt_cache"
CACHE_VERSION = 2
SUBWORDS_VERSION = 1
RARE_SHARE = 0.01
"""The rarest characters that together make up this share of the text stand in for unknown ones."""
LEARNT_FROM = 5_000_000
"""Characters that a vocabulary of subwords is learnt from at most, evenly spread."""
_NEWLINE = ord("\n")
_END_OF_DIALOGUE = 0x110000  # in the spooled text, the number after Unicode's last code point
_CHUNK = 1 << 20  # code points; small enough that the processor's cache holds much of the work

IntArray = npt.NDArray[np.int64]
ReadText = Callable[[Path], Iterator[tuple[str, str]]]
"""Streams a file as chunks of its raw and its clean text, as `data.text.read_text`."""


@dataclass(frozen=True)
class Corpus:
    """The dialogues of the text, as ids in the vocabulary of that text, or of subwords.

    folder: the cache that holds the text's own ids.
    ids: all dialogues in a row, each closed by one `<pad>`; uint16 or uint32, memory-mapped.
    ends: end of each dialogue in `ids`, exclusive.
    rare_from: ids from here on are the rarest characters (`RARE_SHARE` of the text), or pieces.
    characters: characters of utterances; separators do not count.
    conversations: dialogues of two or more utterances.
    fingerprint: hash of the files.
    """

    folder: Path
    ids: npt.NDArray[Any]
    ends: IntArray
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
        return list(self.ids[start : self.ends[index]].tolist())


def open_corpus(paths: list[Path], read: ReadText = read_text) -> Corpus:
    """Encode the files, or open the cache of an earlier time. The key is their content.

    `read` streams a file; `data.dialogue_formats.text_chunks` reads every format. A UserError says
    that a file is missing, empty or undecodable, or that no dialogue has two utterances.
    """
    check_files(paths)
    key = fingerprint(paths)
    cache = _cache_folder(paths[0]) / f"{key}-v{CACHE_VERSION}"
    _build(cache, lambda work: _encode(paths, read, work))
    return _open(cache, key)


def describe(corpus: Corpus) -> None:
    """Print what the text holds."""
    fewer = corpus.conversations < len(corpus)
    own = corpus.tokenizer
    of_two = f" ({corpus.conversations:,} of two or more utterances)" if fewer else ""
    note(
        f"text: {counted(len(corpus), 'dialogue')}{of_two}, "
        f"{counted(corpus.characters, 'character')}, "
        + (
            f"vocabulary {len(own):,}, {characters_an_id(corpus):.2f} characters an id"
            if isinstance(own, SubwordTokenizer)
            else f"{len(own.characters):,} different ones"
        )
    )


def characters_an_id(corpus: Corpus) -> float:
    """How many characters an id stands for on average, by the beginning of the text."""
    return float(corpus.tokenizer.lengths()[corpus.ids[:_CHUNK]].mean())


def unknown_places(corpus: Corpus) -> int:
    """How often `<unk>` stands in it: never in the characters of its own text."""
    if not isinstance(corpus.tokenizer, SubwordTokenizer):
        return 0
    begins = range(0, len(corpus.ids), _CHUNK)
    return sum(int((corpus.ids[at : at + _CHUNK] == UNK).sum()) for at in begins)


def learn_subwords(corpus: Corpus, train_percent: float, seed: int, size: int) -> Tokenizer:
    """A vocabulary of so many ids, or fewer, from the dialogues to train on; from the cache where
    it was learnt before.

    Args:
        corpus: in the characters of its text, each of which is a piece.
        train_percent, seed: see `split`.
    """
    name = f"{corpus.folder.name}-pieces{SUBWORDS_VERSION}-{size}-{train_percent}-{seed}"
    cache = corpus.folder.with_name(name)

    def make(work: Path) -> None:
        dialogues, _ = split(len(corpus), train_percent, seed)
        begins = np.concatenate(([0], corpus.ends[:-1]))
        there = int((corpus.ends - begins)[dialogues].sum())
        some = dialogues[:: -(-there // LEARNT_FROM)]
        ids = np.concatenate([corpus.ids[begins[i] : corpus.ends[i]] for i in some])[:LEARNT_FROM]
        note(f"learning a vocabulary of subwords from {counted(len(ids), 'character')} ...")
        ends = np.flatnonzero((ids == SEP) | (ids == PAD))
        lines = [corpus.tokenizer.decode(line[:-1]) for line in np.split(ids, ends + 1)]
        learn(lines, corpus.tokenizer.characters, size).save(work)

    _build(cache, make, TOKENIZER_FILE)
    with _damage(cache):
        return load_tokenizer(cache)


def match_tokenizer(corpus: Corpus, tokenizer: Tokenizer) -> tuple[Corpus, npt.NDArray[Any] | None]:
    """A corpus for `tokenizer`, and for each id of that corpus the id in `tokenizer`.

    The array is None where all ids agree. In a vocabulary of subwords the corpus is encoded anew,
    into a cache of its own.

    Args:
        corpus: in the characters of its text.
    """
    own = corpus.tokenizer
    if not isinstance(tokenizer, SubwordTokenizer):
        if tokenizer.characters == own.characters:
            return corpus, None
        return corpus, np.array([UNK, SEP, PAD, *tokenizer.encode("".join(own.characters))])
    digest = hashlib.sha256(tokenizer.backend().to_str().encode()).hexdigest()[:16]
    cache = corpus.folder.with_name(f"{corpus.folder.name}-ids{SUBWORDS_VERSION}-{digest}")
    _build(cache, lambda work: _encode_anew(corpus, tokenizer, work), "ends.npy")
    ids, ends = _mapped(cache)
    rare_from = len(tokenizer)  # subwords of other programs stand for what is rare
    if pieces_of(tokenizer):
        rare_from = _rare_from(ids, tokenizer)
    return dataclasses.replace(
        corpus, ids=ids, ends=ends, tokenizer=tokenizer, rare_from=rare_from
    ), None


def without_characters(corpus: Corpus, unwanted: Collection[str]) -> Corpus:
    """The same dialogues with `<unk>` in place of some characters.

    Args:
        corpus: in the characters of its text.
    """
    table = np.arange(len(corpus.tokenizer), dtype=corpus.ids.dtype)
    table[corpus.tokenizer.encode("".join(unwanted))] = UNK
    digest = hashlib.sha256("".join(sorted(unwanted)).encode()).hexdigest()[:16]
    folder = corpus.folder.with_name(f"{corpus.folder.name}-without-{digest}")
    return dataclasses.replace(corpus, folder=folder, ids=table[corpus.ids])


def _rare_from(ids: npt.NDArray[Any], tokenizer: Tokenizer) -> int:
    """The first of the ids that together make up `RARE_SHARE` of the text, the last ones."""
    used = np.zeros(len(tokenizer), np.int64)
    for at in range(0, len(ids), _CHUNK):
        used += np.bincount(ids[at : at + _CHUNK], minlength=len(tokenizer))
    share = np.cumsum((used * tokenizer.lengths())[FIRST_CHARACTER:])
    return FIRST_CHARACTER + int(np.searchsorted(share, (1 - RARE_SHARE) * share[-1])) + 1


def split(dialogues: int, train_percent: float, seed: int) -> tuple[IntArray, IntArray]:
    """Choose dialogues for training and validation: two sorted index arrays, disjoint, complete.

    Each part needs at least one; a UserError says that there are fewer than two dialogues.
    """
    if dialogues < 2:
        advice = "add more, with a blank line between them: one part is kept for validation"
        raise UserError("the text has only one dialogue", advice)
    order = np.random.default_rng((seed, 0)).permutation(dialogues)
    train = min(max(1, round(dialogues * train_percent)), dialogues - 1)
    return np.sort(order[:train]), np.sort(order[train:])


def _cache_folder(data: Path) -> Path:
    """Beside the data; in the user's cache folder, or a temporary one, where that is read-only."""
    beside = data.resolve().parent / CACHE_FOLDER
    place = beside if beside.is_dir() else beside.parent
    # The mode is looked at too, because to root every folder seems writable.
    if os.access(place, os.W_OK) and place.stat().st_mode & 0o222:
        return beside
    own = user_folder("XDG_CACHE_HOME")
    if own and can_make(own):
        return own
    return Path(tempfile.gettempdir()) / f"smallgpt-{os.getuid() if os.name == 'posix' else 0}"


def _open(cache: Path, key: str) -> Corpus:
    with _damage(cache):
        meta = json.loads((cache / "vocabulary.json").read_text("utf-8"))
        return Corpus(
            cache,
            *_mapped(cache),
            tokenizer=Tokenizer(meta["characters_in_id_order"]),
            rare_from=meta["rare_from"],
            characters=meta["characters"],
            conversations=meta["conversations"],
            fingerprint=key,
        )


def _mapped(cache: Path) -> tuple[npt.NDArray[Any], IntArray]:
    """The ids and the ends of the dialogues."""
    with _damage(cache):
        return np.load(cache / "ids.npy", mmap_mode="r"), np.load(cache / "ends.npy")


@contextmanager
def _damage(cache: Path) -> Iterator[None]:
    try:
        yield
    except (UserError, OSError, ValueError, RecursionError, EOFError, KeyError, TypeError) as error:
        advice = "delete that folder; it will be rebuilt"
        raise UserError(f"the cache {cache} is damaged: {error}", advice) from None


def _build(cache: Path, make: Callable[[Path], None], last_file: str = "vocabulary.json") -> None:
    """Fill a folder that is complete or not there at all, whoever else does the same."""
    if (cache / last_file).is_file():
        return
    try:
        with atomic.directory(cache) as work:
            make(work)
    except OSError as error:
        if (cache / last_file).is_file():
            return  # another process was faster: its cache is as good
        raise UserError(
            f"cannot write the cache {cache}: {error.strerror or error}",
            "while it is made it needs six bytes a character on disk",
        ) from None


def _encode(paths: list[Path], read: ReadText, work: Path) -> None:
    """Two passes: the text goes to disk as code points and is counted, then becomes ids."""
    names = ", ".join(map(str, paths))
    spool = work / "code_points.bin"
    order, counts, ends = _spool(paths, read, spool)
    if not len(ends):
        raise UserError(f"{names}: no text in it", "put dialogues in it, see README.md")
    conversations, separators = _write_ids(spool, work / "ids.npy", order, ends)
    spool.unlink()
    if not conversations:
        raise UserError(
            f"{names}: {counted(len(ends), 'dialogue')}, but none of two utterances",
            "write one utterance a line and leave a blank line between dialogues only",
        )
    np.save(work / "ends.npy", ends)
    share = np.cumsum(counts) / counts.sum()
    meta = {
        "files": [str(path) for path in paths],
        "dialogues": len(ends),
        "conversations": conversations,
        "characters": int(ends[-1]) - len(ends) - separators,
        "rare_from": FIRST_CHARACTER + int(np.searchsorted(share, 1 - RARE_SHARE)) + 1,
        "characters_in_id_order": [chr(code) for code in order],
    }
    text = json.dumps(meta, ensure_ascii=False)
    # The name of a file may hold bytes that are no text; escaped, they are JSON as well.
    (work / "vocabulary.json").write_text(text, "utf-8", errors="backslashreplace")


def _spool(paths: list[Path], read: ReadText, spool: Path) -> tuple[IntArray, IntArray, IntArray]:
    """Write the clean text as uint32 code points, with a mark at the end of each dialogue.

    Returns:
        the code points of the raw text but newlines, in the order of the legacy vocabulary (falling
        frequency, ties by first appearance); how often each occurs; the ends of the dialogues.
    """
    counts = np.zeros(_END_OF_DIALOGUE, np.int64)
    seen = [np.empty(0, np.uint32)]  # by first appearance
    ends = [np.empty(0, np.int64)]
    written = 0
    with spool.open("wb") as out:
        for path in paths:
            at_start = written
            for raw, clean in read(path):
                codes = _code_points(raw)
                found = np.bincount(codes)
                before = counts[: len(found)]  # up to the highest code point in use, far from all
                new = (found > 0) & (before == 0)
                if new.any():
                    characters, first = np.unique(codes[new[codes]], return_index=True)
                    seen.append(characters[np.argsort(first)])
                before += found

                codes = codes if clean == raw else _code_points(clean)
                newline = codes == _NEWLINE
                blank = np.flatnonzero(newline[:-1] & newline[1:])
                codes = np.delete(codes, blank)
                marks = blank - np.arange(len(blank))
                codes[marks] = _END_OF_DIALOGUE
                codes.tofile(out)
                ends.append(marks + written + 1)
                written += len(codes)
            if written > at_start:  # the end of a file ends its last dialogue
                np.array([_END_OF_DIALOGUE], np.uint32).tofile(out)
                written += 1
                ends.append(np.array([written]))
    characters = np.concatenate(seen).astype(np.int64)
    characters = characters[characters != _NEWLINE]
    order = characters[np.argsort(-counts[characters], kind="stable")]
    return order, counts[order], np.concatenate(ends)


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _write_ids(spool: Path, path: Path, order: IntArray, ends: IntArray) -> tuple[int, int]:
    """Turn code points into ids; return the number of dialogues with a `<sep>`, and of these."""
    vocabulary = FIRST_CHARACTER + len(order)
    table = np.full(_END_OF_DIALOGUE + 1, UNK, np.uint16 if vocabulary <= 1 << 16 else np.uint32)
    table[order] = np.arange(FIRST_CHARACTER, vocabulary)
    table[[_NEWLINE, _END_OF_DIALOGUE]] = SEP, PAD
    conversation = np.zeros(len(ends), bool)
    total = start = 0
    # Read and written, not mapped: mapped files would count as memory of the process.
    with spool.open("rb") as codes, path.open("wb") as ids:
        _write_header(ids, table.dtype, int(ends[-1]))
        while len(part := table[np.fromfile(codes, np.uint32, _CHUNK)]):
            part.tofile(ids)
            separators = np.flatnonzero(part == SEP) + start
            conversation[np.searchsorted(ends, separators, side="right")] = True
            total += len(separators)
            start += len(part)
    return int(conversation.sum()), total


def _write_header(file: IO[bytes], dtype: npt.DTypeLike, size: int) -> None:
    """The beginning of an `.npy` file of one dimension; it is as long for any size."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(file, header)


def _encode_anew(corpus: Corpus, tokenizer: SubwordTokenizer, work: Path) -> None:
    """Write the ids of all dialogues in a vocabulary of subwords, some dialogues at a time."""
    size = int(corpus.ends[-1])
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    last = np.unique(np.searchsorted(corpus.ends, [*range(_CHUNK, size, _CHUNK), size]))
    begin = written = 0
    ends = []
    with (
        (work / "ids.npy").open("wb") as file,
        tqdm(total=size, unit="character", unit_scale=True, leave=False, delay=1) as bar,
    ):
        _write_header(file, dtype, 0)
        for end in corpus.ends[last].tolist():
            own = corpus.ids[begin:end]
            dialogues = np.split(own, np.flatnonzero(own == PAD) + 1)[:-1]
            # An `<unk>` stays one: whatever it is written as, some vocabulary has that.
            parts = [np.split(ids, np.flatnonzero(ids == UNK)) for ids in dialogues]
            known = (ids[ids != UNK].tolist() for each in parts for ids in each)
            anew = iter(tokenizer.encode_all([corpus.tokenizer.decode(ids) for ids in known]))
            encoded = [
                np.array(
                    [*next(anew), *(i for _ in each[1:] for i in (UNK, *next(anew))), PAD], dtype
                )
                for each in parts
            ]
            np.concatenate(encoded).tofile(file)
            ends.append(np.cumsum([len(ids) for ids in encoded], dtype=np.int64) + written)
            written = int(ends[-1][-1])
            bar.update(end - begin)
            begin = end
        file.seek(0)
        _write_header(file, dtype, written)
    np.save(work / "ends.npy", np.concatenate(ends))
