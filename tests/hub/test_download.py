"""Downloads from a local server that does what networks do: drops, lies, redirects, fails."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from smallgpt.config_file import load_config
from smallgpt.hub import download
from smallgpt.hub.download import fetch, named
from smallgpt.utils import atomic
from smallgpt.utils.published import Asset
from tests.helpers.commands import python_here, refusal
from tests.helpers.processes import REPOSITORY

BODY = bytes(range(256)) * 3000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """What the server does to the next GET requests stands in `plan`; then it behaves."""

    plan: list[str]
    seen: list[tuple[str, str | None]]
    address: str
    etag = f'"{SHA256}"'

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer("absent" if "absent" in self.plan else "well", False)

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):  # the hub's client asks what it can do
            return self.send_error(404)
        self.seen.append((self.path, self.headers.get("Range")))
        return self.answer(self.plan.pop(0) if self.plan else "well", True)

    def answer(self, deed: str, body: bool) -> None:
        if deed.isdigit() or deed == "absent":
            return self.send_error(404 if deed == "absent" else int(deed))
        if deed == "redirect":
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        asked = self.headers.get("Range")
        if deed == "ignores range" or self.headers.get("If-Range", self.etag) != self.etag:
            asked = None
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        if asked and start >= len(BODY):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(BODY)}")
            return self.end_headers()
        part = BODY[start:]
        told = start + (1 if deed == "another part" else 0)
        self.send_response(206 if asked else 200)
        self.send_header("ETag", self.etag)
        self.send_header("X-Repo-Commit", "a" * 40)
        more = {"tells too much": 1000, "tells too little": -1000}.get(deed, 0)
        self.send_header("Content-Length", str(len(part) + more))
        if asked:
            self.send_header("Content-Range", f"bytes {told}-{len(BODY) - 1}/{len(BODY)}")
        self.end_headers()
        if body:
            sent = {"drops": len(part) // 2, "sends nothing": 0}.get(deed, len(part))
            self.wfile.write(part[:sent])
            self.wfile.flush()
        self.close_connection = True
        return None


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.001)


@pytest.fixture
def server(online: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Handler]]:
    mine: type[Handler] = type("Mine", (Handler,), {"plan": [], "seen": []})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), mine)
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    mine.address = f"http://127.0.0.1:{running.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", mine.address + "/")
    yield mine
    running.shutdown()
    running.server_close()
    thread.join()


def asset(server: type[Handler], kind: str, sha256: str | None = None) -> Asset:
    where = "one/two/x.bin" if kind == "hub" else f"{server.address}/x.bin"
    return Asset("a file", "data/x.bin", where, sha256=sha256)


def begin(tmp_path: Path, beginning: bytes, etag: str = "") -> None:
    """As a fetch leaves it that was killed."""
    place = tmp_path / "data" / ".fetching-x.bin"
    place.mkdir(parents=True)
    (place / "part").write_bytes(beginning)
    (place / "version").write_text(etag)


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "data").iterdir())


KINDS = pytest.mark.parametrize("kind", ["hub", "address"])


@KINDS
@pytest.mark.parametrize("deed", ["well", "drops", "tells too much", "500", "429", "redirect"])
def test_it_comes_through(server: type[Handler], tmp_path: Path, kind: str, deed: str) -> None:
    server.plan += [deed]
    target = fetch(asset(server, kind, SHA256), tmp_path)
    assert target == tmp_path / "data" / "x.bin"
    assert target.read_bytes() == BODY
    assert left(tmp_path) == ["x.bin"]


@KINDS
def test_a_dropped_connection_is_resumed(server: type[Handler], tmp_path: Path, kind: str) -> None:
    server.plan += ["drops"] * 12  # more often than it tries without getting anything
    fetch(asset(server, kind, SHA256), tmp_path)
    assert [asked for _, asked in server.seen][:2] == [None, f"bytes={len(BODY) // 2}-"]
    assert len(server.seen) == 13


@pytest.mark.parametrize(
    ("beginning", "etag", "plan", "asked"),
    [
        (BODY[:1000], Handler.etag, "", ["bytes=1000-"]),
        (BODY, Handler.etag, "", [f"bytes={len(BODY)}-"]),  # killed before the renaming
        (b"old" * 100, '"the old one"', "", ["bytes=300-"]),
        (BODY + b"?", "", "", [f"bytes={len(BODY) + 1}-", None]),  # more than there is
        (BODY[:1000], "", "ignores range", ["bytes=1000-"]),
        (BODY[:1000], "", "another part", ["bytes=1000-"] * 2),
    ],
)
@KINDS
def test_what_a_killed_run_left(
    server: type[Handler],
    tmp_path: Path,
    kind: str,
    beginning: bytes,
    etag: str,
    plan: str,
    asked: list[str | None],
) -> None:
    begin(tmp_path, beginning, etag)
    server.plan += [plan] if plan else []
    assert fetch(asset(server, kind), tmp_path).read_bytes() == BODY
    assert [range for _, range in server.seen] == asked
    assert left(tmp_path) == ["x.bin", "x.bin.sha256"]


@KINDS
@pytest.mark.parametrize("deed", ["404", "absent", "503", "sends nothing", "tells too little"])
def test_what_cannot_be_had_is_said(
    server: type[Handler], tmp_path: Path, kind: str, deed: str
) -> None:
    server.plan += [deed] * 40
    said = refusal(lambda: fetch(asset(server, kind, SHA256), tmp_path))
    reasons = {
        "absent": "404 Not Found",
        "sends nothing": "it ended after 0 of 768,000 bytes",
        "tells too little": "not the file that was expected",
    }
    assert "x.bin" in said and reasons.get(deed, deed) in said
    assert not (tmp_path / "data" / "x.bin").exists()


@pytest.mark.parametrize(
    ("endpoint", "where"),
    [
        ("http://127.0.0.1:9", "one/two/x.bin"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9/x.bin"),
        ("hf-mirror", "one/two/x.bin"),
        ("ftp://127.0.0.1:9", "one/two/x.bin"),
        ("http://[::1", "one/two/x.bin"),
    ],
)
@pytest.mark.usefixtures("online")
def test_without_a_network_or_with_a_wrong_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str, where: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    said = refusal(lambda: fetch(Asset("a file", "data/x.bin", where), tmp_path))
    assert "cannot be fetched" in said and "network" in said and "HF_ENDPOINT" in said
    assert left(tmp_path) == []


def test_offline(server: type[Handler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(lambda: fetch(asset(server, "hub"), tmp_path))
    assert not server.seen


@pytest.mark.parametrize(
    ("kind", "pinned", "etag"),
    [
        ("hub", "0" * 64, Handler.etag),
        ("address", "0" * 64, Handler.etag),
        ("hub", None, f'"{"0" * 64}"'),  # by which the hub tells the checksum
    ],
)
def test_what_has_a_wrong_checksum_never_gets_into_its_place(
    server: type[Handler], tmp_path: Path, kind: str, pinned: str | None, etag: str
) -> None:
    server.etag = etag
    said = refusal(lambda: fetch(asset(server, kind, pinned), tmp_path))
    assert SHA256 in said and "0" * 64 in said
    assert left(tmp_path) == []


@KINDS
def test_the_first_checksum_is_kept_and_checked_later(
    server: type[Handler], tmp_path: Path, kind: str
) -> None:
    unknown = asset(server, kind)
    target = fetch(unknown, tmp_path)
    record = tmp_path / "data" / "x.bin.sha256"
    assert record.read_text() == f"{SHA256}  x.bin\n"
    asked = len(server.seen)
    assert fetch(unknown, tmp_path) == target
    assert len(server.seen) == asked  # nothing is fetched twice
    target.write_bytes(BODY[:-1])
    assert "delete it" in refusal(lambda: fetch(unknown, tmp_path))
    target.unlink()
    record.write_text("2" * 64 + "  x.bin\n")
    assert f"delete {record} too" in refusal(lambda: fetch(unknown, tmp_path))
    assert not target.exists()


def test_two_at_once(server: type[Handler], tmp_path: Path) -> None:
    begin(tmp_path, BODY[:1000])
    with atomic.exclusive(tmp_path / "data" / ".fetching-x.bin"):
        said = refusal(lambda: fetch(asset(server, "address"), tmp_path))
    assert "under way" in said and not server.seen


def test_a_place_that_cannot_be_written(server: type[Handler], tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file, where a folder belongs")
    assert "cannot be written" in refusal(lambda: fetch(asset(server, "address"), tmp_path))
    (tmp_path / "data").unlink()
    (tmp_path / "data" / "x.bin").mkdir(parents=True)
    assert "Is a directory" in refusal(lambda: fetch(asset(server, "address"), tmp_path))


def test_a_full_disk(
    server: type[Handler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path, BODY[:1000])
    monkeypatch.setattr(download, "PART", "full")
    (tmp_path / "data" / ".fetching-x.bin" / "full").symlink_to("/dev/full")
    said = refusal(lambda: fetch(asset(server, "address"), tmp_path))
    assert "No space left" in said and "make room" in said


def test_ctrl_c_keeps_what_has_come(
    server: type[Handler],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    server.plan += ["drops"]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("time.sleep", interrupt)
        fetch(asset(server, "address", SHA256), tmp_path)
    assert "what has come is kept; the same command goes on" in capsys.readouterr().err
    assert left(tmp_path) == [".fetching-x.bin"]
    fetch(asset(server, "address", SHA256), tmp_path)
    assert server.seen[-1][1] == f"bytes={len(BODY) // 2}-"


def test_what_is_offered(server: type[Handler], tmp_path: Path) -> None:
    assert "there are: pretrained-90M" in refusal(lambda: fetch(named("y"), tmp_path))
    for name in ("pretrained-90M", "pretrained-300M", "chitchat"):
        fetch(replace(named(name), sha256=None), tmp_path)
    assert {path for path, _ in server.seen} == {
        "/cjl196/small-gpt/resolve/main/cpt90M.pth",
        "/cjl196/small-gpt/resolve/main/cpt300M.pth",
        "/datasets/silver/lccc/resolve/main/lccc_base_train.jsonl.gz",
    }
    for name in ("chat90M.yaml", "chat300M.yaml"):
        assert (tmp_path / str(load_config(REPOSITORY / "config" / name).resume_from)).exists()


def test_the_command(server: type[Handler], tmp_path: Path) -> None:
    """The README's, from a mirror; hotel reviews are not on the hub."""
    run = partial(python_here, tmp_path, "-m", "smallgpt", "download")
    done = run("pretrained-300M")
    assert (done.exit_code, done.stdout) == (0, "checkpoints/pretrained/cpt300M.pth\n")
    assert f"sha256 {SHA256}, recorded in" in done.stderr and "100%" in done.stderr
    misspelt = run("pretrained-90M", "chitcat")
    assert misspelt.exit_code == 2 and "fetching" not in misspelt.stderr
    again = run("chitchat")
    assert (again.exit_code, again.stdout) == (2, "")
    assert "not the file that was expected" in again.stderr and "Traceback" not in again.stderr
