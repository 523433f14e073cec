"""Preferences as ids: what the model reads when it learns from them.

Shapes: N pairs (of kto: rated replies)    K replies that are scored of each
    R rows, one a reply    T positions of a row    P positions where an id of a reply is said
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from smallgpt.chat.chatbot import prompt_ids
from smallgpt.config import Config
from smallgpt.data.corpus import IntArray
from smallgpt.data.preferences import PreferencePair, RatedReply
from smallgpt.runtime import Runtime, to_device
from smallgpt.tokenizer.characters import PAD, SEP, UNK, Tokenizer, as_utterance
from smallgpt.utils.errors import UserError, note


@dataclass(frozen=True)
class Examples:
    """What is learnt from, as ids: N contexts, and to each K replies.

    Of a pair these are the better reply, the worse one, and one to other messages; of a rated reply
    it, and one to other messages.

    good: (N,), of rated replies.
    train, validation: their numbers. All to the same messages are in the same part.
    """

    contexts: list[list[int]]
    replies: list[list[list[int]]]
    good: Tensor
    train: IntArray
    validation: IntArray
    messages: list[list[str]]

    @staticmethod
    def of(
        items: Sequence[PreferencePair | RatedReply], tokenizer: Tokenizer, config: Config
    ) -> "Examples":
        """The ids of preferences; what does not fit the context is cut off at its end, and said.

        Raises:
            UserError: there are too few to learn from and to validate on.
        """
        size, cut, unknown = config.block_size, 0, 0
        contexts, own = list[list[int]](), list[list[list[int]]]()
        for item in items:
            texts = [item.reply] if isinstance(item, RatedReply) else [item.chosen, item.rejected]
            said = [[*tokenizer.encode(as_utterance(text)), SEP] for text in texts]
            prompt = prompt_ids(item.messages, tokenizer, size, max(map(len, said))).ids
            room = size + 1 - len(prompt)  # the last id is no input
            cut += any(len(ids) > room for ids in said)
            unknown += any(UNK in ids for ids in said)
            contexts.append(prompt)
            own.append([ids[:room] for ids in said])
        random = np.random.default_rng((config.seed, 11))
        keys = ["\n".join(item.messages) for item in items]
        distinct = sorted(set(keys))
        learnt = min(max(1, round(config.train_percent * len(distinct))), len(distinct) - 1)
        if learnt < 1:
            need = "for training and for validation replies to at least two different prompts"
            raise UserError(f"{', '.join(map(str, config.data_paths()))}: {need} are needed")
        for_training = {distinct[n] for n in random.permutation(len(distinct))[:learnt]}
        inside = np.array([key in for_training for key in keys])
        next_to = _with_other_messages(keys, random)
        rooms = [size + 1 - len(prompt) for prompt in contexts]
        replies = [[*ids, own[next_to[n]][0][: rooms[n]]] for n, ids in enumerate(own)]
        good = torch.tensor([getattr(item, "good", True) for item in items])
        for count, what in ((cut, "is longer than the context, and cut"), (unknown, "has <unk>")):
            if count:
                note(f"      of {count:,} of {len(items):,} a reply {what}")
        parts = np.flatnonzero(inside), np.flatnonzero(~inside)
        return Examples(contexts, replies, good, *parts, [item.messages for item in items])


def _with_other_messages(keys: list[str], random: np.random.Generator) -> IntArray:
    """For each item the number of one with another key, at random: (N,)."""
    _, group_N = np.unique(keys, return_inverse=True)
    by_group_N = np.argsort(group_N, kind="stable")
    sizes = np.bincount(group_N)[group_N]
    begins = np.searchsorted(group_N[by_group_N], group_N)
    # A place among all but those of the own group, which stand together.
    places = random.integers(len(keys) - sizes)
    return by_group_N[np.where(places < begins, places, places + sizes)]


class Rows(NamedTuple):
    """Replies with their contexts, one a row, filled up on the right.

    ids: (R, T), all of each but the last.
    places, targets, rows: (P,), where the model says an id of a reply (counted over all rows), the
        id, and the number of its row.
    """

    ids: Tensor
    places: Tensor
    targets: Tensor
    rows: Tensor

    @staticmethod
    def of(contexts: Sequence[list[int]], replies: Sequence[list[int]]) -> "Rows":
        """One row of each context with its reply."""
        whole = [[*c, *r] for c, r in zip(contexts, replies, strict=True)]
        width = max(map(len, whole)) - 1
        ids = [[*ids[:-1], *[PAD] * (width + 1 - len(ids))] for ids in whole]
        places, targets, rows = list[int](), list[int](), list[int]()
        for row, (context, reply) in enumerate(zip(contexts, replies, strict=True)):
            begin = row * width + len(context) - 1
            places += range(begin, begin + len(reply))
            targets += reply
            rows += [row] * len(reply)
        return Rows(*map(torch.tensor, (ids, places, targets, rows)))

    def log_p(self, network: nn.Module, here: Runtime) -> Tensor:
        """log p(reply | context) of each row, the sum over its ids: (R,), nats, float32."""
        ids_RT, places_P, targets_P, rows_P = (to_device(tensor, here.device) for tensor in self)
        with here.autocast():
            logits_PV = network(ids_RT, places_P=places_P)[0]
        log_p_P = logits_PV.float().log_softmax(-1).gather(1, targets_P[:, None])[:, 0]
        return log_p_P.new_zeros(len(ids_RT)).index_add(0, rows_P, log_p_P)


def log_ps(
    network: nn.Module, examples: Examples, numbers: IntArray, kinds: Sequence[int], here: Runtime
) -> Tensor:
    """log p of some of the replies to some of the contexts, (K, N), nats a reply.

    Args:
        kinds: which of the K replies.
    """
    pairs = [(examples.contexts[n], examples.replies[n][kind]) for kind in kinds for n in numbers]
    rows = Rows.of([context for context, _ in pairs], [reply for _, reply in pairs])
    return rows.log_p(network, here).view(len(kinds), len(numbers))
