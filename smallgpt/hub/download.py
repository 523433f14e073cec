"""Files of others, fetched only when asked: `smallgpt download`.

A file gets into its place complete and with the right checksum, or not at all: the pinned checksum,
else the one recorded when it was fetched first, else the hub's. What has come so far lies beside
that place, in `.fetching-NAME/`: `part`, and in `version` the ETag of the file it begins.

The hub's client tells addresses (`HF_ENDPOINT` names a mirror) and checksums only: interrupted, its
own download (huggingface_hub 2.4) deletes what has come.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from smallgpt.checkpoints.checkpoint import sha256
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note

ATTEMPTS = 5
"""In a row that bring nothing."""
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice as long."""
TIMEOUT = 20.0
"""Seconds without a byte after which a connection counts as dropped."""
PART, VERSION = "part", "version"
GOES_ON = "the same command goes on where this one stopped"
_SHA256 = re.compile(r"[0-9a-f]{64}")
T = TypeVar("T")


@dataclass(frozen=True)
class Asset:
    """where: `repository/file` of the hub, or a whole address; target: where it belongs here;
    sha256: None where it is not known before the first time."""

    what: str
    target: str
    where: str
    kind: str = "model"
    sha256: str | None = None


ASSETS = {
    **{
        f"pretrained-{size}": Asset(
            f"the published {size} weights",
            f"checkpoints/pretrained/cpt{size}.pth",
            f"cjl196/small-gpt/cpt{size}.pth",
        )
        for size in ("90M", "300M")
    },
    "hotel-reviews": Asset(
        "7,766 labelled hotel reviews (ChnSentiCorp)",
        "data/ChnSentiCorp_htl_all.csv",
        "https://raw.githubusercontent.com/SophonPlus/ChineseNlpCorpus/master/datasets/"
        "ChnSentiCorp_htl_all/ChnSentiCorp_htl_all.csv",
    ),
    "chitchat": Asset(
        "6.8 million short dialogues (LCCC-base, MIT); data_path takes the file as it is",
        "data/lccc_base_train.jsonl.gz",
        "silver/lccc/lccc_base_train.jsonl.gz",
        "dataset",
        "2162e0ed923fba62329cabf7e1493fbe59248afc94a62508e4abdea61e624627",
    ),
}


class PassingError(Exception):
    """What another attempt may do better; the message says what it was."""


def named(name: str) -> Asset:
    """What is offered under a name.

    Raises:
        UserError: nothing is.
    """
    if name not in ASSETS:
        raise UserError(f"there is nothing called {name!r}", f"there are: {', '.join(ASSETS)}")
    return ASSETS[name]


def fetch(name: str, folder: Path, asset: Asset | None = None) -> Path:
    """Fetch a file into its place below `folder`; one that is there is checked, not fetched again.

    What has come of a fetch that was stopped is used.

    Raises:
        UserError: an unknown name, no network, no room, another process is fetching it, or it is
            not the file it should be.
    """
    asset = asset or named(name)
    target = folder / asset.target
    record = target.with_name(f"{target.name}.sha256")
    known = asset.sha256 or _recorded(record)
    changed = f"; if it has changed for good, delete {record} too" if record.exists() else ""
    try:
        with ExitStack() as held:
            part = None if target.exists() else held.enter_context(_alone(target)) / PART
            if part is None or target.exists():  # another process may have fetched it meanwhile
                note(f"{target} is there already; checking it")
                found = sha256(target)
                _check(str(target), found, known, f"delete it and fetch it again{changed}")
            else:
                note(f"fetching {asset.what} into {target}")
                address, told = _fetch_all(asset, part)
                found = sha256(part)
                if (known or told) not in (None, found):
                    part.unlink()
                _check(address, found, known or told, f"nothing is kept; try again{changed}")
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


