"""The whole GPT: a pre-norm decoder with learned positions, GELU and (mostly) a tied output head.

After "Improving Language Understanding by Generative Pre-Training" (Radford et al., 2018) and
GPT-2. Parameters carry GPT-2's standard names, so that a checkpoint is a Hugging Face model.

Shapes, used as suffixes of names:
    B  rows of a batch          E  width (n_embd)         V  vocabulary
    T  new positions of a row   H  heads                  D  width of a head, E / H
    S  positions attended to: T, and in generation those in the cache before them
    N  texts packed into the rows of a batch; in generation new ids
    P  positions of the batch that logits are wanted of
"""

import math
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallgpt.config import ModelConfig
from smallgpt.model.attention import additive, attend
from smallgpt.model.cache import Reading
from smallgpt.model.loss import next_token_loss

if TYPE_CHECKING:
    from smallgpt.model.native import NativeForward


class Linear(nn.Linear):
    """A linear layer, of which a part of the outputs can be asked for."""

    def forward(self, x: Tensor, outputs: slice = slice(None)) -> Tensor:
        """(…, in) to (…, out), or to as many as `outputs` selects."""
        return F.linear(x, self.weight[outputs], None if self.bias is None else self.bias[outputs])


class Attention(nn.Module):
    """Multi-head causal self-attention with queries, keys and values from one matrix."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTE: Tensor,
        mask: Tensor | None,
        reading: Reading | None,
        ends_B: Tensor | None,
        bounds_N: Tensor | None,
    ) -> Tensor:
        """Mix in what the other positions of the row hold; arguments as of `Block.forward`."""
        B, T, E = x_BTE.shape
        if reading is not None:
            y_N1E = reading.attend(self.layer, self.c_attn(x_BTE))
            return self.resid_dropout(self.c_proj(y_N1E))
        if bounds_N is not None:
            from torch.nn.attention.varlen import varlen_attn  # slow to import

            q, k, v = self.c_attn(x_BTE).view(B * T, 3, self.n_head, E // self.n_head).unbind(1)
            y = cast(Tensor, varlen_attn(q, k, v, bounds_N, bounds_N, T, T, window_size=(-1, 0)))
            return self.resid_dropout(self.c_proj(y.reshape(B, T, E)))
        if ends_B is None:
            qkv = self.c_attn(x_BTE).split(E, dim=2)
        else:
            q_B1E = self.c_attn(at_positions(x_BTE, ends_B), slice(E))
            qkv = (q_B1E, *self.c_attn(x_BTE, slice(E, None)).split(E, dim=2))
            mask = (torch.arange(T, device=x_BTE.device) <= ends_B[:, None])[:, None, None, :]
        q_BHTD, k_BHSD, v_BHSD = (
            part.view(B, -1, self.n_head, E // self.n_head).transpose(1, 2) for part in qkv
        )
        dropout = self.dropout if self.training else 0.0
        y_BHTD = attend(q_BHTD, k_BHSD, v_BHSD, mask, dropout)
        return self.resid_dropout(self.c_proj(y_BHTD.transpose(1, 2).reshape(B, -1, E)))


def at_positions(x_BTE: Tensor, positions_B: Tensor) -> Tensor:
    """One position of each row, (B, 1, E)."""
    # Not take_along_dim, for which a compiled model must know each size for certain.
    return x_BTE.gather(1, positions_B[:, None, None].expand(-1, 1, x_BTE.shape[2]))


class FeedForward(nn.Module):
    """Two linear layers with GELU between them: the exact (erf) one, or GPT-2's approximation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.approximate = "tanh" if config.activation == "gelu_new" else "none"

    def forward(self, x_BTE: Tensor) -> Tensor:
        """Transform each position by itself, (B, T, E)."""
        y = F.gelu(self.c_fc(x_BTE), approximate=self.approximate)
        return self.dropout(self.c_proj(y))


class Block(nn.Module):
    """One layer: attention, then feed-forward, each normalised before and added after."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = _norm(config)
        self.attn = Attention(config, layer)
        self.ln_2 = _norm(config)
        self.mlp = FeedForward(config)

    def forward(
        self,
        x_BTE: Tensor,
        mask: Tensor | None = None,
        reading: Reading | None = None,
        ends_B: Tensor | None = None,
        bounds_N: Tensor | None = None,
    ) -> Tensor:
        """Run the layer, (B, T, E); with `ends_B`, only for this position of each row, (B, 1, E),
        which is a fraction of the work.

        Args:
            mask: added to the attention scores; without it and `bounds_N` attention is causal.
            reading: instead of both, in generation: what is read, with what was read before.
            bounds_N: where the texts of the batch begin and end, see `GPT.forward`.
        """
        mixed = self.attn(self.ln_1(x_BTE), mask, reading, ends_B, bounds_N)
        if ends_B is not None:
            x_BTE = at_positions(x_BTE, ends_B)
        x_BTE = x_BTE + mixed
        return x_BTE + self.mlp(self.ln_2(x_BTE))


class NgramEmbedding(nn.Module):
    """Embeddings of the 2, 3 … characters that end at each position, found by their hash.

    After "Over-Tokenized Transformer: Vocabulary is Generally Worth Scaling" (arXiv:2501.16975):
    what a pair or triple of characters means need not be worked out by the layers.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        orders = range(2, config.ngram_order + 1)
        self.rows = config.ngram_rows
        self.dropout = config.ngram_dropout
        self.tables = nn.ModuleList(nn.Embedding(self.rows, config.ngram_embd) for _ in orders)
        self.projections = nn.ModuleList(
            nn.Linear(config.ngram_embd, config.n_embd, bias=False) for _ in orders
        )

    def forward(self, ids_BS: Tensor, positions_BT: Tensor) -> Tensor:
        """The sum over all lengths, (B, T, E). An n-gram that begins before its dialogue counts
        what is missing as one and the same id.

        Args:
            ids_BS: the ids, with those just before them where there are any.
            positions_BT: position of each token in its dialogue, or (T,) for all rows.
        """
        T, S = positions_BT.shape[-1], ids_BS.shape[1]
        hash_BT = ids_BS[:, -T:]
        total = torch.zeros((), device=ids_BS.device)
        for back, (table, project) in enumerate(zip(self.tables, self.projections, strict=True), 1):
            earlier_BT = F.pad(ids_BS, (back, 0))[:, S - T : S]
            earlier_BT = torch.where(positions_BT >= back, earlier_BT + 1, 0)
            hash_BT = hash_BT * 1_000_003 + earlier_BT
            # Knuth's multiplicative hash: the high bits of the product are well mixed.
            row_BT = ((hash_BT * 2_654_435_761) >> 20) % self.rows
            x_BTN = table(row_BT)
            if self.training and self.dropout:
                kept_BT1 = torch.rand_like(x_BTN[..., :1]) >= self.dropout
                x_BTN = x_BTN * kept_BT1 / (1 - self.dropout)
            total = total + project(x_BTN)
        return total


