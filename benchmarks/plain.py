"""The plain recipe that the product is measured against: how the earlier program trained.

Every dialogue is cut or padded to one row; queries, keys and values have matrices of their own;
attention is written out; float32 throughout; unfused AdamW; the loss is a mean over all positions,
padding included. Nothing here is used by the product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallgpt.data.corpus import Corpus
from smallgpt.tokenizer.characters import PAD

IntArray = npt.NDArray[np.int64]


def padded_rows(corpus: Corpus, dialogues: Sequence[int] | IntArray, block_size: int) -> Tensor:
    """One row a dialogue, cut or padded to block_size + 1 ids: inputs and, shifted, targets."""
    rows = np.full((len(dialogues), block_size + 1), PAD, np.int64)
    for row, dialogue in zip(rows, dialogues, strict=True):
        ids = corpus.dialogue(int(dialogue))[: block_size + 1]
        row[: len(ids)] = ids
    return torch.from_numpy(rows)


def real_targets(rows: Tensor) -> Tensor:
    """Which targets of padded rows count: characters, `<sep>`, and the first `<pad>` behind them.

    Returns:
        bool, (B, block_size).
    """
    inputs, targets = rows[:, :-1], rows[:, 1:]
    return (targets != PAD) | (inputs != PAD)


class PlainAttention(nn.Module):
    """Explicit softmax attention with three projections."""

    mask: Tensor

    def __init__(self, width: int, heads: int, block_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        mask = torch.tril(torch.ones(1, 1, block_size, block_size))
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, E) to (B, T, E)."""
        B, T, E = x.shape
        shape = (B, T, self.heads, E // self.heads)
        q = self.query(x).view(shape).transpose(1, 2)
        k = self.key(x).view(shape).transpose(1, 2)
        v = self.value(x).view(shape).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / math.sqrt(E // self.heads)
        scores = scores.masked_fill(self.mask[:, :, :T, :T] == 0, float("-inf"))
        y = torch.softmax(scores, dim=-1) @ v
        return self.out(y.transpose(1, 2).contiguous().view(B, T, E))


class PlainBlock(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, heads: int, block_size: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.attention = PlainAttention(width, heads, block_size)
        self.ln2 = nn.LayerNorm(width)
        self.dense = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, E) to (B, T, E)."""
        x = x + self.attention(self.ln1(x))
        return x + self.out(F.gelu(self.dense(self.ln2(x))))


class PlainGPT(nn.Module):
    """The published architecture, written plainly; the head is tied to the embedding."""

    def __init__(self, vocab_size: int, layers: int, heads: int, width: int, block_size: int):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, width)
        self.wpe = nn.Embedding(block_size, width)
        self.blocks = nn.ModuleList(PlainBlock(width, heads, block_size) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.head.weight = self.wte.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith("out.weight")
                nn.init.normal_(parameter, 0.0, 0.02 / math.sqrt(2 * layers) if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits, (B, T, V)."""
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


class PlainTrainer:
    """The plain recipe's model, optimizer and rows.

    Args:
        train: padded rows to train on.
        layers, heads, width: the model's shape.
        batch: rows a step.
        steps: at this step the cosine reaches `min_lr`.
    """

    def __init__(
        self,
        train: Tensor,
        vocab_size: int,
        layers: int,
        heads: int,
        width: int,
        batch: int,
        steps: int,
        device: torch.device,
        lr: float = 1e-3,
        min_lr: float = 1e-4,
        warmup_steps: int = 20,
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        block_size = train.shape[1] - 1
        self.train, self.batch, self.steps, self.device = train, batch, steps, device
        self.lr, self.min_lr, self.warmup_steps, self.seed = lr, min_lr, warmup_steps, seed
        self.model = PlainGPT(vocab_size, layers, heads, width, block_size).to(device)
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": vectors},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr, betas=(0.9, 0.95), weight_decay=0.0, foreach=False, fused=False
        )
        self.completed = 0

    def step(self) -> int:
        """One step; returns how many of its targets were real characters."""
        rows = self._next_rows().to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        logits = self.model(rows[:, :-1])
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), rows[:, 1:].reshape(-1))
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=False)
        self.optimizer.step()
        self.completed += 1
        return int(real_targets(rows).sum())

    def _next_rows(self) -> Tensor:
        steps_an_epoch = max(1, len(self.train) // self.batch)
        epoch, at = divmod(self.completed, steps_an_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.train))
        return self.train[torch.from_numpy(order[at * self.batch : (at + 1) * self.batch])]

    def _learning_rate(self) -> float:
        step = self.completed
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
        return self.min_lr + (self.lr - self.min_lr) * cosine

    @torch.inference_mode()
    def loss(self, rows: Tensor, batch: int = 32) -> float:
        """Mean nats over the real targets of padded rows.

        Rows of like length go together without their common padding, which changes nothing.
        """
        total, count = 0.0, 0
        lengths = real_targets(rows).sum(1)
        for part in rows[lengths.argsort()].split(batch):
            longest = int(real_targets(part).sum(1).max())
            part = part[:, : longest + 1].to(self.device)
            real = real_targets(part)
            logits = self.model(part[:, :-1])[real]
            total += F.cross_entropy(logits, part[:, 1:][real], reduction="sum").item()
            count += int(real.sum())
        return total / count
