"""How likely given replies are. Knows ids, not text."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from smallgpt.model.cache import KeyValueCache, Reading
from smallgpt.model.generate import without_cudnn_attention
from smallgpt.model.gpt import GPT

POSITIONS = 2048
"""Of a batch of replies with their contexts, at most, unless one alone has more."""


@torch.no_grad()  # in inference mode autocast would round the weights anew at every call
def log_probabilities(
    model: GPT, context: Sequence[int], replies: Sequence[Sequence[int]]
) -> Tensor:
    """log p(reply | context) of each reply, the sum over its ids: (N,), nats, on the model's
    device, which the host does not wait for.

    The context is read once for all. Autocast is the caller's, best around many calls.

    Args:
        model: in evaluation mode.
        context: ids, at least one.
        replies: ids, at least one each; with the context at most block_size + 1.
    """
    device = model.wte.weight.device
    read = KeyValueCache(model.config, model.wte.weight)
    with without_cudnn_attention():
        reading = Reading(read, [0], [context])
        log_p_1V = _log_softmax(model(reading.ids_N1, reading=reading, places_P=reading.ends()))
        log_p_V = log_p_1V.flatten()
        first_ids = torch.tensor([reply[0] for reply in replies], device=device, dtype=torch.long)
        log_p_N = log_p_V[first_ids]
        for numbers in _batches([len(reply) for reply in replies], len(context), device):
            rest = _log_p_behind_first(model, read, [replies[number] for number in numbers])
            log_p_N[torch.tensor(numbers, device=device)] += rest
    return log_p_N


def _batches(
    lengths: Sequence[int], context_length: int, device: torch.device
) -> Iterator[list[int]]:
    """The numbers of the replies of two and more ids, those of like length together.

    A GPU computes padding in less time than it takes to begin another batch.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[number]
        if length == 1:
            continue
        unlike = device.type == "cpu" and batch and length > 2 * lengths[batch[0]]
        if unlike or (batch and (len(batch) + 1) * (context_length + length) > POSITIONS):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _log_p_behind_first(
    model: GPT, read: KeyValueCache, replies: Sequence[Sequence[int]]
) -> Tensor:
    """Of each reply, the log-probability of all ids but the first, behind what `read` holds."""
    device, B = read.memory.device, len(replies)
    T = max(map(len, replies)) - 1
    cache = KeyValueCache(model.config, model.wte.weight, B, len(read.ids[0]) + T)
    for row in range(B):
        cache.copy(row, read, 0, len(read.ids[0]))
    # Filled up on the right: what is behind a position does not change it.
    filled = [[*reply, *[0] * (T + 1 - len(reply))] for reply in replies]
    reading = Reading(cache, range(B), [ids[:-1] for ids in filled])
    ids_BT = torch.tensor(filled, device=device)
    places = [row * T + t for row, reply in enumerate(replies) for t in range(len(reply) - 1)]
    places_P = torch.tensor(places, device=device)
    log_p_PV = _log_softmax(model(reading.ids_N1, reading=reading, places_P=places_P)[0])
    log_p_BT = log_p_PV.new_zeros(B * T)
    log_p_BT[places_P] = log_p_PV.gather(1, ids_BT[:, 1:].flatten()[places_P, None])[:, 0]
    return log_p_BT.view(B, T).sum(1)


def _log_softmax(logits: Tensor) -> Tensor:
    """At least in float32."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
