"""The network against a plain implementation, and what packing and the cache promise."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from smallgpt.checkpoints import checkpoint, legacy_pth
from smallgpt.config import Config, ModelConfig
from smallgpt.config_file import load_config
from smallgpt.data.corpus import Corpus
from smallgpt.data.packing import Batch, PackedRows
from smallgpt.model.cache import KeyValueCache, Reading
from smallgpt.model.gpt import GPT
from smallgpt.model.parameters import parameter_groups
from smallgpt.tokenizer.characters import PAD, SEP, Tokenizer
from tests.helpers.commands import refusal
from tests.helpers.models import (
    NGRAMS,
    SMALL,
    fresh,
    random_ids,
    random_model,
    save_with_pairs,
)
from tests.helpers.varlen import varlen_on_cpu

CONFIG_FOLDER = Path(__file__).parents[2] / "config"
NO_BIAS = replace(SMALL, bias=False)


def signed(number: int) -> int:
    """As 64 bits hold it."""
    return (number + 2**63) % 2**64 - 2**63


def plain_embedding(model: GPT, ids: list[int]) -> Tensor:
    """What the first block is given, position by position. (T, E)"""
    weights, config = model.state_dict(), model.config
    rows = []
    for place, token in enumerate(ids):
        x = weights["wte.weight"][token] + weights["wpe.weight"][place]
        number = token
        for back in range(1, config.ngram_order):
            earlier = ids[place - back] + 1 if place >= back else 0
            number = signed(number * 1_000_003 + earlier)
            row = (signed(number * 2_654_435_761) >> 20) % config.ngram_rows
            table = weights[f"ngrams.tables.{back - 1}.weight"]
            x = x + weights[f"ngrams.projections.{back - 1}.weight"] @ table[row]
        rows.append(x)
    return torch.stack(rows)


@torch.no_grad()
def plain_logits(model: GPT, ids: list[int]) -> Tensor:
    """One row through the network, written out by the formulas. (T, V)"""
    weights, config = model.state_dict(), model.config
    width = config.n_embd // config.n_head
    count = len(ids)

    def linear(name: str, x: Tensor) -> Tensor:
        y = x @ weights[f"{name}.weight"].T
        return y + weights[f"{name}.bias"] if config.bias else y

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        y = y * weights[f"{name}.weight"]
        return y + weights[f"{name}.bias"] if config.bias else y

    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    def attention(name: str, x: Tensor) -> Tensor:
        q, k, v = linear(f"{name}.c_attn", x).chunk(3, dim=-1)
        heads = []
        for head in range(config.n_head):
            cut = slice(head * width, (head + 1) * width)
            scores = q[:, cut] @ k[:, cut].T / math.sqrt(width)
            for position in range(count):
                scores[position, position + 1 :] = -math.inf
            shares = scores.exp() / scores.exp().sum(-1, keepdim=True)
            heads.append(shares @ v[:, cut])
        return linear(f"{name}.c_proj", torch.cat(heads, dim=-1))

    x = plain_embedding(model, ids)
    for layer in range(config.n_layer):
        x = x + attention(f"h.{layer}.attn", norm(f"h.{layer}.ln_1", x))
        hidden = gelu(linear(f"h.{layer}.mlp.c_fc", norm(f"h.{layer}.ln_2", x)))
        x = x + linear(f"h.{layer}.mlp.c_proj", hidden)
    return norm("ln_f", x) @ weights["wte.weight"].T


# shape and initial weights


@pytest.mark.parametrize(("name", "millions"), [("90M", 90.88), ("300M", 295.15)])
def test_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = GPT(load_config(CONFIG_FOLDER / f"train{name}.yaml"))
    assert round(model.parameter_count() / 1e6, 2) == millions
    assert sum(p.numel() for p in model.parameters()) - model.parameter_count() == (
        256 * model.config.n_embd
    )


@pytest.mark.parametrize("config", [SMALL, NO_BIAS], ids=["bias", "no bias"])
def test_biases_are_there_if_asked_for(config: ModelConfig) -> None:
    model = GPT(config)
    biases = [name for name, _ in model.named_parameters() if name.endswith("bias")]
    # Two norms and four linear layers in each block, and the last norm; none on the head.
    assert len(biases) == (6 * config.n_layer + 1 if config.bias else 0)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    config = ModelConfig(block_size=256, vocab_size=500, n_layer=8, n_head=4, n_embd=128)
    for name, parameter in GPT(config).named_parameters():
        if name.endswith("c_proj.weight"):
            assert parameter.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05), name
        elif parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            assert torch.all(parameter == (0 if name.endswith("bias") else 1)), name


def test_a_fresh_model_guesses_evenly() -> None:
    torch.manual_seed(0)
    config = ModelConfig(block_size=64, vocab_size=1000, n_layer=2, n_head=2, n_embd=64)
    ids = random_ids(4, 65, vocabulary=1000)
    loss = GPT(config)(ids[:, :-1], targets_BT=ids[:, 1:]) / (4 * 64)
    assert loss.item() == pytest.approx(math.log(1000), abs=0.1)


# the forward pass


ORDERS = [replace(NGRAMS, ngram_order=order) for order in (2, 3, 4)]


@pytest.mark.parametrize("config", [SMALL, NO_BIAS, *ORDERS])
@pytest.mark.parametrize("length", [1, 7, 24])
def test_logits_equal_a_plain_implementation(config: ModelConfig, length: int) -> None:
    model, ids = fresh(config), random_ids(3, length)
    logits = model(ids)
    assert logits.shape == (3, length, config.vocab_size)
    for row in range(3):
        torch.testing.assert_close(logits[row], plain_logits(model, ids[row].tolist()))


@settings(max_examples=25)
@given(st.integers(1, 23), st.integers(0, 39))
def test_later_ids_change_no_earlier_logits(place: int, other: int) -> None:
    model, ids = fresh(SMALL), random_ids(1, 24)
    changed = ids.clone()
    changed[0, place] = other
    before, after = model(ids), model(changed)
    torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-12)
    if other != ids[0, place]:
        assert not torch.allclose(after[:, place:], before[:, place:])


@pytest.mark.parametrize(
    "config", [replace(SMALL, dropout=0.5), replace(NGRAMS, ngram_dropout=0.5)]
)
def test_dropout_is_for_training_only(config: ModelConfig) -> None:
    model, ids = fresh(config), random_ids(1, 24)
    torch.testing.assert_close(model(ids)[0], plain_logits(model, ids[0].tolist()))
    model.train()
    assert not torch.allclose(model(ids), model(ids))


# packed rows


def packed(lengths: list[int]) -> Batch:
    """All rows of dialogues with the given numbers of characters, a `<sep>` here and there."""
    generator = np.random.default_rng(0)
    dialogues = [generator.integers(3, 40, length) for length in lengths]
    for ids in dialogues:
        ids[2::5] = SEP
    corpus = Corpus(
        folder=Path(),
        ids=np.concatenate([np.append(ids, PAD) for ids in dialogues]),
        ends=np.cumsum([len(ids) + 1 for ids in dialogues]),
        tokenizer=Tokenizer([chr(0x4E00 + i) for i in range(37)]),
        rare_from=40,
        characters=0,
        conversations=0,
        fingerprint="",
    )
    rows = PackedRows(corpus, np.arange(len(lengths)), SMALL.block_size, seed=0)
    return rows.batch(np.arange(len(rows)))


@pytest.mark.parametrize("config", [SMALL, NGRAMS], ids=["plain", "n-grams"])
@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=10))
@example(lengths=[5, 7, 3, 4, 4, 1, 60])
def test_a_dialogue_among_others_has_the_logits_it_has_alone(
    config: ModelConfig, lengths: list[int]
) -> None:
    model, batch = fresh(config), packed(lengths)
    together = model(batch.ids, batch.positions, batch.documents)
    assert torch.isfinite(together).all()
    for row, documents in enumerate(batch.documents):
        for document in range(int(documents.max()) + 1):
            places = documents == document
            alone = model(batch.ids[row, places][None])[0]
            torch.testing.assert_close(together[row, places], alone)


def test_gradients_of_packed_rows_are_those_of_the_dialogues_alone() -> None:
    model, batch = fresh(SMALL), packed([5, 7, 3, 4, 4, 1, 60])
    model(batch.ids, batch.positions, batch.documents, None, batch.targets).backward()
    together = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    for row, documents in enumerate(batch.documents):
        for document in range(int(documents.max()) + 1):
            places = documents == document
            targets = batch.targets[row, places][None]
            model(batch.ids[row, places][None], targets_BT=targets).backward()
    alone = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(together) == len(alone) == len(list(model.parameters()))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)  # the loss is in float32


@pytest.fixture(scope="module")
def varlen() -> None:
    varlen_on_cpu()


@pytest.mark.usefixtures("varlen")
@pytest.mark.parametrize("config", [SMALL, NGRAMS], ids=["plain", "n-grams"])
@settings(max_examples=10)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=10))
@example(lengths=[5, 7, 3, 4, 4, 1, 60])
def test_variable_length_attention_is_attention_with_a_mask(
    config: ModelConfig, lengths: list[int]
) -> None:
    model, batch = fresh(config), packed(lengths)
    ids, targets, positions, documents = batch
    results = []
    for kept_apart in ({"documents_BT": documents}, {"bounds_N": batch.bounds()}):
        logits = model(ids, positions, **kept_apart)
        model(ids, positions, targets_BT=targets, **kept_apart).backward()
        results.append([logits, *(p.grad for p in model.parameters())])
        model.zero_grad()
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_packed_rows_in_mixed_precision() -> None:
    torch.manual_seed(0)
    model, batch = GPT(SMALL).eval(), packed([5, 7, 3, 4, 4, 1, 60])
    exact = model(batch.ids, batch.positions, batch.documents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(batch.ids, batch.positions, batch.documents)
    torch.testing.assert_close(mixed.float(), exact, rtol=0.02, atol=0.02)


# the key-value cache


@pytest.mark.parametrize("config", [SMALL, NGRAMS], ids=["plain", "n-grams"])
@settings(max_examples=40)
@given(chunks=st.lists(st.integers(1, 8), min_size=1, max_size=24))
@example(chunks=[10, 1, 1, 5, 1, 6])
@example(chunks=[1] * 24)
@example(chunks=[24])
@torch.no_grad()
def test_cache_in_chunks_equals_the_whole_row(config: ModelConfig, chunks: list[int]) -> None:
    model, ids = fresh(config), random_ids(2, SMALL.block_size)
    cache = KeyValueCache(config, model.wte.weight, rows=2)
    parts, at = [], 0
    for size in chunks:
        if at + size > SMALL.block_size:
            break
        reading = Reading(cache, [0, 1], ids[:, at : at + size].tolist())
        parts.append(model(reading.ids_N1, reading=reading).view(2, size, -1))
        at += size
        assert cache.lengths == [at, at]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids[:, :at]))


# n-grams


def test_pairs_spread_over_the_rows() -> None:
    torch.manual_seed(0)
    model = GPT(replace(NGRAMS, ngram_order=2, ngram_rows=4096)).eval()
    pairs = torch.cartesian_prod(torch.arange(40), torch.arange(40))
    x = model.embed(pairs)[:, 1] - model.wte(pairs[:, 1]) - model.wpe.weight[1]
    # 1,600 pairs in 4,096 rows by chance: 1,326 rows are expected to be taken.
    assert len(torch.unique(x.round(decimals=6), dim=0)) > 1250


def test_tables_do_not_decay() -> None:
    embeddings, in_layers, vectors = (
        {name for name, _ in group} for group in parameter_groups(GPT(NGRAMS))
    )
    assert {"ngrams.tables.0.weight", "ngrams.tables.1.weight"} <= vectors
    assert "ngrams.projections.0.weight" in in_layers
    assert embeddings == {"wte.weight", "wpe.weight"}


@pytest.mark.parametrize("bias", [True, False])
def test_round_trip_and_what_others_say(tmp_path: Path, bias: bool) -> None:
    from transformers import AutoConfig

    model = random_model(0, ngram_order=3, ngram_rows=50, bias=bias)
    assert isinstance(model.config, Config)
    path = save_with_pairs(tmp_path, bias)
    again = checkpoint.load(path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.weights[name], tensor), name
    ids = torch.tensor([[5, 9, 4, 1]])
    torch.testing.assert_close(again.model()(ids), model(ids))
    with pytest.raises(ValueError, match="smallgpt"):
        AutoConfig.from_pretrained(path)
    said = refusal(lambda: legacy_pth.write(again, tmp_path / "x.pth"))
    assert "ngram_order is 3" in said
