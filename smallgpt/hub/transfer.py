"""Bytes over HTTP that survive dropped connections and stopped programs.

What has come lies in a folder: `part`, and in `version` the ETag of the file it is a beginning of.
"""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from smallgpt.utils.errors import UserError

ATTEMPTS = 5
"""In a row that bring nothing."""
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice as long."""
TIMEOUT = 20.0
"""Seconds without a byte after which a connection counts as dropped."""
PART, VERSION = "part", "version"
_BYTES = 1 << 16
_BUSY = (408, 425, 429)
_RANGE_NOT_THERE = 416

T = TypeVar("T")


class PassingError(Exception):
    """What another attempt may do better; the message says what it was."""


def persistently(attempt: Callable[[], T], folder: Path) -> T:
    """What `attempt` returns, as soon as it does.

    Raises:
        PassingError: the last one, after several in a row that brought nothing into `folder`.
    """
    tried, size = 0, _size(folder)
    while True:
        try:
            return attempt()
        except PassingError:
            tried, size = (tried + 1 if _size(folder) <= size else 1), _size(folder)
            if tried >= ATTEMPTS:
                raise
            time.sleep(FIRST_PAUSE * 2 ** (tried - 1))


def refuse(address: str, code: int, reason: str) -> None:
    """Raise what an HTTP status that is an error means.

    Raises:
        PassingError: the server is busy or broken.
        UserError: asking again would not help.
    """
    if code >= 500 or code in _BUSY:
        raise PassingError(f"{code} {reason}")
    raise UserError(
        f"{address}: {code} {reason}", "has it moved? Then put the file into its place yourself"
    )


def go_on(address: str, folder: Path, name: str) -> None:
    """Fetch what is missing of `folder/part`, with a progress bar called `name`.

    Raises:
        PassingError: it broke off; what has come is kept.
        UserError: the server does not have it.
        OSError: it cannot be written.
    """
    part, version = folder / PART, folder / VERSION
    start = _size(folder)
    response = _open(address, start, version)
    if response is None:
        return
    with response:
        resumed = _resumes(response, start)
        start = start if resumed else 0
        length = response.headers.get("Content-Length")
        whole = start + int(length) if length and length.isdigit() else None
        version.write_text(response.headers.get("ETag", ""), "utf-8")
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(total=whole, initial=start, unit="B", unit_scale=True, desc=name) as bar,
        ):
            for data in _stream(response):
                file.write(data)
                bar.update(len(data))
    if whole is not None and _size(folder) != whole:
        raise PassingError(f"it ended after {_size(folder):,} of {whole:,} bytes")


def _size(folder: Path) -> int:
    part = folder / PART
    return part.stat().st_size if part.exists() else 0


def _open(address: str, start: int, version: Path) -> http.client.HTTPResponse | None:
    """The answer from `start` on, or from the beginning; None where nothing is missing."""
    headers = {"User-Agent": "smallgpt", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        etag = version.read_text("utf-8") if version.exists() else ""
        if etag.startswith('"'):  # a strong one: another version comes from its beginning
            headers["If-Range"] = etag
    try:
        request = urllib.request.Request(address, headers=headers)
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
        return response
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == _RANGE_NOT_THERE and start:
            if error.headers.get("Content-Range", "").endswith(f"*/{start}"):
                return None
            (version.parent / PART).unlink()
            raise PassingError("what had come was not a beginning of it") from None
        refuse(address, error.code, str(error.reason))
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise PassingError(_reason(error)) from None


def _resumes(response: http.client.HTTPResponse, start: int) -> bool:
    """Whether the answer is the rest that was asked for; else it is the whole file.

    Raises:
        PassingError: it is another part of the file.
    """
    if response.status != http.client.PARTIAL_CONTENT:
        return False
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != start:
        raise PassingError("the server sent another part than the one asked for")
    return True


def _stream(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            data = response.read(_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise PassingError(_reason(error)) from None
        if not data:
            return
        yield data


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "reason", "") or error).split()) or type(error).__name__
