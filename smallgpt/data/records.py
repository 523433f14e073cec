"""Records of JSON lists and Parquet files as a stream, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import ijson

from smallgpt.data.table import LONGEST
from smallgpt.data.text import open_decompressed
from smallgpt.errors import UserError


class _Bounded:
    """A file that refuses to go on within a record of more than `LONGEST` bytes."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        self.record, self.read_since = 1, 0

    def read(self, size: int) -> bytes:
        self.read_since += size
        if self.read_since > LONGEST:
            raise UserError(
                f"{self._path}, record {self.record:,} is longer than {LONGEST:,} bytes",
                "is it a list of dialogues?",
            )
        return self._file.read(size)


def list_items(path: Path) -> Iterator[tuple[int, Any]]:
    """Stream the items of a JSON list, numbered from 1.

    Raises:
        UserError: it is broken, or an item is too long; what is before it has been given.
    """
    number = 0
    try:
        with open_decompressed(path) as file:
            bounded = _Bounded(file, path)
            for number, item in enumerate(ijson.items(bounded, "item", use_float=True), start=1):
                yield number, item
                bounded.record, bounded.read_since = number + 1, 0
    except (ijson.JSONError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(
            f"{path}: the list is broken behind record {number:,}: {reason}",
            "what follows cannot be read; get the file again",
        ) from None


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Stream the rows of a Parquet file, by column.

    Raises:
        UserError: it is damaged, or pyarrow is missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{path} is Parquet, which needs pyarrow", "install it: pip install pyarrow"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
