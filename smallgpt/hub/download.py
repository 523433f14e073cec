"""Files of others, fetched only when asked: `smallgpt download`.

A file gets into its place complete and with the right checksum, or not at all: the pinned checksum,
else the one recorded when it was fetched first, else the hub's. What has come so far lies beside
that place, in `.fetching-NAME/`: `part`, and in `version` the ETag of the file it begins.

The hub's client tells addresses (`HF_ENDPOINT` names a mirror) and checksums only: interrupted, its
own download (huggingface_hub 2.4) deletes what has come.
"""

import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from smallgpt.checkpoints.checkpoint import sha256
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.published import ASSETS, Asset

ATTEMPTS = 5
"""In a row that bring nothing."""
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice as long."""
TIMEOUT = 20.0
"""Seconds without a byte after which a connection counts as dropped."""
PART, VERSION = "part", "version"
GOES_ON = "the same command goes on where this one stopped"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class PassingError(Exception):
    """What another attempt may do better; the message says what it was."""


def named(name: str) -> Asset:
    """What is offered under a name; a UserError lists the names if nothing is."""
    if name not in ASSETS:
        raise UserError(f"there is nothing called {name!r}", f"there are: {', '.join(ASSETS)}")
    return ASSETS[name]


def fetch(asset: Asset, folder: Path) -> Path:
    """Fetch a file into its place below `folder`; one that is there is checked, not fetched again.

    What has come of a fetch that was stopped is used.

    Raises:
        UserError: no network, no room, another process is fetching it, or it is not the file it
            should be.
    """
    target = folder / asset.target
    record = target.with_name(f"{target.name}.sha256")
    try:
        recorded = _SHA256.match(record.read_text("utf-8", "replace")) if record.exists() else None
        known = asset.sha256 or (recorded and recorded[0])
        changed = f"; if it has changed for good, delete {record} too" if recorded else ""
        if target.exists():
            note(f"{target} is there already; checking it")
            found = sha256(target)
            _check(str(target), found, known, f"delete it and fetch it again{changed}")
        else:
            note(f"fetching {asset.what} into {target}")
            with _alone(target) as part:
                address, of_hub = _fetch_all(asset, part)
                found = sha256(part)
                try:
                    _check(address, found, known or of_hub, f"nothing is kept; try again{changed}")
                except UserError:
                    part.unlink()
                    raise
                atomic.put(part, target)
        if known is None:
            with atomic.file(record) as file:
                file.write_text(f"{found}  {target.name}\n", "utf-8")
            note(f"sha256 {found}, recorded in {record}")
    except OSError as error:
        raise UserError(
            f"{target} cannot be written or read: {error.strerror or error}",
            f"make room, or choose another --folder; {GOES_ON}",
        ) from None
    return target


def _check(what: str, found: str, expected: str | None, advice: str) -> None:
    if expected not in (None, found):
        problem = f"{what} is not the file that was expected"
        raise UserError(f"{problem}: its sha256 is {found}, not {expected}", advice)


@contextmanager
def _alone(target: Path) -> Iterator[Path]:
    """The path for what has come of `target`, in a locked folder that is deleted with it."""
    work = target.with_name(f".fetching-{target.name}")
    try:
        with atomic.exclusive(work):
            try:
                yield work / PART
            finally:
                if not (work / PART).exists():
                    shutil.rmtree(work, ignore_errors=True)
    except BlockingIOError:
        raise UserError(f"another download of {target} is under way", "wait for it") from None
    except KeyboardInterrupt:
        note(f"what has come is kept; {GOES_ON}")
        raise


def _fetch_all(asset: Asset, part: Path) -> tuple[str, str | None]:
    """Fetch until `part` is complete; returns the address and, if known, the hub's checksum."""
    address, of_hub, fruitless = asset.where, None, 0
    while True:
        before = _size(part)
        try:
            if "://" not in asset.where:
                address, of_hub = _on_hub(asset)
            _fetch_rest(address, part)
            return address, of_hub
        except PassingError as error:
            fruitless = 1 if _size(part) > before else fruitless + 1
            if fruitless == ATTEMPTS:
                raise UserError(
                    f"{address} cannot be fetched: {error}",
                    f"is there a network? With a mirror of the hub, set HF_ENDPOINT; {GOES_ON}",
                ) from None
            time.sleep(FIRST_PAUSE * 2 ** (fruitless - 1))


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _on_hub(asset: Asset) -> tuple[str, str | None]:
    import huggingface_hub  # only here, as it is slow to import

    repository, _, file = asset.where.rpartition("/")
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    address = huggingface_hub.hf_hub_url(repository, file, repo_type=asset.kind, endpoint=endpoint)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise UserError(f"{address} cannot be fetched: HF_HUB_OFFLINE is set", "unset it")
    with _connection(address):
        etag = huggingface_hub.get_hf_file_metadata(
            address, token=False, timeout=TIMEOUT, endpoint=endpoint
        ).etag
    return address, etag if _SHA256.fullmatch(etag or "") else None


@contextmanager
def _connection(address: str) -> Iterator[None]:
    """Turn errors of the connection, unlike those of the disk, into `PassingError`, or into
    `UserError` where asking again would not help."""
    try:
        yield
    except Exception as error:  # urllib's, or of the library that the hub's client uses
        response = getattr(error, "response", None)
        code = getattr(error, "code", None) or getattr(response, "status_code", None)
        reason = " ".join(str(getattr(error, "reason", "") or error).split())[:160]
        if code:
            reason = f"{code} {http.client.responses.get(code, '')}"
            if code < 500 and code not in (408, 425, 429):
                advice = "has it moved? Then put the file into its place yourself"
                raise UserError(f"{address}: {reason}", advice) from None
        raise PassingError(reason or type(error).__name__) from None


def _fetch_rest(address: str, part: Path) -> None:
    """Fetch what is missing of `part`, with a progress bar; what has come when it fails is kept."""
    version = part.with_name(VERSION)
    start = _size(part) if version.exists() else 0
    headers = {"User-Agent": "smallgpt", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        etag = version.read_text("utf-8")
        if etag.startswith('"'):  # a strong one: another version comes from its beginning
            headers["If-Range"] = etag
    with _connection(address):
        try:
            request = urllib.request.Request(address, headers=headers)
            response = urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
                raise
            if error.headers.get("Content-Range", "").endswith(f"*/{start}"):
                return
            part.unlink()
            raise PassingError("what had come was not a beginning of it") from None
    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            start = 0  # it sends the whole file
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise PassingError("the server sent another part than the one asked for")
        length = response.headers.get("Content-Length", "")
        whole = start + int(length) if length.isdigit() else None
        version.write_text(response.headers.get("ETag", ""), "utf-8")
        name = part.parent.name.removeprefix(".fetching-")
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(total=whole, initial=start, unit="B", unit_scale=True, desc=name) as bar,
        ):
            while data := _read(response, address):
                file.write(data)
                bar.update(len(data))
    if whole is not None and _size(part) != whole:
        raise PassingError(f"it ended after {_size(part):,} of {whole:,} bytes")


def _read(response: http.client.HTTPResponse, address: str) -> bytes:
    with _connection(address):
        return response.read(1 << 16)