def _norm(config: ModelConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.n_embd, config.layer_norm_epsilon, bias=config.bias)


class GPT(nn.Module):
    """A GPT language model of the given shape, with fresh weights.

    Initialisation: normal(0, 0.02), projections into the residual stream 0.02 / sqrt(2 n_layer).
    """

    native: "NativeForward | None" = None
    """Computes the layers of a reading in C, where generation is on a CPU that has it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.ngrams = NgramEmbedding(config) if config.ngram_order > 1 else None
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = _norm(config)
        if not config.tied:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                std = 0.02
                if name.endswith("c_proj.weight"):
                    std /= math.sqrt(2 * config.n_layer)
                if name.startswith("ngrams.projections."):
                    std = config.ngram_embd**-0.5
                nn.init.normal_(parameter, mean=0.0, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

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
        """Logits of the next token at every position, (B, T, V); with targets, their loss.

        Args:
            ids_BT: token ids.
            positions_BT: position of each token in its dialogue; by default 0, 1, 2 …
            documents_BT: number of the dialogue each position belongs to, in a packed row;
                attention stays within it. By default a row is one dialogue.
            reading: in generation, whose ids `ids_BT` then are; the positions are its too.
            targets_BT: the next ids; the result is then their summed loss, a scalar in nats
                (see loss.next_token_loss).
            bounds_N: instead of `documents_BT`, for variable-length attention: where each text of
                the batch begins, counted over the positions of all rows, and B * T at the end;
                int32. No text goes over the end of its row.
            places_P: only of these positions, counted over those of all rows: (1, P, V).
        """
        if reading is not None and self.native is not None:
            return self.native.logits(reading, places_P)[None]
        x_BTE = self.embed(ids_BT, positions_BT, reading)
        mask = None if documents_BT is None else _attention_mask(x_BTE, documents_BT)
        for block in self.h:
            # Compiled are whole rows only: in generation each id would be another length.
            run = block if reading is None else block.forward
            x_BTE = run(x_BTE, mask, reading, None, bounds_N)
        if reading is not None:
            reading.finish()
        if places_P is not None:
            x_BTE = x_BTE.flatten(0, 1)[None, places_P]
        x_BTE = self.ln_f(x_BTE)
        if targets_BT is not None:
            head = self.wte if self.config.tied else self.lm_head
            return next_token_loss(x_BTE.flatten(0, 1), head.weight, targets_BT.flatten())
        return F.linear(x_BTE, self.wte.weight) if self.config.tied else self.lm_head(x_BTE)

    def below_last_block(self, ids_BT: Tensor) -> Tensor:
        """What the last block is given, (B, T, E), where each row is one text."""
        x_BTE = self.embed(ids_BT)
        for block in self.h[:-1]:
            x_BTE = block(x_BTE)
        return x_BTE

    def embed(
        self, ids_BT: Tensor, positions_BT: Tensor | None = None, reading: Reading | None = None
    ) -> Tensor:
        """What the first block is given, (B, T, E); arguments as those of `forward`."""
        ids_BS = ids_BT
        if reading is not None:
            ids_BS, positions_BT = reading.windows_NS, reading.positions_N1
        elif positions_BT is None:
            positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        x_BTE = self.wte(ids_BT) + self.wpe(positions_BT)
        if self.ngrams is not None:
            x_BTE = x_BTE + self.ngrams(ids_BS, positions_BT)
        return self.drop(x_BTE)

    def parameter_count(self) -> int:
        """Number of parameters without the positions, the figure models are named by."""
        return sum(p.numel() for p in self.parameters()) - self.wpe.weight.numel()


def _attention_mask(x_BTE: Tensor, documents_BT: Tensor) -> Tensor:
    """What may be attended to in packed rows: an additive mask, made once for all layers."""
    T = x_BTE.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=x_BTE.device).tril()
    same = documents_BT[:, None, :, None] == documents_BT[:, None, None, :]
    return additive(causal & same, x_BTE.dtype)
