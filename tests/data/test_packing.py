"""Packing: nothing lost, nothing twice, nothing wasted; and the order of the rows."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.data.corpus import Corpus, open_corpus
from smallgpt.data.packing import PackedRows, RowOrder, pack, split_long
from smallgpt.model.loss import IGNORED
from smallgpt.tokenizer.characters import FIRST_CHARACTER, PAD, SEP, UNK, Tokenizer
from tests.helpers.corpora import BLOCK_SIZES, CORPORA, corpus_of, everything, subwords

CHITCHAT = Path(__file__).parents[3] / "shared/data/chitchat.txt.xz"


# pack


def check_packing(lengths: npt.NDArray[np.int64], block_size: int) -> int:
    """No row overflows, no two chunks overlap, no row is empty. Returns the number of rows."""
    row, offset = pack(lengths, block_size, np.random.default_rng(0))
    used: dict[int, set[int]] = {}
    for r, o, length in zip(row.tolist(), offset.tolist(), lengths.tolist(), strict=True):
        places = set(range(o, o + length))
        assert places <= set(range(block_size))
        assert not places & used.setdefault(r, set())
        used[r] |= places
    assert sorted(used) == list(range(len(used)))
    return len(used)


def first_fit_decreasing(lengths: list[int], block_size: int) -> int:
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        for row, free in enumerate(room):
            if free >= length:
                room[row] -= length
                break
        else:
            room.append(block_size - length)
    return len(room)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 40), st.data())
def test_packing_is_valid_and_as_tight_as_first_fit(block_size: int, data: st.DataObject) -> None:
    length = st.integers(1, block_size)
    groups = st.lists(st.tuples(length, st.integers(1, 30)), max_size=8)
    lengths = [length for length, count in data.draw(groups) for _ in range(count)]
    rows = check_packing(np.array(lengths, np.int64), block_size)
    assert rows <= first_fit_decreasing(lengths, block_size) + 1


def test_short_chunks_fill_the_rest_of_many_rows() -> None:
    # Each of 100 rows has room for four more chunks, not just for one.
    lengths = np.array([60] * 100 + [10] * 400)
    assert check_packing(lengths, 100) == 100


def test_partners_in_a_row_depend_on_the_seed_only() -> None:
    lengths = np.array([5, 3] * 50)
    first, again, other = (pack(lengths, 8, np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


# split_long


def naive_chunks(ids: list[int], block_size: int) -> list[tuple[int, int]]:
    """(start, positions) by the rule in words: cut at the last `<sep>` of the last quarter."""
    chunks, start, last = [], 0, len(ids) - 1
    while last - start > block_size:
        end = start + block_size  # the id there is the chunk's last target
        cuts = [at for at in range(end, end - block_size // 4, -1) if ids[at] == SEP]
        cut = cuts[0] if cuts else end
        chunks.append((start, cut - start))
        start = cut
    return [*chunks, (start, last - start)]


@settings(deadline=None)
@given(CORPORA, BLOCK_SIZES)
def test_long_dialogues_are_continued_by_the_rule(corpus: Corpus, block_size: int) -> None:
    starts, lengths, continued = split_long(corpus, everything(corpus), block_size)
    expected = []
    for index in range(len(corpus)):
        begin = int(corpus.ends[index - 1]) if index else 0
        chunks = naive_chunks(corpus.dialogue(index), block_size)
        expected += [(begin + start, length) for start, length in chunks]
    assert sorted(zip(starts.tolist(), lengths.tolist(), strict=True)) == sorted(expected)
    assert continued == int((np.diff(corpus.ends, prepend=0) - 1 > block_size).sum())


# rows and batches


@settings(deadline=None)
@given(CORPORA, BLOCK_SIZES, st.integers(0, 100))
def test_rows_hold_every_chunk_once_with_its_own_positions(
    corpus: Corpus, block_size: int, seed: int
) -> None:
    """So every id but a dialogue's first is a target once; the rest of a row is marked as empty."""
    rows = PackedRows(corpus, everything(corpus), block_size, seed)
    batch = rows.batch(np.arange(len(rows)))
    found = []
    for row in range(len(rows)):
        documents = batch.documents[row].tolist()
        for number in range(max(documents) + 1):
            places = [place for place, document in enumerate(documents) if document == number]
            assert places == list(range(places[0], places[0] + len(places)))
            assert batch.positions[row, places].tolist() == list(range(len(places)))
            ids = batch.ids[row, places].tolist()
            targets = batch.targets[row, places].tolist()
            assert ids[1:] == targets[:-1]
            found.append([*ids, targets[-1]])
    expected = [
        dialogue[start : start + length + 1]
        for dialogue in map(corpus.dialogue, range(len(corpus)))
        for start, length in naive_chunks(dialogue, block_size)
    ]
    assert sorted(found) == sorted(expected)

    empty = batch.documents == -1
    assert torch.all(batch.ids[empty] == PAD) and torch.all(batch.ids[~empty] != PAD)
    assert torch.all(batch.positions[empty] == 0)
    assert torch.equal(batch.targets == IGNORED, empty)
    positions = len(corpus.ids) - len(corpus)
    assert batch.target_count() == rows.positions == positions
    assert rows.efficiency() == pytest.approx(positions / (len(rows) * block_size))


