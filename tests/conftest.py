"""What several tests share: a tiny trained checkpoint, models with a script, commands."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smallgpt.chatbot import Chatbot
from smallgpt.checkpoint import load, save
from smallgpt.config import Config
from smallgpt.errors import UserError
from smallgpt.model import GPT, KeyValueCache
from smallgpt.tokenizer import SEP, Tokenizer

# A shell that starts the tests in the background has Ctrl-C ignored, by our children as well.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent
CHARACTERS = "你我好吗的是早上晚安天气不错呀，。？！ ab<pad>se1é"
TINY = Config(block_size=32, n_layer=2, n_head=4, n_embd=32, max_new_tokens=10, device="cpu")
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
    """A model that says the given replies in turn, each character after `delay` seconds.

    `contexts` lists what it was given to reply to, as ids.
    """

    def __init__(self, config: Config, replies: Sequence[Sequence[int]], delay: float) -> None:
        super().__init__(config)
        self.contexts: list[list[int]] = []
        self._replies = itertools.cycle(replies)
        self._rest: list[int] = []
        self._delay = delay

    def forward(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        targets_BT: Tensor | None = None,
    ) -> Tensor:
        assert cache is not None
        time.sleep(self._delay)
        if cache.length == 0:
            self.contexts.append(ids_BT[0].tolist())
            self._rest = [*next(self._replies), SEP]
        cache.length += ids_BT.shape[1]
        logits_BTV = torch.zeros(*ids_BT.shape, self.config.vocab_size)
        logits_BTV[0, -1, self._rest.pop(0)] = 100.0
        return logits_BTV


class ScriptedBot(Chatbot):
    """A chatbot on a `ScriptedGPT`; `heard()` lists the contexts it replied to, as text."""

    def __init__(self, replies: Sequence[str], delay: float = 0.0, **settings: Any) -> None:
        tokenizer = vocabulary()
        config = replace(TINY, vocab_size=len(tokenizer), **settings)
        self.script = ScriptedGPT(config, [tokenizer.encode(reply) for reply in replies], delay)
        super().__init__(self.script, tokenizer, config)

    def heard(self) -> list[str]:
        return [vocabulary().decode(ids) for ids in self.script.contexts]


# Checkpoints of untrained models: quickly made, and told apart by the seed of their weights.

STATE: dict[str, Any] = {"step": 7, "moments": {"wte": torch.arange(60_000.0)}, "order": [1, 2]}
CONFIG = replace(TINY, vocab_size=40)


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


def refusal(action: Callable[[], object]) -> str:
    """What the `UserError` says that `action` must raise."""
    with pytest.raises(UserError) as error:
        action()
    return str(error.value)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for checkpoints, written without waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return tmp_path / "checkpoints"


@pytest.fixture
def saved(root: Path) -> Path:
    """The checkpoint of `random_model(1)`."""
    return save_tiny(root, 1)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny models are slower on many threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `text.txt`, `run.yaml` and the run's `checkpoints/`: cpt60 and cpt120."""
    from smallgpt import config_file, pretrain

    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text(DIALOGUES, encoding="utf-8")
    settings = {
        "data_path": str(folder / "text.txt"),
        "checkpoint_root": str(folder / "checkpoints"),
        "device": "cpu",
        "dtype": "float32",
        "block_size": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 32,
        "max_steps": 120,
        "save_freq": 60,
        "eval_freq": 0,
        "train_batch": 4,
        "lr": 0.01,
        "warmup_steps": 10,
        "decay_steps": 120,
        "max_new_tokens": 12,
        "temperature": 0.0,
    }
    lines = [f"{key}: {value}\n" for key, value in settings.items()]
    (folder / "run.yaml").write_text("".join(lines), encoding="utf-8")
    pretrain.run(config_file.load(folder / "run.yaml"))
    return folder


@pytest.fixture(scope="session")
def trained(trained_run: Path) -> Path:
    """A trained checkpoint directory; not to be changed."""
    return trained_run / "checkpoints" / "cpt120"


@pytest.fixture
def trained_copy(trained: Path, tmp_path: Path) -> Path:
    """A trained checkpoint directory of this test's own, alone in its folder."""
    return Path(shutil.copytree(trained, tmp_path / "copy" / "cpt120"))


Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run Python in a process of its own, in an empty folder, with our modules at hand.

    The result holds bytes: what a program writes is compared exactly.
    """

    def run(
        *arguments: str | Path, typed: bytes = b"", env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        folder = tmp_path / "elsewhere"
        folder.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            input=typed,
            cwd=folder,
            env=python_environment() | dict(env or {}),
            capture_output=True,
            timeout=60,
            check=False,
        )

    return run


def python_environment() -> dict[str, str]:
    """Environment variables under which Python finds `smallgpt` and this file."""
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    # PYTHONUNBUFFERED would hide a forgotten flush.
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}


def run_on_a_full_disk(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run Python in a process of its own whose standard output is a full disk."""
    with Path("/dev/full").open("wb") as full:
        return subprocess.run(
            [sys.executable, *arguments],
            env=python_environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )
