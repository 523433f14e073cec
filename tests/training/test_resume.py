"""What a run goes on from."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.optim import AdamW
from torch.utils._pytree import tree_leaves

from smallgpt.config import Config
from smallgpt.config_file import config_from_dict
from smallgpt.model.gpt import GPT
from smallgpt.training import pretrain
from smallgpt.training.trainer import Trainer
from tests.helpers.models import DIALOGUES
from tests.helpers.processes import SMALL


def test_what_was_read_is_let_go_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or weights and optimizer state would stay in memory beside those of the GPU."""
    (tmp_path / "text.txt").write_text("\n".join([DIALOGUES] * 4), encoding="utf-8")
    settings = SMALL | {"data_path": str(tmp_path / "text.txt"), "max_steps": 2}

    def train(folder: str, **changes: Any) -> Path:
        changes |= {"checkpoint_root": str(tmp_path / folder)}
        return pretrain.run(config_from_dict(settings | changes, "test", Config))

    read: list[weakref.ref[Tensor]] = []
    left: list[int] = []
    real_train = Trainer.train

    def copying(real: Callable[..., Any]) -> Callable[..., Any]:
        """As a GPU does, take a copy."""

        def load_state_dict(self: Any, state: dict[str, Any], **options: Any) -> Any:
            read.extend(weakref.ref(x) for x in tree_leaves(state) if isinstance(x, Tensor))
            return real(self, copy.deepcopy(state), **options)

        return load_state_dict

    def counting(self: Trainer, command: str) -> Path:
        gc.collect()
        left.append(sum(tensor() is not None for tensor in read))
        return real_train(self, command)

    first = train("run")
    for kind in (GPT, AdamW):
        monkeypatch.setattr(kind, "load_state_dict", copying(kind.load_state_dict))
    monkeypatch.setattr(Trainer, "train", counting)
    train("run", max_steps=3, resume_from="latest")
    resumed = len(read)
    train("tuned", base_model=str(first))
    assert left == [0, 0]
    assert len(read) > resumed > 60
