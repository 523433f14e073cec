"""How often a model picks the right reply out of ten: R10@1 (Lowe et al., arXiv:1506.08909).

Of a pair the true reply is to score higher than nine others; ties lose, and chance is 10 %.
Definitions: docs/evaluation.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smallgpt.chat.chatbot import prompt_ids
from smallgpt.data.corpus import IntArray
from smallgpt.data.pairs import Pair
from smallgpt.distributed.world import ALONE, World
from smallgpt.model.gpt import GPT
from smallgpt.model.scoring import log_probabilities
from smallgpt.runtime import Runtime
from smallgpt.tokenizer.characters import SEP, UNK, Tokenizer
from smallgpt.training.validation import in_evaluation

CANDIDATES = 10


@dataclass(frozen=True)
class Choices:
    """Of each pair whether the true reply was picked, (N,) each.

    by_information: by log p(reply | messages) - log p(reply), the pointwise mutual information
    (Li et al., arXiv:1510.03055); by_likelihood: by log p(reply | messages); both a character.
    """

    by_information: npt.NDArray[np.bool_]
    by_likelihood: npt.NDArray[np.bool_]

    def as_dict(self) -> dict[str, float]:
        """The shares by name; none of no pairs."""
        if not len(self.by_information):
            return {}
        return {
            "r10_at_1": float(self.by_information.mean()),
            "r10_at_1_likelihood": float(self.by_likelihood.mean()),
        }


def can_score(tokenizer: Tokenizer, block_size: int) -> Callable[[str], bool]:
    """Whether a model can tell how likely a reply is: it knows every character, and half of its
    context has room for them."""

    def fits(reply: str) -> bool:
        ids = tokenizer.encode(reply)
        return UNK not in ids and 0 < len(ids) <= block_size // 2

    return fits


def candidates(pairs: Sequence[Pair], seed: int) -> tuple[list[str], IntArray]:
    """The different replies of the pairs; and of each pair ten of them by number, its own first:
    (N, 10), or (0, 10) where there are no ten."""
    replies = list(dict.fromkeys(pair.reply for pair in pairs))
    if len(replies) < CANDIDATES:
        return replies, np.empty((0, CANDIDATES), np.int64)
    number_of = {reply: number for number, reply in enumerate(replies)}
    random = np.random.default_rng((seed, 7))
    chosen = []
    for pair in pairs:
        own = number_of[pair.reply]
        others = random.choice(len(replies) - 1, CANDIDATES - 1, replace=False)
        chosen.append([own, *(others + (others >= own))])
    return replies, np.array(chosen)


def choose(
    model: GPT,
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    seed: int,
    runtime: Runtime,
    stopped: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> Choices | None:
    """Let a model pick the reply of each pair out of ten; None where a process was stopped.

    The nine others are replies of other pairs. The processes of `world` take turns with the pairs;
    all get the result of all.

    Args:
        pairs: their replies are such that the model can score them, see `can_score`.
        seed: which nine.
    """
    replies, chosen = candidates(pairs, seed)
    ids = [tokenizer.encode(reply) for reply in replies]
    device, size, numbers = runtime.device, model.config.block_size, range(len(chosen))
    right = [torch.empty(0, 2, dtype=torch.bool, device=device)]
    by_itself: Tensor | None = None
    with runtime.autocast():  # once: it keeps the weights that it has rounded
        for number in in_evaluation(model, numbers, "picking replies", stopped, world):
            mine = [ids[n] for n in chosen[number]]
            room = max(map(len, mine))
            context = prompt_ids(pairs[number].messages, tokenizer, size, room).ids
            if by_itself is None:
                by_itself = log_probabilities(model, [SEP], ids)
            log_p_N = log_probabilities(model, context, mine)
            gain_N = log_p_N - by_itself[chosen[number]]
            lengths = torch.tensor([len(replies[n]) for n in chosen[number]], device=device)
            scores_2N = torch.stack([gain_N, log_p_N]) / lengths
            right.append((scores_2N[:, 0] > scores_2N[:, 1:].amax(1))[None])
    parts = world.gather((torch.cat(right).cpu().numpy(), stopped()))
    if any(was_stopped for _, was_stopped in parts):
        return None
    by_information, by_likelihood = np.concatenate([part for part, _ in parts]).T
    return Choices(by_information, by_likelihood)