@settings(deadline=None)
@given(CORPORA, BLOCK_SIZES, st.data())
def test_a_row_is_the_same_in_every_batch(
    corpus: Corpus, block_size: int, data: st.DataObject
) -> None:
    rows = PackedRows(corpus, everything(corpus), block_size, seed=0)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    together = rows.batch(np.array(chosen))
    for place, row in enumerate(chosen):
        for both, alone in zip(together, rows.batch(np.array([row])), strict=True):
            assert torch.equal(both[place], alone[0])


def test_only_the_chosen_dialogues_are_packed() -> None:
    corpus = corpus_of([[3, 3, 3], [4, 4], [5], [6, 6, 6, 6]])
    rows = PackedRows(corpus, np.array([1, 3]), 8, seed=0)
    batch = rows.batch(np.arange(len(rows)))
    assert sorted(batch.ids[batch.documents >= 0].tolist()) == [4, 4, 6, 6, 6, 6]
    assert len(rows) * rows.texts_a_row() == 2


def test_no_dialogues_make_no_rows() -> None:
    rows = PackedRows(corpus_of([[3]]), np.empty(0, np.int64), 8, seed=0)
    assert len(rows) == 0
    assert rows.efficiency() == rows.texts_a_row() == 0
    assert rows.batch(np.empty(0, np.int64)).ids.shape == (0, 8)


def test_parts_of_a_batch_make_up_the_batch() -> None:
    corpus = corpus_of([[3 + i] * 8 for i in range(6)])
    whole = PackedRows(corpus, everything(corpus), 8, seed=0).batch(np.arange(6))
    parts = whole.parts(3)
    assert [len(part.ids) for part in parts] == [2, 2, 2]
    assert all(map(torch.equal, map(torch.cat, zip(*parts, strict=True)), whole))
    assert sum(part.target_count() for part in parts) == whole.target_count()


@settings(deadline=None)
@given(CORPORA, BLOCK_SIZES, st.integers(0, 3))
def test_empty_rows_count_nothing_and_bounds_are_where_documents_change(
    corpus: Corpus, block_size: int, more: int
) -> None:
    rows = PackedRows(corpus, everything(corpus), block_size, seed=0)
    batch = rows.batch(np.arange(len(rows)))
    filled = batch.filled_up(len(rows) + more)
    assert all(torch.equal(new[: len(rows)], old) for new, old in zip(filled, batch, strict=True))
    assert filled.ids.shape == (len(rows) + more, block_size)
    assert filled.target_count() == batch.target_count()

    bounds = filled.bounds().tolist()
    assert len(bounds) % 64 == 0
    place = [(row, int(document)) for row, d in enumerate(filled.documents) for document in d]
    starts = [at for at in range(len(place)) if at == 0 or place[at] != place[at - 1]]
    assert bounds[: len(starts)] == starts
    assert set(bounds[len(starts) :]) == {len(place)}


# unknown characters


