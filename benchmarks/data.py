"""From text to cached ids: speed on one core, opening cold and warm, peak memory.

    python -m benchmarks.data [--data FILE]...

One JSON object a text; MB are a million bytes; seconds are medians of `ROUNDS` rounds:

    text_mb                             the text, decompressed
    decompression_seconds               reading and decompressing it and nothing else; 0 where it
                                        is not compressed: reading it then counts as our work
    cold_seconds                        open_corpus without a cache, to the ids on disk and back
    cold_seconds_beyond_decompression   the same, less the decompression
    mb_per_second                       text_mb by the seconds beyond decompression
    cores_used                          processor time by elapsed time: 1 is one core all the time
    plain_mb_per_second                 the earlier program's way (encode_plainly) ...
    plain_sample_mb                     ... on so much of the text's beginning
    times_plain                         how many times faster ours is
    warm_seconds                        open_corpus where the cache is there
    program_mb                          resident memory before the first text: Python, NumPy, torch
    peak_mb                             peak resident memory of all rounds, the program included
    peak_by_text                        peak_mb by text_mb

Our way and the others have a process each; they take turns. Caches are made in a temporary folder
on a copy of the text: nothing of the user's is used or changed. Cold means that our cache is
absent; the system may well have the file in memory.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.measure import CHITCHAT, Contestant, benchmark_text, print_json
from smallgpt.data.corpus import CACHE_FOLDER, open_corpus
from smallgpt.data.text import BLANK, GZIP_MAGIC, XZ_MAGIC, check_files, read_bytes
from smallgpt.tokenizer.characters import FIRST_CHARACTER, PAD, SEP
from smallgpt.utils.errors import user_errors

SMILECHAT = Path("../shared/data/smilechat.txt.xz")
ROUNDS = 3
SAMPLE_BYTES = 10_000_000
"""So much of a text is enough for the plain way, which is slow."""
MB = 1_000_000

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@user_errors()
def main(
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text of dialogues, also .gz or .xz; may be given several times. By default the "
            "corpora in ../shared/data where they are at hand, else small talk of our own.",
        ),
    ] = None,
) -> None:
    """Measure the way from text to cached ids; one JSON object a text on standard output."""
    at_hand = [path for path in (SMILECHAT, CHITCHAT) if path.exists()]
    given = data or at_hand
    texts = [benchmark_text(path) for path in given] if given else [benchmark_text(None)]
    check_files(texts)
    for text in texts:
        print_json(**measurements(text))


def measurements(text: Path) -> dict[str, Any]:
    """All the numbers of one text, see the top of this file.

    Raises:
        UserError: it is no text of dialogues.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        copy = Path(name) / text.name
        shutil.copyfile(text, copy)
        sample = Path(name) / "sample"
        sample_bytes = _write_sample(copy, sample)

        ours, others = (stack.enter_context(Contestant(Preparation, copy)) for _ in range(2))
        program_bytes = ours.peak_memory()
        rounds = [
            {
                "decompression": others.call("decompress"),
                "cold": ours.call("open_cold"),
                "warm": ours.call("open_warm"),
                "plain": others.call("encode_plainly", sample),
            }
            for _ in range(ROUNDS)
        ]
        peak_bytes = ours.peak_memory()
        text_bytes = others.call("text_bytes")

    seconds = {kind: median(r[kind][0] for r in rounds) for kind in rounds[0]}
    beyond = median(r["cold"][0] - r["decompression"][0] for r in rounds)
    speed, plain_speed = text_bytes / beyond, sample_bytes / seconds["plain"]
    return {
        "text": text.name,
        "text_mb": text_bytes / MB,
        "decompression_seconds": seconds["decompression"],
        "cold_seconds": seconds["cold"],
        "cold_seconds_beyond_decompression": beyond,
        "mb_per_second": speed / MB,
        "cores_used": median(r["cold"][1] / r["cold"][0] for r in rounds),
        "plain_mb_per_second": plain_speed / MB,
        "plain_sample_mb": sample_bytes / MB,
        "times_plain": speed / plain_speed,
        "warm_seconds": seconds["warm"],
        "program_mb": program_bytes / MB,
        "peak_mb": peak_bytes / MB,
        "peak_by_text": peak_bytes / text_bytes,
    }


class Preparation:
    """What is timed. Every result is elapsed seconds and seconds of processor time.

    Args:
        text: the file; its cache will be beside it.
    """

    def __init__(self, text: Path) -> None:
        self.text = text

    def text_bytes(self) -> int:
        """Size of the decompressed text."""
        return sum(map(len, read_bytes(self.text)))

    def decompress(self) -> tuple[float, float]:
        """Read and decompress the file, if it is compressed, and keep nothing."""
        with self.text.open("rb") as file:
            if not file.read(6).startswith((GZIP_MAGIC, XZ_MAGIC)):
                return 0.0, 0.0
        return _timed(self.text_bytes)

    def open_cold(self) -> tuple[float, float]:
        """Encode the text and open what was written."""
        shutil.rmtree(self.text.parent / CACHE_FOLDER, ignore_errors=True)
        return self.open_warm()

    def open_warm(self) -> tuple[float, float]:
        """Open the text's cache."""
        return _timed(lambda: open_corpus([self.text]))

    def encode_plainly(self, sample: Path) -> tuple[float, float]:
        """The plain way, up to ids in a file."""

        def work() -> None:
            _, dialogues = encode_plainly(sample)
            np.save(sample.with_suffix(".npy"), np.concatenate(dialogues))

        return _timed(work)


def encode_plainly(path: Path) -> tuple[list[str], list[list[int]]]:
    """The plain way that ours is measured against: the whole text at once, loops in Python.

    It is written independently of ours, and gives the same.

    Args:
        path: a text file that is not compressed.

    Returns:
        the characters in id order, and the ids of every dialogue with its closing `<pad>`.
    """
    text = path.read_text("utf-8-sig")
    counts: dict[str, int] = {}
    for character in text:
        counts[character] = counts.get(character, 0) + 1
    counts.pop("\n", None)
    characters = sorted(counts, key=counts.__getitem__, reverse=True)
    id_of = {character: i for i, character in enumerate(characters, FIRST_CHARACTER)}
    id_of["\n"] = SEP

    text = re.sub(rf"\n[{BLANK}]*\Z", "", re.sub(rf"\A[{BLANK}]*\n", "", text)).rstrip()
    text = re.sub(rf"\n[{BLANK}]*\n", "\n\n", text)
    dialogues = []
    for dialogue in text.split("\n\n"):
        ids = []
        for character in dialogue:
            ids.append(id_of[character])
        ids.append(PAD)
        dialogues.append(ids)
    return characters, dialogues


def _write_sample(text: Path, sample: Path) -> int:
    """Write the text's beginning, decompressed; returns its bytes."""
    data = b""
    for chunk in read_bytes(text):
        data += chunk
        if len(data) >= SAMPLE_BYTES:
            break
    # Not half a character at its end.
    return sample.write_bytes(data[:SAMPLE_BYTES].decode(errors="ignore").encode())


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    began, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - processor


if __name__ == "__main__":
    app()
