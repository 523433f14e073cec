"""The whole GPT: a pre-norm decoder with learned positions, GELU and (mostly) a tied output head.

After "Improving Language Understanding by Generative Pre-Training" (Radford et al., 2018) and
GPT-2. Parameters carry GPT-2's standard names, so that a checkpoint is a Hugging Face model.

Shapes, used as suffixes of names:
    B  rows of a batch          E  width (n_embd)         V  vocabulary
    T  new positions of a row   H  heads                  D  width of a head, E / H
    S  positions attended to: T, and in generation those in the cache before them
    N  texts packed into the rows of a batch; in generation, new ids
    P  positions of the batch that logits are wanted of
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallgpt.config import ModelConfig
from smallgpt.model.loss import next_token_loss


class KeyValueCache:
    """Keys and values of the ids that rows have read so far; each row is a text of its own.

    Args:
        config: the model's shape.
        weight: one of the model's, for the device and the type.
        rows: B, how many texts there is room for.
        positions: S, which memory is taken for at once; `reserve` takes more.
    """

    memory: Tensor
    """(layers, 2, B, H, S, D), on a CPU in float32. What is behind a row's ids is void, but finite:
    it is multiplied by 0."""

    def __init__(
        self, config: ModelConfig, weight: Tensor, rows: int = 1, positions: int = 0
    ) -> None:
        # A CPU is quicker at attention in float32, in which it need not copy keys and values.
        on_cpu = weight.device.type == "cpu"
        dtype = torch.promote_types(weight.dtype, torch.float32) if on_cpu else weight.dtype
        self.most = config.block_size
        """How many ids a row can have."""
        self.earlier = config.ngram_order - 1
        """How many ids before a new one its embedding needs."""
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        """What each row has read."""
        width = config.n_embd // config.n_head
        shape = (config.n_layer, 2, rows, config.n_head, positions, width)
        self._hold(torch.zeros(shape, device=weight.device, dtype=dtype))

    @property
    def lengths(self) -> list[int]:
        """How many ids each row has read."""
        return [len(ids) for ids in self.ids]

    @torch.inference_mode(False)  # or nothing outside of it could write there
    def reserve(self, positions: int) -> None:
        """Take memory for so many positions of each row, where there is less.

        It is at least doubled, so that a talk which grows is not copied at every turn.
        """
        *shape, before, width = self.memory.shape
        if positions > before:
            positions = max(positions, min(2 * before, self.most))
            larger = self.memory.new_zeros(*shape, positions, width)
            end = max(self.lengths)
            larger[..., :end, :] = self.memory[..., :end, :]
            self._hold(larger)

    def common_prefix(self, row: int, ids: Sequence[int]) -> int:
        """How many of these ids the row begins with."""
        pairs = zip(self.ids[row], ids, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def keep_prefix(self, row: int, ids: Sequence[int]) -> int:
        """Forget what follows the longest common prefix of a row and `ids`; its length."""
        same = self.common_prefix(row, ids)
        del self.ids[row][same:]
        return same

    def copy(self, row: int, other: "KeyValueCache", other_row: int, length: int) -> None:
        """Let a row have read the first `length` ids of a row of `other`, which may be this."""
        self.reserve(length)
        self.memory[:, :, row, :, :length] = other.memory[:, :, other_row, :, :length]
        self.ids[row] = other.ids[other_row][:length]

    def append(self, rows: Sequence[int], new: Sequence[Sequence[int]]) -> None:
        """Let rows have read new ids, whose keys and values are in `memory` by now."""
        for row, ids in zip(rows, new, strict=True):
            self.ids[row] += ids

    def _hold(self, memory: Tensor) -> None:
        self.memory = memory
        self.keys_values = [tuple(layer) for layer in memory]


class Reading:
    """New ids of some rows of a cache, for one forward pass: (N, 1), as if each were a row.

    What concerns a position alone is computed for all N together. Attention is computed by groups:
    all rows with one new id are a group, and all with equally many behind equally many.

    Args:
        rows: of the cache, in any order, each once.
        new: the ids of each row, at least one.
    """

    def __init__(
        self, cache: KeyValueCache, rows: Sequence[int], new: Sequence[Sequence[int]]
    ) -> None:
        self.cache, self._rows, self._new = cache, rows, new
        lengths = [len(cache.ids[row]) for row in rows]
        cache.reserve(max(map(sum, zip(lengths, map(len, new), strict=True))))
        together = dict[tuple[int, int], list[int]]()
        for number in sorted(range(len(rows)), key=rows.__getitem__):
            T = len(new[number])
            together.setdefault((T, lengths[number] if T > 1 else 0), []).append(number)
        ids, positions, windows, ends = list[int](), list[int](), list[list[int]](), [0] * len(rows)
        self._groups = list[_Group]()
        for numbers in together.values():
            begin = len(ids)
            for number in numbers:
                past, T = lengths[number], len(new[number])
                ids += new[number]
                positions += range(past, past + T)
                ends[number] = len(ids) - 1
                if before := cache.earlier:
                    near = [*[0] * before, *cache.ids[rows[number]][-before:], *new[number]]
                    first = len(near) - T - before
                    windows += [near[at : at + before + 1] for at in range(first, first + T)]
            line = slice(begin, len(ids))
            chosen, behind = ([each[number] for number in numbers] for each in (rows, lengths))
            self._groups.append(_Group.of(cache, line, chosen, behind))
        device = cache.memory.device
        self.ids_N1, self.positions_N1 = torch.tensor((ids, positions), device=device)[..., None]
        self.windows_NS = torch.tensor(windows, device=device) if windows else self.ids_N1
        """Each id behind as many as its embedding needs; zeros before the beginning."""
        in_order = ends == list(range(len(ids)))
        self.ends_P = None if in_order else torch.tensor(ends, device=device)
        """Where the last id of each row is; None where each has one, in this order."""

    def attend(self, layer: int, qkv_N1E: Tensor) -> Tensor:
        """Append one layer's new keys and values; what queries find there, (N, 1, E).

        Args:
            qkv_N1E: queries, keys and values of the new ids, (N, 1, 3 * E).
        """
        memory = self.cache.memory[layer]
        qkv_N3HD = qkv_N1E.to(memory.dtype).view(len(qkv_N1E), 3, memory.shape[2], -1)
        parts = [group.attend(memory, qkv_N3HD) for group in self._groups]
        y_NHD = parts[0] if len(parts) == 1 else torch.cat(parts)
        return y_NHD.reshape(len(y_NHD), 1, -1).to(qkv_N1E.dtype)

    def finish(self) -> None:
        """Let the rows have read the ids, when the model has run all its layers."""
        self.cache.append(self._rows, self._new)


@dataclass
class _Group:
    """Rows of a reading that attention is computed for together, with equally many new ids each.

    line: where these ids are among all N, row after row.
    new: T, ids of each row.
    rows: of the cache.
    places: rows and positions where keys and values are written, (B, T, …).
    end: S, the positions attended to.
    mask: as of `attend`.
    """

    line: slice
    new: int
    rows: slice | Tensor
    places: tuple[slice | Tensor, slice | Tensor]
    end: int
    mask: Tensor | None

    @staticmethod
    def of(cache: KeyValueCache, line: slice, rows: list[int], lengths: list[int]) -> "_Group":
        """Of rows in rising order, which have read so many ids."""
        T, past, memory = (line.stop - line.start) // len(rows), max(lengths), cache.memory
        adjacent = rows[-1] - rows[0] + 1 == len(rows)  # then keys and values are not copied
        device, mask = memory.device, None
        chosen = slice(rows[0], rows[-1] + 1) if adjacent else torch.tensor(rows, device=device)
        if min(lengths) == past:
            if past and T > 1:
                allowed = torch.ones(T, past + T, dtype=torch.bool, device=device).tril(past)
                mask = _additive(allowed, memory.dtype)
            return _Group(line, T, chosen, (chosen, slice(past, past + T)), past + T, mask)
        rows_B1, lengths_B1 = torch.tensor((rows, lengths), device=device)[..., None]
        allowed_BS = torch.arange(past + 1, device=device) <= lengths_B1
        mask = _additive(allowed_BS[:, None, None], memory.dtype)
        return _Group(line, T, chosen, (rows_B1, lengths_B1), past + 1, mask)

    def attend(self, memory: Tensor, qkv_N3HD: Tensor) -> Tensor:
        """Of a layer, whose part of the cache `memory` is, (2, B, H, S, D): the part of these ids
        of what `Reading.attend` gives, (N, H, D)."""
        qkv_BT3HD = qkv_N3HD[self.line].unflatten(0, (-1, self.new))
        memory.permute(1, 3, 0, 2, 4)[self.places] = qkv_BT3HD[:, :, 1:]
        k_BHSD, v_BHSD = memory[:, self.rows, :, : self.end]
        q_BHTD = qkv_BT3HD[:, :, 0].transpose(1, 2)
        y_BHTD = attend(q_BHTD, k_BHSD, v_BHSD, self.mask, dropout=0.0)
        return y_BHTD.transpose(1, 2).flatten(0, 1)


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
            weight, bias = self.c_attn.weight, self.c_attn.bias
            q_bias, kv_bias = (None, None) if bias is None else bias.split((E, 2 * E))
            q_B1E = F.linear(at_positions(x_BTE, ends_B), weight[:E], q_bias)
            qkv = (q_B1E, *F.linear(x_BTE, weight[E:], kv_bias).split(E, dim=2))
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


def attend(
    q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """softmax(q kᵀ / sqrt(D) + mask) v, shape (B, H, T, D); without a mask, causal.

    This is `scaled_dot_product_attention`, written out where that is several times as fast: for
    packed rows in 16 bits and for a single position, both on a CPU (docs/log.md).
    """
    on_cpu, several = q_BHTD.device.type == "cpu", q_BHTD.shape[2] > 1
    added = mask is None or mask.dtype != torch.bool
    if on_cpu and added and not several and not dropout:
        q_ND1 = (q_BHTD * q_BHTD.shape[-1] ** -0.5).flatten(0, 1).transpose(1, 2)
        scores_NS1 = torch.bmm(k_BHSD.flatten(0, 1), q_ND1)
        if mask is not None:
            scores_NS1 = (scores_NS1.unflatten(0, (len(mask), -1)) + mask.mT).flatten(0, 1)
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
    return _additive(causal & same, x_BTE.dtype)


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of 0 and -inf in the precision that attention is computed in."""
    if torch.is_autocast_enabled(allowed.device.type):
        dtype = torch.get_autocast_dtype(allowed.device.type)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, float("-inf"))