def test_only_rare_characters_are_shown_as_unknown_and_never_learnt() -> None:
    corpus = corpus_of([[3 + i % 50, 40 + i % 13, SEP, 39] for i in range(200)], rare_from=40)
    rows = PackedRows(corpus, everything(corpus), 16, seed=0)
    every_row = np.arange(len(rows))
    plain = rows.batch(every_row)
    for rate in (0.3, 1.0):
        noisy = rows.batch(every_row, unk_rate=rate, seed=(7, 1))
        changed = noisy.ids != plain.ids
        assert torch.all(noisy.ids[changed] == UNK)
        assert torch.all(plain.ids[changed] >= corpus.rare_from)
        share = changed.sum().item() / (plain.ids >= corpus.rare_from).sum().item()
        assert share == (1 if rate == 1 else pytest.approx(rate, abs=0.1))
        assert torch.equal(noisy.targets, plain.targets)
        assert torch.equal(noisy.positions, plain.positions)
        again = rows.batch(every_row, unk_rate=rate, seed=(7, 1))
        assert torch.equal(again.ids, noisy.ids)
    other = rows.batch(every_row, unk_rate=0.3, seed=(7, 2))
    assert not torch.equal(other.ids, rows.batch(every_row, unk_rate=0.3, seed=(7, 1)).ids)


# utterances as if nothing had been said before


@settings(deadline=None)
@given(CORPORA, BLOCK_SIZES, st.sampled_from([0.3, 0.99]))
def test_without_its_context_an_utterance_begins_anew_at_its_separator(
    corpus: Corpus, block_size: int, rate: float
) -> None:
    rows = PackedRows(corpus, everything(corpus), block_size, seed=0)
    every_row = np.arange(len(rows))
    plain, cut = rows.batch(every_row), rows.batch(every_row, context_dropout=rate, seed=(5,))
    assert torch.equal(cut.ids, plain.ids)
    assert torch.equal(cut.targets, plain.targets)
    for row in range(len(rows)):
        at, before = 0, -1
        for place in range(block_size):
            old, new = int(plain.documents[row, place]), int(cut.documents[row, place])
            if old < 0:
                assert new < 0
                continue
            begins_anew = new != before
            if place == 0 or old != plain.documents[row, place - 1]:
                assert begins_anew
            elif begins_anew:
                assert plain.ids[row, place] == SEP
            if begins_anew:
                assert new == before + 1
                at = place
            assert cut.positions[row, place] == place - at
            before = new


def test_so_many_utterances_lose_their_context() -> None:
    corpus = corpus_of([[3, SEP, 4, SEP, 5] for _ in range(400)])
    rows = PackedRows(corpus, everything(corpus), 32, seed=0)
    every_row = np.arange(len(rows))
    begun = {}
    for rate in (0.0, 0.25, 0.999):
        batch = rows.batch(every_row, unk_rate=1.0, context_dropout=rate, seed=(1,))
        begun[rate] = int(((batch.positions == 0) & (batch.ids == SEP)).sum())
    assert begun[0.0] == 0
    assert begun[0.25] == pytest.approx(200, abs=50)
    assert begun[0.999] > 780
    apart = len(rows) * rows.texts_a_row(context_dropout=0.25)
    assert apart == pytest.approx(400 + 200, abs=50)


@settings(deadline=None)
@given(CORPORA, st.lists(st.integers(FIRST_CHARACTER, 90) | st.just(UNK), min_size=50, max_size=50))
def test_ids_are_translated_and_what_is_unknown_is_not_learnt(
    corpus: Corpus, characters: list[int]
) -> None:
    id_map = np.array([UNK, SEP, PAD, *characters])
    plain, mapped = (
        PackedRows(corpus, everything(corpus), 16, 0, mapping) for mapping in (None, id_map)
    )
    every_row = np.arange(len(plain))
    before, after = plain.batch(every_row), mapped.batch(every_row)
    assert torch.equal(after.ids, torch.from_numpy(id_map)[before.ids])
    translated = torch.from_numpy(id_map)[before.targets.clamp(min=0)]
    learnt = (before.targets != IGNORED) & (translated != UNK)
    assert torch.equal(after.targets, torch.where(learnt, translated, IGNORED))
    assert torch.equal(after.positions, before.positions)
    assert torch.equal(after.documents, before.documents)


