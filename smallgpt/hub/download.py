"""Files of others that one may want, fetched only when asked: `smallgpt download`.

Nothing appears in its place before all of it is there with the right checksum: the one known here,
else the one recorded when it was fetched the first time, else the one the hub tells. Addresses and
checksums of the hub come from its own client, which knows `HF_ENDPOINT` for a mirror; the bytes do
not, as it throws away what a download that was stopped had got (huggingface_hub 2.4).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from smallgpt.checkpoints.checkpoint import sha256
from smallgpt.hub import transfer
from smallgpt.hub.transfer import PassingError
from smallgpt.utils import atomic
from smallgpt.utils.errors import UserError, note

GOES_ON = "the same command goes on where this one stopped"
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    "pretrained-90M": Asset(
        "the published 90M weights",
        "checkpoints/pretrained/cpt90M.pth",
        "cjl196/small-gpt/cpt90M.pth",
    ),
    "pretrained-300M": Asset(
        "the published 300M weights",
        "checkpoints/pretrained/cpt300M.pth",
        "cjl196/small-gpt/cpt300M.pth",
    ),
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
    try:
        if target.exists():
            note(f"{target} is there already; checking it")
            found = sha256(target)
            _check(str(target), found, known, f"delete it and fetch it again{_changed(record)}")
        else:
            with _alone(target) as place:
                found = _into_place(asset, target, place, known)
        if known is None:
            with atomic.file(record) as work:
                work.write_text(f"{found}  {target.name}\n", "utf-8")
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


def _changed(record: Path) -> str:
    return f"; if it has changed for good, delete {record} too" if record.exists() else ""


def _check(what: str, found: str, expected: str | None, advice: str) -> None:
    if expected is not None and found != expected:
        raise UserError(
            f"{what} is not the file that was expected: its sha256 is {found}, not {expected}",
            advice,
        )


@contextmanager
def _alone(target: Path) -> Iterator[Path]:
    """The folder beside `target` for what has come of it, with nobody else at work in it."""
    place = target.with_name(f".fetching-{target.name}")
    try:
        with atomic.exclusive(place):
            try:
                yield place
            finally:
                if not (place / transfer.PART).exists():
                    shutil.rmtree(place, ignore_errors=True)
    except BlockingIOError:
        raise UserError(f"another download of {target} is under way", "wait for it") from None
    except KeyboardInterrupt:
        note(f"what has come is kept; {GOES_ON}")
        raise


def _into_place(asset: Asset, target: Path, place: Path, known: str | None) -> str:
    """Fetch, check, and only then put it into its place; returns the checksum."""
    if target.exists():  # another process has fetched it meanwhile
        return sha256(target)
    note(f"fetching {asset.what} into {target}")
    address, told = asset.where, None
    try:
        if "://" not in address:
            address, told = transfer.persistently(lambda: _on_hub(asset), place)
        transfer.persistently(lambda: transfer.go_on(address, place, target.name), place)
    except PassingError as error:
        raise UserError(
            f"{address} cannot be fetched: {error}",
            f"is there a network? With a mirror of the hub, set HF_ENDPOINT; {GOES_ON}",
        ) from None
    part = place / transfer.PART
    found = sha256(part)
    try:
        record = target.with_name(f"{target.name}.sha256")
        _check(address, found, known or told, f"nothing is kept; try again{_changed(record)}")
    except UserError:
        part.unlink()
        raise
    atomic.put(part, target)
    return found


def _on_hub(asset: Asset) -> tuple[str, str | None]:
    """The address of a file of the hub, and its checksum where the hub tells it."""
    import huggingface_hub  # only here, as it is slow to import
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    repository, _, file = asset.where.rpartition("/")
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    address = huggingface_hub.hf_hub_url(repository, file, repo_type=asset.kind, endpoint=endpoint)
    try:
        found = huggingface_hub.get_hf_file_metadata(
            address, token=False, timeout=transfer.TIMEOUT, endpoint=endpoint
        )
    except OfflineModeIsEnabled:
        raise UserError(f"{address} cannot be fetched: HF_HUB_OFFLINE is set", "unset it") from None
    except HfHubHTTPError as error:
        transfer.refuse(address, error.response.status_code, error.response.reason_phrase)
        raise
    except Exception as error:  # those of requests, httpx or httpx2, by the client's version
        raise PassingError(" ".join(str(error).split())[:160] or type(error).__name__) from None
    return address, found.etag if _SHA256.fullmatch(found.etag or "") else None
