"""The whole GPT: a pre-norm decoder with learned positions, GELU and (mostly) a tied output head.

After "Improving Language Understanding by Generative Pre-Training" (Radford et al., 2018) and
GPT-2. Parameters carry GPT-2's standard names, so that a checkpoint is a Hugging Face model.

Shapes, used as suffixes of names:
    B  rows of a batch          E  width (n_embd)         V  vocabulary
    T  new positions of a row   H  heads                  D  width of a head, E / H
    S  positions attended to: T, and in generation those in the cache before them
    N  texts packed into the rows of a batch
    P  positions of the batch that logits are wanted of
"""

import copy
import itertools
import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallgpt.config import ModelConfig
from smallgpt.model.loss import next_token_loss


class KeyValueCache:
    """Keys and values of the positions read so far, for generation one id at a time.

    Args:
        config: the model's shape.
        weight: one of the model's, for the device and the type.
        rows: B, the number of rows generated side by side.
    """

    def __init__(self, config: ModelConfig, weight: Tensor, rows: int = 1) -> None:
        # A CPU is quicker at attention in float32, in which it need not copy keys and values.
        on_cpu = weight.device.type == "cpu"
        self.dtype = torch.promote_types(weight.dtype, torch.float32) if on_cpu else weight.dtype
        width = config.n_embd // config.n_head
        shape = (config.n_layer, 2, rows, config.n_head, config.block_size, width)
        self._hold(torch.empty(shape, device=weight.device, dtype=self.dtype))
        self.ids_BS = torch.zeros(rows, config.block_size, device=weight.device, dtype=torch.long)
        self.length = 0
        """How many positions were read; what `ids_BS` and `keys_values` hold behind is void."""

    def keep_prefix(self, ids: Sequence[int]) -> int:
        """Forget what follows the longest common prefix of the (only) row and `ids`; its length."""
        read = self.ids_BS[0, : self.length].tolist()
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(read, ids, strict=False))
        self.length = sum(1 for _ in same)
        return self.length

    def repeated(self, rows: int, positions: int) -> "KeyValueCache":
        """A cache of so many rows of so many positions, each of which has read what the (only) row
        of this one has."""
        other, end = copy.copy(self), self.length
        layers, two, _, heads, _, width = self._memory.shape
        other._hold(self._memory.new_empty(layers, two, rows, heads, positions, width))
        other._memory[..., :end, :] = self._memory[..., :end, :]
        other.ids_BS = self.ids_BS.new_zeros(rows, positions)
        other.ids_BS[:, :end] = self.ids_BS[:, :end]
        return other

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, which become the first ones."""
        kept = self._memory[:, :, rows, :, : self.length]
        self._hold(self._memory[:, :, : len(rows)])
        self._memory[..., : self.length, :] = kept
        self.ids_BS = self.ids_BS[rows]

    def _hold(self, memory: Tensor) -> None:
        """Keep keys and values in `memory`: (layers, 2, B, H, S, D)."""
        self._memory = memory
        self.keys_values = [tuple(layer) for layer in memory]

    def extend(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Append one layer's new keys and values; return all of them, (B, H, S, D) each.

        `length` moves on only when the model has run all its layers.
        """
        end = self.length + k_BHTD.shape[2]
        keys, values = self.keys_values[layer]
        keys[:, :, self.length : end] = k_BHTD
        values[:, :, self.length : end] = v_BHTD
        return keys[:, :, :end], values[:, :, :end]


