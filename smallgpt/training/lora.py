"""What a run with `lora_rank` does otherwise: adapters learn, and the base model stays as it is.

pretrain.py and the classifier's recipe call `begin` when they have made the model; the loop, and
what is learnt from, are the same. What is saved is an adapter (checkpoints/adapter.py).
"""

from typing import Any

from torch import nn

from smallgpt.checkpoints import adapter
from smallgpt.checkpoints.adapter import Base
from smallgpt.checkpoints.checkpoint import Checkpoint
from smallgpt.checkpoints.open import BOX, box
from smallgpt.config import Config
from smallgpt.distributed.world import World
from smallgpt.model import lora
from smallgpt.training.resume import Resumed
from smallgpt.utils.errors import note


def begin(
    config: Config,
    model: nn.Module,
    base: Checkpoint | None,
    resumed: Resumed | None,
    added_rows: int,
    world: World,
) -> Base:
    """Give a model its adapters: new ones, or those of the run that goes on.

    Args:
        model: with the weights of `base`; those of a resumed run are loaded here.
        base: the model that a new run begins with.
        added_rows: rows at the end of the embedding that the base does not have; of a resumed run
            they are known.

    Returns the model that the adapters are for.

    Raises:
        UserError: it is an adapter itself.
    """
    weights: Any = resumed.stored.weights if resumed else model.state_dict()
    if resumed:
        about = adapter.base_in(resumed.stored)
    else:
        assert base
        name = BOX if config.base_model == BOX and base.path == box() else str(base.path)
        found = world.only_first(lambda: adapter.base_of(base, name, added_rows))
        about = world.share(found)  # type: ignore[assignment]
    dtype = world.share(lora.own_precision(weights) if world.is_first else None)
    assert dtype
    scale = config.lora_alpha / config.lora_rank
    matrices, rows = config.lora_matrices(), about.added_rows
    lora.add_adapters(model, matrices, config.lora_rank, scale, config.lora_dropout, rows, dtype)
    if resumed and weights:
        model.load_state_dict(weights)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - learning
    precision = str(dtype).removeprefix("torch.")
    note(
        f"adapters: rank {config.lora_rank} for {', '.join(matrices)}: {learning / 1e6:.2f} M "
        f"parameters learn, {frozen / 1e6:.2f} M are frozen (the layers' in {precision})"
    )
    return about
