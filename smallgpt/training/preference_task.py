"""What is learnt from preferences in a step, and how good the model is on others."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from smallgpt.chat.chatbot import Chatbot
from smallgpt.config import Config
from smallgpt.data.corpus import IntArray
from smallgpt.data.packing import RowOrder
from smallgpt.distributed.world import ALONE, World
from smallgpt.model.gpt import GPT
from smallgpt.runtime import Runtime
from smallgpt.tokenizer.characters import Tokenizer
from smallgpt.training.preference_examples import Examples, log_ps
from smallgpt.training.preference_loss import (
    Balance,
    PreferenceFigures,
    Scored,
    divergence,
    dpo,
    kto,
    reason_to_stop,
)
from smallgpt.training.replies import generate_replies
from smallgpt.training.rows import MixedPart, MixedRows
from smallgpt.training.trainer import Task
from smallgpt.training.validation import in_batches, in_evaluation, inputs_of, summed_loss
from smallgpt.utils.commands import chat_with
from smallgpt.utils.errors import UserError

SAMPLE = 64
"""Of what is learnt from, so many are looked at to see whether anything is learnt."""
SAMPLE_REPLIES = 3
MixedInputs = tuple[dict[str, Tensor], int]
"""A `MixedPart` as inputs of the model."""


class Part(NamedTuple):
    """Some pairs, or rated replies, of a step; kl is that of all of the step."""

    numbers: IntArray
    kl: Tensor


class PreferenceTask(Task):
    """Learning which replies are better (see training.trainer.Task).

    Args:
        model: moved to the device; trained in place. Until the reference is measured it is the
            reference.
        fingerprint: of the preferences.
        mixed_rows: dialogues to learn from as well.
    """

    model: GPT
    keeps_every_best = True

    def __init__(
        self,
        config: Config,
        here: Runtime,
        model: GPT,
        tokenizer: Tokenizer,
        examples: Examples,
        fingerprint: str,
        world: World = ALONE,
        mixed_rows: MixedRows | None = None,
    ) -> None:
        self.config, self.runtime, self.world = config, here, world
        self.model, self.tokenizer, self.examples = model, tokenizer, examples
        self.order = RowOrder(len(examples.train), config.seed)
        self.mixed_rows = mixed_rows
        self.items_a_step = config.train_batch - config.mixed_rows()
        """Pairs, or rated replies; the others of `train_batch` are rows that are mixed in."""
        random = np.random.default_rng((config.seed, 12))  # a file may have all good replies first
        most = config.test_batch * config.eval_steps
        self.held_back = random.permutation(examples.validation)[:most]
        """What is validated on."""
        self.sample = random.permutation(examples.train)[:SAMPLE]
        """Of what is learnt from, what is looked at to see whether anything is learnt."""
        self.steps_per_epoch = len(examples.train) / self.items_a_step
        self.reference: Tensor | None = None
        """log p of all replies for the model that training began with, (K, N)."""
        self.pairs = config.preference_loss == "dpo"
        self.balance = Balance.of(*(int((examples.good == good).sum()) for good in (True, False)))
        split = [config.train_percent, config.block_size, config.seed]
        self._data = [fingerprint, config.preference_loss, *split]

    @property
    def _reference(self) -> Tensor:
        assert self.reference is not None
        return self.reference

    def parts(self, step: int, count: int) -> tuple[Sequence[Part | MixedPart], int]:
        """The pairs of a step in `count` parts, and how many ids their replies have. For kto with
        the divergence that the model now has, which needs all of the step. As many parts more of
        what is mixed in."""
        due = self.items_a_step
        numbers = self.examples.train[self.order.take(step * due, due)]
        kl = torch.zeros((), device=self.runtime.device)
        if not self.pairs:
            unrelated = self._reference[1, torch.from_numpy(numbers)]
            kl = divergence(self._scores(numbers, [1])[0] - unrelated).to(kl.device)
        kinds = range(2 if self.pairs else 1)
        ids = sum(len(self.examples.replies[n][kind]) for n in numbers for kind in kinds)
        parts: list[Part | MixedPart] = [Part(some, kl) for some in np.array_split(numbers, count)]
        if self.mixed_rows:
            mixed = self.mixed_rows.parts(step, count)
            ids += sum(batch.target_count() for batch, _ in mixed)
            parts += mixed
        return parts, ids

    def on_device(self, part: Part | MixedPart) -> Part | MixedInputs:
        """Preferences as they are: their rows are made where they are used."""
        if isinstance(part, Part):
            return part
        batch, characters = part
        return inputs_of(batch, self.runtime), characters

    def loss(self, network: nn.Module, part: Part | MixedInputs) -> Tensor:
        """What the part adds to the loss of the step: the mean over its pairs, or rated replies,
        and that over the characters of what is mixed in, each weighted by its share of
        `train_batch`."""
        if isinstance(part, Part):
            return self._preference_loss(network, part)
        inputs, characters = part
        share = self.config.mixed_rows() / self.config.train_batch
        return share * summed_loss(network, inputs, self.runtime) / characters

    def _preference_loss(self, network: nn.Module, part: Part) -> Tensor:
        config, kinds = self.config, [0, 1] if self.pairs else [0]
        log_p_KN = log_ps(network, self.examples, part.numbers, kinds, self.runtime)
        reference_KN = self._reference[: len(kinds), torch.from_numpy(part.numbers)]
        ratio_KN = log_p_KN - reference_KN.to(log_p_KN.device)
        if self.pairs:
            smoothing = config.preference_smoothing
            loss_N = dpo(ratio_KN[0], ratio_KN[1], config.preference_beta, smoothing)
            if config.preference_likelihood:
                said = [len(self.examples.replies[n][0]) for n in part.numbers]
                lengths_N = torch.tensor(said, device=log_p_KN.device)
                loss_N = loss_N - config.preference_likelihood * log_p_KN[0] / lengths_N
        else:
            good_N = self.examples.good[torch.from_numpy(part.numbers)].to(log_p_KN.device)
            loss_N = kto(ratio_KN[0], good_N, part.kl, config.preference_beta, self.balance)
        return loss_N.sum() / config.train_batch

    @torch.no_grad()
    def _scores(
        self,
        numbers: IntArray,
        kinds: Sequence[int],
        stopped: Callable[[], bool] = lambda: False,
    ) -> Tensor:
        """log p of replies, (K, N) on the CPU: the processes take turns, all get all of them."""
        found = torch.zeros(len(kinds), len(numbers))
        size = max(1, self.config.train_batch // (self.config.accumulate * self.world.size))
        batches = in_batches(np.arange(len(numbers)), size)
        for some in in_evaluation(self.model, batches, "scoring replies", stopped, self.world):
            log_p = log_ps(self.model, self.examples, numbers[some], kinds, self.runtime)
            found[:, some] = log_p.cpu()
        if self.world.size > 1:
            found = torch.tensor(self.world.sum(*found.flatten().tolist())).view(found.shape)
        return found

    def measure_reference(self) -> None:
        """Score all replies with the model as it is."""
        kinds = range(3 if self.pairs else 2)
        every = np.arange(len(self.examples.contexts))
        self.reference = self._scores(every, kinds)

    def validate(self, stopped: Callable[[], bool]) -> PreferenceFigures | None:
        """Loss and rewards on preferences kept for validation, and on some that are learnt from."""
        config, examples = self.config, self.examples
        kinds = range(3 if self.pairs else 2)
        found = list[Scored]()
        for numbers in (self.held_back, self.sample):
            scores, places = self._scores(numbers, kinds, stopped), torch.from_numpy(numbers)
            lengths = torch.tensor([len(examples.replies[n][0]) for n in numbers])
            reference = self._reference[:, places]
            found.append(Scored(scores, reference, examples.good[places], lengths))
        if any(self.world.sum(stopped())):
            return None
        return PreferenceFigures.of(config, self.balance, *found)

    def reason_to_stop(self, step: int, figures: Any) -> UserError | None:
        """Why the run learns nothing, or breaks down."""
        return reason_to_stop(self.config, step, figures)

    def weakness(self, best: Any, was_better_before: bool) -> str:
        """Where replies that are not learnt from are told apart no better than by chance."""
        accuracy = best.get("reward_accuracy", 1.0)
        if accuracy > 0.5:
            return ""
        return (
            f"of the preferences kept for validation it gets {100 * accuracy:.0f} % right, no more "
            "than chance: it needs more of them, or they contradict each other"
        )

    def how_to_use(self, path: Path, it: str = "it") -> str:
        """The command that chats with it."""
        return f"chat with {it}: {chat_with(path)}"

    def sample_replies(self) -> list[tuple[str, str]]:
        """Replies to some messages kept for validation."""
        talks = {tuple(self.examples.messages[n]): None for n in self.examples.validation}
        some, seed = list(talks)[:SAMPLE_REPLIES], self.config.seed
        bot = Chatbot(self.model, self.tokenizer, self.config)
        replies = generate_replies(bot, some, seed) or []
        return [(talk[-1], reply) for talk, reply in zip(some, replies, strict=True)]

    def state(self, completed: int) -> dict[str, Any]:
        """The reference, so that a run goes on with the one it began with."""
        return {"reference": self.reference, "preferences": self._data}

    def load_state(self, state: dict[str, Any], completed: int) -> bool:
        """Take the reference of the run that goes on; False where the preferences are others."""
        self.reference = state.get("reference")
        same: bool = state.get("preferences") == self._data
        return same
