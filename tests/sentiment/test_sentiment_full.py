"""`make sentiment-full`, the whole path to a classifier, on a tiny network and few reviews."""

from __future__ import annotations

from pathlib import Path

from smallgpt.checkpoints import checkpoint, run_folder
from smallgpt.config import SentimentConfig
from tests.helpers.commands import make_here
from tests.helpers.models import DIALOGUES
from tests.helpers.reviews import write_reviews

TINY = (
    "n_layer=1 n_head=2 n_embd=16 ngram_rows=64 ngram_embd=8 max_steps=2 eval_freq=1 "
    "device=cpu dtype=float32"
)
FILES = ("HOTELS=hotels.csv", "DOMAINS=others.csv", "CHATS=chats.txt", "SEEDS=1")


def test_the_whole_path_and_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    write_reviews(tmp_path / "hotels.csv", 80)
    write_reviews(tmp_path / "others.csv", 40)
    (tmp_path / "chats.txt").write_text(DIALOGUES, "utf-8")
    out, _ = make_here(tmp_path, "sentiment-full", *FILES, f"FULL_KEYS={TINY}")
    assert "| mask |" in out and "| baseline |" in out
    runs = tmp_path / "checkpoints" / "sentiment_full"
    (domains,) = run_folder.checkpoints(runs / "domains")[-1:]
    (hotels,) = run_folder.checkpoints(runs / "hotels" / "mask" / "seed0")[-1:]
    assert checkpoint.load(domains, classifier=True).labels == ["0", "1"]
    config = checkpoint.load(hotels, classifier=True).config
    assert isinstance(config, SentimentConfig)
    assert config.base_model == "checkpoints/sentiment_full/domains"
    (final,) = run_folder.checkpoints(runs / "final")[-1:]
    assert checkpoint.load(final, classifier=True).step > 0
    again, messages = make_here(tmp_path, "sentiment-full", *FILES, f"FULL_KEYS={TINY}")
    assert again.splitlines()[-1] == out.splitlines()[-1]
    assert "nothing to do" in messages
