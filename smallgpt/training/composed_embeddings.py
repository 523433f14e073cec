"""Embeddings of subwords that learn from each other through the characters they share.

Of a vocabulary of several thousand pieces most are rare, and each has a row of its own in the
embedding. But what 学习 means has to do with 学 and 习. So the row of a fresh piece begins near the
sum of vectors of its characters, and in each step a character moves all pieces that hold it, beside
their own updates: as if a row were the piece's own vector plus those of its characters ("Enriching
Word Vectors with Subword Information", arXiv:1607.04606). The model stays a plain GPT-2: what is
kept is the sum.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smallgpt.tokenizer.characters import FIRST_CHARACTER

INHERITED = 0.7
"""The correlation of a fresh row with the sum of its characters' vectors (docs/log.md)."""


class _CharactersOfPieces:
    """Which characters the pieces hold.

    Args:
        pieces: in id order, starting at id 3.
    """

    def __init__(self, pieces: Sequence[str], device: torch.device) -> None:
        number_of = {c: n for n, c in enumerate(dict.fromkeys("".join(pieces)))}
        pairs = [
            (i, number_of[c]) for i, piece in enumerate(pieces, FIRST_CHARACTER) for c in piece
        ]
        self.count = len(number_of)
        """Different characters."""
        self._pieces, self._characters = torch.tensor(pairs, device=device).view(-1, 2).unbind(1)

    def sums_of_characters(self, rows_CE: Tensor, vocabulary: int) -> Tensor:
        """Of each piece the sum of its characters' rows, (V, E)."""
        sums_VE = rows_CE.new_zeros(vocabulary, rows_CE.shape[1])
        return sums_VE.index_add_(0, self._pieces, rows_CE[self._characters])

    def sums_of_pieces(self, rows_VE: Tensor) -> Tensor:
        """Of each character the sum of the rows of the pieces that hold it, (C, E)."""
        sums_CE = rows_VE.new_zeros(self.count, rows_VE.shape[1])
        return sums_CE.index_add_(0, self._characters, rows_VE[self._pieces])


@torch.no_grad()
def compose_embedding(embedding_VE: Tensor, pieces: Sequence[str]) -> None:
    """Let pieces of a fresh embedding begin alike where they hold the same characters, in place.

    The rows keep their size. Random numbers are torch's next ones.

    Args:
        pieces: in id order, starting at id 3; all other rows stay as they are.
    """
    characters = _CharactersOfPieces(pieces, embedding_VE.device)
    rows_CE = torch.randn(characters.count, embedding_VE.shape[1]).to(embedding_VE)
    rows_CE *= embedding_VE.std()
    own = slice(FIRST_CHARACTER, FIRST_CHARACTER + len(pieces))
    sums_VE = characters.sums_of_characters(rows_CE, len(embedding_VE))[own]
    sums_VE /= torch.tensor([[len(piece)] for piece in pieces]).to(embedding_VE).sqrt()
    embedding_VE[own] = INHERITED * sums_VE + math.sqrt(1 - INHERITED**2) * embedding_VE[own]


def share_updates(
    optimizer: torch.optim.Optimizer, embedding: Tensor, pieces: Sequence[str]
) -> None:
    """Let an optimizer that trains the embedding, (V, E), move pieces by their characters too.

    It gets one more parameter, (C, E): the characters' share of a step, which is moved into the
    rows after each and is zero again. Only its moments are kept, in the optimizer's state.

    Args:
        pieces: in id order, starting at id 3.
    """
    characters = _CharactersOfPieces(pieces, embedding.device)
    share_CE = nn.Parameter(embedding.new_zeros(characters.count, embedding.shape[1]))
    (like,) = (g for g in optimizer.param_groups if any(p is embedding for p in g["params"]))
    optimizer.add_param_group({**like, "params": [share_CE]})

    def gradient(*_: object) -> None:
        of_rows = embedding.grad
        share_CE.grad = None if of_rows is None else characters.sums_of_pieces(of_rows)

    @torch.no_grad()
    def into_rows(*_: object) -> None:
        embedding.add_(characters.sums_of_characters(share_CE, len(embedding)))
        share_CE.zero_()

    optimizer.register_step_pre_hook(gradient)
    optimizer.register_step_post_hook(into_rows)