def _recorded(record: Path) -> str | None:
    try:
        found = _SHA256.match(record.read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return found and found[0]


def _check(what: str, found: str, expected: str | None, advice: str) -> None:
    if expected not in (None, found):
        problem = f"{what} is not the file that was expected"
        raise UserError(f"{problem}: its sha256 is {found}, not {expected}", advice)


@contextmanager
def _alone(target: Path) -> Iterator[Path]:
    """The locked folder beside `target` for what has come of it, deleted where that is nothing."""
    work = target.with_name(f".fetching-{target.name}")
    try:
        with atomic.exclusive(work):
            try:
                yield work
            finally:
                if not (work / PART).exists():
                    shutil.rmtree(work, ignore_errors=True)
    except BlockingIOError:
        raise UserError(f"another download of {target} is under way", "wait for it") from None
    except KeyboardInterrupt:
        note(f"what has come is kept; {GOES_ON}")
        raise


def _fetch_all(asset: Asset, part: Path) -> tuple[str, str | None]:
    """Fetch until `part` is complete; returns the address and, if known, the hub's checksum.

    Raises:
        UserError: several attempts in a row brought nothing, or it is not there.
        OSError: it cannot be written.
    """
    address, told, fruitless, size = asset.where, None, 0, _size(part)
    while True:
        try:
            if "://" not in asset.where:
                address, told = _on_hub(asset)
            _fetch_rest(address, part)
            return address, told
        except PassingError as error:
            fruitless = fruitless + 1 if _size(part) <= size else 1
            size = _size(part)
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
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    repository, _, file = asset.where.rpartition("/")
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    address = huggingface_hub.hf_hub_url(repository, file, repo_type=asset.kind, endpoint=endpoint)
    try:
        found = huggingface_hub.get_hf_file_metadata(
            address, token=False, timeout=TIMEOUT, endpoint=endpoint
        )
    except OfflineModeIsEnabled:
        raise UserError(f"{address} cannot be fetched: HF_HUB_OFFLINE is set", "unset it") from None
    except HfHubHTTPError as error:
        response = error.response
        raise _http_error(address, response.status_code, response.reason_phrase) from None
    except Exception as error:  # those of requests, httpx or httpx2, by the client's version
        raise _passing(error) from None
    return address, found.etag if _SHA256.fullmatch(found.etag or "") else None


def _http_error(address: str, code: int, reason: str) -> Exception:
    """What a status means: the server is busy or broken, or asking again would not help."""
    if code >= 500 or code in (408, 425, 429):
        return PassingError(f"{code} {reason}")
    return UserError(
        f"{address}: {code} {reason}", "has it moved? Then put the file into its place yourself"
    )


def _passing(error: Exception) -> PassingError:
    reason = " ".join(str(getattr(error, "reason", "") or error).split())[:160]
    return PassingError(reason or type(error).__name__)


def _fetch_rest(address: str, part: Path) -> None:
    """Fetch what is missing of `part`, with a progress bar.

    Raises:
        PassingError: it broke off; what has come is kept.
        UserError: the server does not have it.
        OSError: it cannot be written.
    """
    start = _size(part)
    response = _open(address, start, part)
    if response is None:
        return
    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            start = 0  # it sends the whole file
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise PassingError("the server sent another part than the one asked for")
        length = response.headers.get("Content-Length", "")
        whole = start + int(length) if length.isdigit() else None
        part.with_name(VERSION).write_text(response.headers.get("ETag", ""), "utf-8")
        name = part.parent.name.removeprefix(".fetching-")
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(total=whole, initial=start, unit="B", unit_scale=True, desc=name) as bar,
        ):
            while data := _of_connection(lambda: response.read(1 << 16)):
                file.write(data)
                bar.update(len(data))
    if whole is not None and _size(part) != whole:
        raise PassingError(f"it ended after {_size(part):,} of {whole:,} bytes")


def _open(address: str, start: int, part: Path) -> http.client.HTTPResponse | None:
    """The answer from `start` on, or from the beginning; None where nothing is missing."""
    version = part.with_name(VERSION)
    headers = {"User-Agent": "smallgpt", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        etag = version.read_text("utf-8") if version.exists() else ""
        if etag.startswith('"'):  # a strong one: another version comes from its beginning
            headers["If-Range"] = etag
    try:
        request = _of_connection(lambda: urllib.request.Request(address, headers=headers))
        return _of_connection(lambda: urllib.request.urlopen(request, timeout=TIMEOUT))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise _http_error(address, error.code, str(error.reason)) from None
        if error.headers.get("Content-Range", "").endswith(f"*/{start}"):
            return None
        part.unlink()
        raise PassingError("what had come was not a beginning of it") from None


def _of_connection(work: Callable[[], T]) -> T:
    """What `work` returns; errors of the connection, unlike those of the disk, may pass."""
    try:
        return work()
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _passing(error) from None
