"""A vocabulary of subwords, learnt from the text itself: pieces of up to four characters.

Byte-pair encoding (Sennrich et al., arXiv:1508.07909) on characters: the pair that occurs most
often becomes a piece, again and again. The `tokenizers` library learns and cuts.
"""

import itertools
import json
from collections import Counter
from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, models, trainers

from smallgpt.tokenizer.characters import FIRST_CHARACTER
from smallgpt.tokenizer.subwords import SubwordTokenizer

LONGEST = 4
"""Characters of a piece at most."""
_CONTROL = ["<unk>", "\n", "<pad>"]


def learn(lines: Sequence[str], characters: Sequence[str], size: int) -> SubwordTokenizer:
    """A vocabulary of at most so many ids (never fewer than `characters` and control tokens need).

    Pieces come by falling frequency, ties by the text of the piece: the same lines always give the
    same vocabulary. Nothing is normalised: the pieces of a text join to it.

    Args:
        lines: to learn from, without newlines.
        characters: each becomes a piece, whether it occurs or not; those of the lines are in it.
    """
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        max_token_length=LONGEST,
        initial_alphabet=list(characters),
        special_tokens=_CONTROL,
        show_progress=False,
    )
    backend.train_from_iterator(lines, trainer)
    learnt = json.loads(backend.to_str())["model"]["vocab"]
    made = sorted(learnt, key=learnt.__getitem__)[FIRST_CHARACTER:]
    merges = _merges(made)
    backend.model = models.BPE(learnt, merges, unk_token="<unk>")
    backend.encode_special_tokens = True  # a "<pad>" in the text is text
    encoded = backend.encode_batch_fast(list(lines), add_special_tokens=False)
    counts = Counter(itertools.chain.from_iterable(line.ids for line in encoded))
    pieces = sorted(made, key=lambda piece: (-counts[learnt[piece]], piece))
    ids = {piece: number for number, piece in enumerate([*_CONTROL, *pieces])}
    backend = tokenizers.Tokenizer(models.BPE(ids, merges, unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["<unk>", "<pad>"])
    return SubwordTokenizer(json.loads(backend.to_str()))


def _merges(pieces: Sequence[str]) -> list[tuple[str, str]]:
    """Every way to join two pieces to a third, by the place of the third in `pieces`.

    The trainer names one way for each; with all of them the pieces alone decide how a text is cut,
    as in SentencePiece's BPE, which other programs use.
    """
    known = set(pieces)
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