class Attention(nn.Module):
    """Multi-head causal self-attention with queries, keys and values from one matrix."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTE: Tensor,
        mask: Tensor | None,
        cache: KeyValueCache | None,
        ends_B: Tensor | None,
        bounds_N: Tensor | None,
    ) -> Tensor:
        """Mix in what the other positions of the row hold; arguments as of `Block.forward`."""
        B, T, E = x_BTE.shape
        if bounds_N is not None:
            from torch.nn.attention.varlen import varlen_attn  # slow to import

            q, k, v = self.c_attn(x_BTE).view(B * T, 3, self.n_head, E // self.n_head).unbind(1)
            y = cast(Tensor, varlen_attn(q, k, v, bounds_N, bounds_N, T, T, window_size=(-1, 0)))
            return self.resid_dropout(self.c_proj(y.reshape(B, T, E)))
        if ends_B is None:
            qkv = self.c_attn(x_BTE).split(E, dim=2)
        else:
            weight, bias = self.c_attn.weight, self.c_attn.bias
            q_bias, kv_bias = (None, None) if bias is None else bias.split((E, 2 * E))
            q_B1E = F.linear(at_positions(x_BTE, ends_B), weight[:E], q_bias)
            qkv = (q_B1E, *F.linear(x_BTE, weight[E:], kv_bias).split(E, dim=2))
            mask = (torch.arange(T, device=x_BTE.device) <= ends_B[:, None])[:, None, None, :]
        q_BHTD, k_BHSD, v_BHSD = (
            part.view(B, -1, self.n_head, E // self.n_head).transpose(1, 2) for part in qkv
        )
        dtype = q_BHTD.dtype
        if cache is not None:
            k_BHSD, v_BHSD = cache.extend(self.layer, k_BHSD, v_BHSD)
        dropout = self.dropout if self.training else 0.0
        y_BHTD = attend(q_BHTD.to(k_BHSD.dtype), k_BHSD, v_BHSD, mask, dropout).to(dtype)
        return self.resid_dropout(self.c_proj(y_BHTD.transpose(1, 2).reshape(B, -1, E)))


def at_positions(x_BTE: Tensor, positions_B: Tensor) -> Tensor:
    """One position of each row, (B, 1, E)."""
    # Not take_along_dim, for which a compiled model must know each size for certain.
    return x_BTE.gather(1, positions_B[:, None, None].expand(-1, 1, x_BTE.shape[2]))


def attend(
    q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """softmax(q kᵀ / sqrt(D) + mask) v, shape (B, H, T, D); without a mask, causal.

    This is `scaled_dot_product_attention`, written out where that is several times as fast: for
    packed rows in 16 bits and for a single position, both on a CPU (docs/log.md).
    """
    on_cpu, several = q_BHTD.device.type == "cpu", q_BHTD.shape[2] > 1
    if on_cpu and mask is None and not several and not dropout:
        q_ND1 = (q_BHTD * q_BHTD.shape[-1] ** -0.5).flatten(0, 1).transpose(1, 2)
        scores_NS1 = torch.bmm(k_BHSD.flatten(0, 1), q_ND1)
        weights_N1S = F.softmax(scores_NS1.transpose(1, 2), dim=-1)
        return torch.bmm(weights_N1S, v_BHSD.flatten(0, 1)).view(q_BHTD.shape)
    if on_cpu and mask is not None and several and q_BHTD.dtype != torch.float32:
        scores_BHTS = (q_BHTD * q_BHTD.shape[-1] ** -0.5) @ k_BHSD.transpose(-1, -2)
        weights_BHTS = F.softmax(scores_BHTS.add_(mask), dim=-1)
        return F.dropout(weights_BHTS, dropout) @ v_BHSD
    # A branch, as a compiler that takes the length as unknown must know this for certain.
    causal = True if mask is None and several else False  # noqa: SIM210
    return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, mask, dropout, causal)


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
        cache: KeyValueCache | None = None,
        ends_B: Tensor | None = None,
        bounds_N: Tensor | None = None,
    ) -> Tensor:
        """Run the layer, (B, T, E); with `ends_B`, only for this position of each row, (B, 1, E),
        which is a fraction of the work.

        Args:
            mask: added to the attention scores; without it and `bounds_N` attention is causal.
            bounds_N: where the texts of the batch begin and end, see `GPT.forward`.
        """
        mixed = self.attn(self.ln_1(x_BTE), mask, cache, ends_B, bounds_N)
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
        cache: KeyValueCache | None = None,
        targets_BT: Tensor | None = None,
        bounds_N: Tensor | None = None,
        places_P: Tensor | None = None,
    ) -> Tensor:
        """Logits of the next token at every position, (B, T, V); with targets, their loss.

        Args:
            ids_BT: token ids.
            positions_BT: position of each token in its dialogue; by default 0, 1, 2 … behind what
                the cache holds.
            documents_BT: number of the dialogue each position belongs to, in a packed row;
                attention stays within it. By default a row is one dialogue.
            cache: filled and moved on in generation; excludes `documents_BT`.
            targets_BT: the next ids; the result is then their summed loss, a scalar in nats
                (see loss.next_token_loss).
            bounds_N: instead of `documents_BT`, for variable-length attention: where each text of
                the batch begins, counted over the positions of all rows, and B * T at the end;
                int32. No text goes over the end of its row.
            places_P: only of these positions, counted over those of all rows: (1, P, V).
        """
        x_BTE = self.embed(ids_BT, positions_BT, cache)
        mask = None if bounds_N is not None else _attention_mask(x_BTE, documents_BT, cache)
        for block in self.h:
            # Compiled are whole rows only: in generation each id would be another length.
            run = block if cache is None else block.forward
            x_BTE = run(x_BTE, mask, cache, None, bounds_N)
        if cache is not None:
            cache.length += ids_BT.shape[1]
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
        self, ids_BT: Tensor, positions_BT: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """What the first block is given, (B, T, E); arguments as those of `forward`."""
        T = ids_BT.shape[1]
        past = 0 if cache is None else cache.length
        if positions_BT is None:
            positions_BT = torch.arange(past, past + T, device=ids_BT.device)
        x_BTE = self.wte(ids_BT) + self.wpe(positions_BT)
        if cache is not None:
            cache.ids_BS[:, past : past + T] = ids_BT
            ids_BT = cache.ids_BS[:, max(0, past - self.config.ngram_order + 1) : past + T]
        if self.ngrams is not None:
            x_BTE = x_BTE + self.ngrams(ids_BT, positions_BT)
        return self.drop(x_BTE)

    def parameter_count(self) -> int:
        """Number of parameters without the positions, the figure models are named by."""
        return sum(p.numel() for p in self.parameters()) - self.wpe.weight.numel()


def _attention_mask(
    x_BTE: Tensor, documents_BT: Tensor | None, cache: KeyValueCache | None
) -> Tensor | None:
    """What may be attended to: an additive mask (0 or -inf), or None for plain causal attention.

    Made once a forward pass for all layers, in the precision that attention is computed in.
    """
    T, device = x_BTE.shape[1], x_BTE.device
    past, dtype = (0, x_BTE.dtype) if cache is None else (cache.length, cache.dtype)
    if documents_BT is None and (past == 0 or T == 1):
        return None
    allowed = torch.ones(T, past + T, dtype=torch.bool, device=device).tril(past)
    if documents_BT is not None:
        allowed = allowed & (documents_BT[:, None, :, None] == documents_BT[:, None, None, :])
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
    return mask.masked_fill_(~allowed, float("-inf"))
