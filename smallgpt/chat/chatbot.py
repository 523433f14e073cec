"""A trained model you talk to: checkpoint + generation + conversation."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import torch

from smallgpt.chat.conversation import Conversation
from smallgpt.checkpoints import checkpoint, huggingface
from smallgpt.config import SamplingConfig
from smallgpt.model import inference
from smallgpt.model.generate import generate
from smallgpt.model.gpt import GPT
from smallgpt.runtime import choose_precision
from smallgpt.tokenizer.characters import PAD, SEP, Tokenizer
from smallgpt.utils import background


class Chatbot:
    """Replies to what is said, with what was said before in mind.

    Args:
        model: in evaluation mode.
        tokenizer: its vocabulary.
        sampling: how replies are drawn.
        seed: the same seed and the same talk give the same replies.
        await_weights: called before each reply; returns when the model has its weights.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        sampling: SamplingConfig,
        seed: int = 0,
        await_weights: Callable[[], object] = lambda: None,
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.conversation = Conversation(tokenizer, model.config.block_size)
        self.left_out = 0
        """Characters of the last prompt that did not fit the context."""
        self._tokenizer = tokenizer
        self._await_weights = await_weights
        self._generator = torch.Generator().manual_seed(seed)
        unused = range(len(tokenizer), model.config.vocab_size)
        self._banned = [*tokenizer.suppressed_ids(), *unused]

    def reply(self, text: str) -> str:
        """The whole reply; it and `text` join the conversation."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Generator[str, None, None]:
        """The reply, character by character.

        The turn joins the conversation also where the iterator is closed early (Ctrl-C).
        """
        self._await_weights()
        self.conversation.add(text)
        said, ids = "", list[int]()
        try:
            context, self.left_out = self.conversation.context(self.sampling.max_new_tokens)
            for token in generate(
                self.model, context, self.sampling, {SEP, PAD}, self._banned, self._generator
            ):
                ids.append(token)
                text = self._tokenizer.decode(ids)
                if text.endswith("\ufffd"):  # the bytes so far are no whole character
                    continue
                more, said = text[len(said) :], text
                yield more
        finally:
            self.conversation.add(said)

    def flush(self) -> None:
        """Forget the conversation."""
        self.conversation.flush()


def load(
    path: str | Path,
    sampling: SamplingConfig | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    dtype: str = "auto",
    wait: bool = True,
) -> Chatbot:
    """A chatbot from a checkpoint directory; nothing else is needed.

    Args:
        sampling: by default as the checkpoint was configured.
        dtype: precision of the weights: auto, float32, bfloat16, float16 or int8.
        wait: False returns while the weights are still made ready. The first reply waits for them,
            and raises the UserError if their file is damaged.

    Raises:
        UserError: there is no usable checkpoint at `path`, or the device cannot compute in `dtype`.
    """
    stored = checkpoint.load(Path(path).expanduser(), verify_weights=False)
    device = torch.device(device)
    model = huggingface.hollow_model(stored.config).eval()
    precision = choose_precision(dtype, device, model.parameter_count())

    verified = background.begin(stored.verify_weights)
    filled = background.begin(
        lambda: inference.load_inference_weights(
            model,
            stored.weights,
            precision.dtype,
            precision.int8,
            device,
            background.end_with_the_program,
        )
    )

    def await_weights() -> None:
        verified.result()
        filled.result()

    if wait:
        await_weights()
    return Chatbot(model, stored.tokenizer, sampling or stored.config, seed, await_weights)
