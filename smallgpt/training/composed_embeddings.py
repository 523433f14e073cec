"""Embeddings of subwords that learn from each other through the characters they share.

Of a vocabulary of several thousand pieces most are rare, and each has a row of its own in the
embedding. But what 学习 means has to do with 学 and 习. So the row of a fresh piece begins near the
sum of vectors of its characters, and in each step a character moves all pieces that hold it, beside
their own updates: as if a row were the piece's own vector plus those of its characters ("Enriching
Word Vectors with Subword Information", arXiv:1607.04606). The model stays a plain GPT-2: what is
kept is the sum.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
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
        self.count = len(number_of)
        """Different characters."""
        held = [[number_of[c] for c in piece] for piece in [""] * FIRST_CHARACTER + [*pieces]]
        holders: list[list[int]] = [[] for _ in number_of]
        for token, numbers in enumerate(held):
            for number in numbers:
                holders[number].append(token)
        self._held, self._holders = (_Bags(bags, device) for bags in (held, holders))

    def sums_of_characters(self, rows_CE: Tensor) -> Tensor:
        """Of each id the sum of its characters' rows, (3 + P, E) for P pieces."""
        return self._held.sums(rows_CE)

    def sums_of_pieces(self, rows_VE: Tensor) -> Tensor:
        """Of each character the sum of the rows of the pieces that hold it, (C, E)."""
        return self._holders.sums(rows_VE)


class _Bags:
    """Sums of rows, always taken in the same order: several processes must not drift apart."""

    def __init__(self, bags: Sequence[Sequence[int]], device: torch.device) -> None:
        self._rows = torch.tensor([row for bag in bags for row in bag], device=device)
        ends = torch.tensor([len(bag) for bag in bags], device=device).cumsum(0)
        self._begins = F.pad(ends[:-1], (1, 0))

    def sums(self, rows: Tensor) -> Tensor:
        return F.embedding_bag(self._rows, rows, self._begins, mode="sum")


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
    squares = [[sum(n * n for n in Counter(piece).values())] for piece in pieces]
    sums_PE = characters.sums_of_characters(rows_CE)[own]
    sums_PE /= torch.tensor(squares).to(embedding_VE).sqrt()
    rest = math.sqrt(1 - INHERITED**2)
    embedding_VE[own] = INHERITED * sums_PE + rest * embedding_VE[own]


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

    @torch.no_grad()
    def gradient(*_: object) -> None:
        of_rows = embedding.grad
        share_CE.grad = None if of_rows is None else characters.sums_of_pieces(of_rows)

    @torch.no_grad()
    def into_rows(*_: object) -> None:
        sums = characters.sums_of_characters(share_CE)
        embedding[: len(sums)] += sums
        share_CE.zero_()
        share_CE.grad = None  # nobody else does, and a scaler looks at it

    optimizer.register_step_pre_hook(gradient)
    optimizer.register_step_post_hook(into_rows)
