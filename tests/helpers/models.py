"""Tiny models: untrained, scripted, and their checkpoints."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smallgpt.chat.chatbot import Chatbot
from smallgpt.checkpoints import checkpoint
from smallgpt.checkpoints.checkpoint import load, save
from smallgpt.config import Config, ModelConfig
from smallgpt.model.cache import Reading
from smallgpt.model.gpt import GPT
from smallgpt.tokenizer.characters import SEP, Tokenizer

CHARACTERS = "你我好吗的是早上晚安天气不错呀，。？！ ab<pad>se1é"
TINY = Config(block_size=32, n_layer=2, n_head=4, n_embd=32, max_new_tokens=10, device="cpu")
SMALL = ModelConfig(block_size=24, vocab_size=40, n_layer=3, n_head=4, n_embd=32)
NGRAMS = replace(SMALL, ngram_order=3, ngram_rows=97, ngram_embd=8)
CONFIG = replace(TINY, vocab_size=40)
STATE: dict[str, Any] = {"step": 7, "moments": {"wte": torch.arange(60_000.0)}, "order": [1, 2]}
DIALOGUES = """\
早上好呀
早上好！睡得好吗？
很好，谢谢你
那就好

你叫什么名字
我叫小明
小明你好
你好你好

今天天气不错
是呀，出去走走吧
好呀

晚安
晚安，做个好梦
"""


def vocabulary() -> Tokenizer:
    """A small vocabulary, for models that are not trained."""
    return Tokenizer(list(dict.fromkeys(CHARACTERS)))


def random_model(seed: int = 0, **changes: Any) -> GPT:
    """A GPT whose weights, biases and norms are all random: every part of it matters.

    Positions weigh more than characters, or the tied head would repeat one character for ever.
    """
    config = replace(TINY, **({"vocab_size": len(vocabulary())} | changes))
    model = GPT(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.2 if parameter.dim() == 2 else 0.1, generator=generator)
            if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
                parameter.add_(1)
        model.wpe.weight.mul_(10)
    return model


class ScriptedGPT(GPT):
    """A model that says the given replies in turn, in several rows too.

    `contexts` lists what it was given to reply to, as ids; `read` counts the positions it read.
    `pause` is called before each id, with the number of ids still to come.
    """

    pause: Callable[[int], object] = staticmethod(lambda left: None)

    def __init__(self, config: Config, replies: Sequence[Sequence[int]]) -> None:
        super().__init__(config)
        self.contexts: list[list[int]] = []
        self.read = 0
        self._replies = itertools.cycle(replies)
        self._rest = dict[int, list[int]]()  # by row of the cache

    def forward(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        reading: Reading | None = None,
        targets_BT: Tensor | None = None,
        bounds_N: Tensor | None = None,
        places_P: Tensor | None = None,
    ) -> Tensor:
        assert reading is not None
        self.read += len(ids_BT)
        reading.finish()
        rows = reading.rows
        if places_P is not None:
            rows = [rows[place] for place in places_P.tolist()]
        logits_1PV = torch.zeros(1, len(rows), self.config.vocab_size)
        for place, row in enumerate(rows):
            if reading.cache.ids[row][-1] == SEP:  # the end of a prompt
                self.contexts.append(list(reading.cache.ids[row]))
                self._rest[row] = [*next(self._replies), SEP]
            rest = self._rest.get(row)
            self.pause(len(rest or ()))
            if rest:
                logits_1PV[0, place, rest.pop(0)] = 100.0
        return logits_1PV


class ScriptedBot(Chatbot):
    """A chatbot on a `ScriptedGPT`; `heard()` lists the contexts it replied to, as text."""

    def __init__(self, replies: Sequence[str], **settings: Any) -> None:
        tokenizer = vocabulary()
        config = replace(TINY, vocab_size=len(tokenizer), **{"max_repeats": 0, **settings})
        self.script = ScriptedGPT(config, [tokenizer.encode(reply) for reply in replies])
        super().__init__(self.script, tokenizer, config)

    def heard(self) -> list[str]:
        return [vocabulary().decode(ids) for ids in self.script.contexts]


class HeldBot(ScriptedBot):
    """A scripted chatbot that draws an id only when it may."""

    def __init__(self, replies: Sequence[str], **settings: Any) -> None:
        super().__init__(replies, **settings)
        self._permits = threading.Semaphore(0)
        self.script.pause = self._wait

    def _wait(self, left: int) -> None:
        if left:
            assert self._permits.acquire(timeout=60), "nobody let it go on"

    def may_draw(self, ids: int) -> None:
        self._permits.release(ids)


def save_tiny(root: Path, step: int, seed: int | None = None, **scores: float) -> Path:
    model = random_model(step if seed is None else seed, vocab_size=40)
    return save(root, step, CONFIG, vocabulary(), model.state_dict(), STATE, scores)


def is_model(path: Path, seed: int) -> bool:
    """Whether the checkpoint is whole and its weights are those of `random_model(seed)`."""
    stored = load(path)
    assert stored.training_state()["order"] == [1, 2]
    return same_weights(stored.weights, random_model(seed, vocab_size=40))


def same_weights(weights: dict[str, Tensor], model: GPT) -> bool:
    expected = model.state_dict()
    return weights.keys() == expected.keys() and all(
        torch.equal(weights[name], tensor) for name, tensor in expected.items()
    )


def reseal(path: Path) -> None:
    """Write the right checksums of the files as they are now, as a forger would."""
    manifest = json.loads((path / "manifest.json").read_text("utf-8"))
    manifest["sha256"] = {
        name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in manifest["sha256"]
    }
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def fresh(config: ModelConfig, seed: int = 0) -> GPT:
    """A model in float64 whose every weight differs from its initial value, biases and norms too.

    The matrices are made larger, so that attention is far from even.
    """
    torch.manual_seed(seed)
    model = GPT(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5).add_(torch.randn_like(parameter), alpha=0.1)
    return model


def random_ids(rows: int, length: int, vocabulary: int = 40, seed: int = 1) -> Tensor:
    return torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))


def save_with_pairs(folder: Path, bias: bool = True) -> Path:
    model = random_model(0, ngram_order=3, ngram_rows=50, bias=bias)
    assert isinstance(model.config, Config)
    return checkpoint.save(folder, 1, model.config, vocabulary(), model.state_dict(), {}, {})
