"""A GPT with a head that tells what kind of text it has read.

After "Improving Language Understanding by Generative Pre-Training" (Radford et al., 2018): the text
stands between `<start>` and `<extract>`, and a linear layer without bias reads the last state.
Names and meaning are those of Hugging Face's GPT2ForSequenceClassification.

Shapes, besides those of gpt.py:
    R  rows: a long text has several    N  texts    C  classes
"""

import torch
from torch import Tensor, nn

from smallgpt.config import ModelConfig
from smallgpt.model.gpt import GPT, at_positions
from smallgpt.model.loss import next_token_loss


def head_width(width: int, pooling: str) -> int:
    """How many numbers the head reads of states `width` wide."""
    return 2 * width if pooling == "last_mean" else width


class Classifier(nn.Module):
    """`transformer`, a GPT, and `score`, the head; `pooling` as the key of SentimentConfig."""

    def __init__(self, config: ModelConfig, classes: int, pooling: str = "last") -> None:
        super().__init__()
        self.config = config
        self.transformer = GPT(config)
        self.with_mean = pooling == "last_mean"
        self.score = nn.Linear(head_width(config.n_embd, pooling), classes, bias=False)
        nn.init.normal_(self.score.weight, mean=0.0, std=0.02)

    def forward(
        self,
        ids_RT: Tensor,
        ends_R: Tensor,
        targets_RT: Tensor | None = None,
        states_RTE: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of each row, (R, C); with targets, also the summed loss of the next tokens.

        Args:
            ends_R: the position at which the row is classified; what is behind it does not count.
            targets_RT: the next ids (see loss.next_token_loss).
            states_RTE: what `GPT.below_last_block` gave for these ids, where it is known already.
        """
        gpt = self.transformer
        x_RTE = gpt.below_last_block(ids_RT) if states_RTE is None else states_RTE
        if targets_RT is None and not self.with_mean:
            return self.score(gpt.ln_f(gpt.h[-1](x_RTE, ends_B=ends_R)))[:, 0]
        x_RTE = gpt.ln_f(gpt.h[-1](x_RTE))
        x_RE = at_positions(x_RTE, ends_R)[:, 0]
        if self.with_mean:
            seen_RT = torch.arange(x_RTE.shape[1], device=x_RTE.device) <= ends_R[:, None]
            mean_RE = (x_RTE * seen_RT[..., None]).sum(1) / (ends_R + 1)[:, None]
            x_RE = torch.cat([x_RE, mean_RE.to(x_RE.dtype)], 1)
        logits_RC = self.score(x_RE)
        if targets_RT is None:
            return logits_RC
        loss = next_token_loss(x_RTE.flatten(0, 1), gpt.wte.weight, targets_RT.flatten())
        return logits_RC, loss

    def freeze(self) -> None:
        """Let only the last block, the final norm and the head learn."""
        self.requires_grad_(False)
        for part in (self.transformer.h[-1], self.transformer.ln_f, self.score):
            part.requires_grad_(True)


def mean_by_text(logits_RC: Tensor, text_R: Tensor, texts: int) -> Tensor:
    """The mean of the logits of each text's rows, (N, C), in float32.

    Args:
        text_R: the number of the text each row belongs to, from 0; every text has a row.
    """
    logits_RC = logits_RC.float()
    summed = logits_RC.new_zeros(texts, logits_RC.shape[1]).index_add(0, text_R, logits_RC)
    # torch.bincount would wait for a GPU.
    rows = logits_RC.new_zeros(texts).index_add(0, text_R, logits_RC.new_ones(len(text_R)))
    return summed / rows[:, None]