# the order of rows

ROWS = st.integers(1, 30)
SEEDS = st.integers(0, 2**63 - 1)
COUNTS = st.integers(0, 100)


@settings(deadline=None)
@given(ROWS, SEEDS, st.integers(0, 5))
def test_each_epoch_is_a_permutation(rows: int, seed: int, epoch: int) -> None:
    assert sorted(RowOrder(rows, seed).take(epoch * rows, rows)) == list(range(rows))


@settings(deadline=None)
@given(ROWS, SEEDS, COUNTS, COUNTS, COUNTS)
def test_any_part_of_the_order_is_the_same_from_wherever_one_starts(
    rows: int, seed: int, start: int, first: int, second: int
) -> None:
    order = RowOrder(rows, seed)
    whole = order.take(start, first + second)
    later = order.take(start + first, second)  # before the part in front of it
    earlier = RowOrder(rows, seed).take(start, first)
    assert np.array_equal(np.concatenate((earlier, later)), whole)
    assert order.take(start, 0).shape == (0,) and order.take(start, 0).dtype == np.int64


def test_epochs_and_seeds_differ() -> None:
    order = RowOrder(100, seed=1)
    first, second = order.take(0, 100), order.take(100, 100)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, RowOrder(100, seed=2).take(0, 100))


# real text


def test_real_dialogues_fill_their_rows(tmp_path: Path) -> None:
    if not CHITCHAT.is_file():
        pytest.skip(f"no {CHITCHAT}")
    copy = shutil.copy(CHITCHAT, tmp_path)  # the cache is written beside the file
    corpus = open_corpus([Path(copy)])
    rows = PackedRows(corpus, everything(corpus), 256, seed=0)
    assert rows.efficiency() >= 0.95
    assert rows.positions == len(corpus.ids) - len(corpus)
    batch = rows.batch(np.arange(len(rows)))
    counts = np.bincount(batch.targets[batch.targets != IGNORED].numpy())
    beginnings = np.concatenate(([0], corpus.ends[:-1]))
    assert np.array_equal(counts, np.bincount(np.delete(corpus.ids, beginnings)))


# characters


PIECES = subwords(["早上好呀", "早上好", "好吗好吗"] * 3, ["，"], 20)
SAID = st.lists(
    st.lists(st.sampled_from([*"早上好呀吗，\n", "早上好", "好吗"]), min_size=2, max_size=30)
    .map("".join)
    .filter(lambda text: not text.startswith("\n")),
    min_size=1,
    max_size=8,
)


@settings(max_examples=30)
@given(SAID, BLOCK_SIZES, st.integers(1, 4))
def test_both_vocabularies_count_the_same_characters(
    said: list[str], block_size: int, at_once: int
) -> None:
    """All but the first of each dialogue, each `<sep>` and each end."""
    for tokenizer in (PIECES, Tokenizer([c for c in PIECES.characters if len(c) == 1])):
        ids = [tokenizer.encode(text) for text in said]
        corpus = dataclasses.replace(corpus_of(ids), tokenizer=tokenizer, rare_from=99)
        rows = PackedRows(corpus, everything(corpus), block_size, seed=0)
        count, nats = 0, 0.0
        for at in range(0, len(rows), at_once):
            some = np.arange(at, min(len(rows), at + at_once))
            behind, cost = rows.behind_first(some)
            count, nats = count + rows.characters(rows.batch(some)) + behind, nats + cost
        assert count == sum(map(len, said))
        costs = tokenizer.first_nats()
        expected = 0.0 if costs is None else sum(costs[first] for first, *_ in ids)
        assert nats == pytest.approx(expected)


def test_unknown_pieces_are_no_targets() -> None:
    ids = [PIECES.encode("早新好")]
    corpus = dataclasses.replace(corpus_of(ids), tokenizer=PIECES, rare_from=99)
    rows = PackedRows(corpus, everything(corpus), 8, seed=0)
    batch = rows.batch(np.arange(1))
    assert UNK in batch.ids and batch.target_count() == rows.characters(batch) == 2
