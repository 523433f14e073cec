"""The real nginx, with deploy/nginx.conf, in front of two servers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from smallgpt.server.replies import Replies
from smallgpt.server.service import Limits, Service
from tests.helpers.models import HeldBot
from tests.helpers.processes import REPOSITORY, free_port, started
from tests.helpers.server import PATIENCE, Served, eventually, serving

pytestmark = pytest.mark.peers
SITE = (REPOSITORY / "deploy" / "nginx.conf").read_text("utf-8")
NAME = "chat.example.com"
KEY = "a key of nobody"
REPLY = "好" * 9


@pytest.fixture(scope="module")
def nginx() -> str:
    program = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    return program


def configuration(folder: Path, site: str, changes: dict[str, str]) -> Path:
    """A site of deploy/, changed where it must be, in a configuration that keeps to `folder`."""
    for old, new in changes.items():
        assert site.count(old) == 1, old
        site = site.replace(old, new)
    (folder / "site.conf").write_text(site, "utf-8")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    lines = [
        "user root;" if os.geteuid() == 0 else "",  # pytest's folder is for nobody else
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors;",
        "events {} http { access_log off;",
        *(f"{kind}_temp_path {folder}/{kind};" for kind in kinds),
        f"include {folder}/site.conf; }}",
    ]
    (folder / "main.conf").write_text("\n".join(lines), "utf-8")
    return folder / "main.conf"


class Front:
    """nginx and what is behind it."""

    def __init__(self, url: str, replicas: Sequence[Served], bots: Sequence[HeldBot]) -> None:
        self.url, self.replicas, self.bots = url, replicas, bots

    def client(self, number: int = 1, **settings: Any) -> httpx.Client:
        """Of an address of its own."""
        transport = httpx.HTTPTransport(local_address=f"127.0.0.{number}")
        headers = {"Host": NAME, "Authorization": f"Bearer {KEY}"}
        return httpx.Client(
            base_url=self.url,
            transport=transport,
            timeout=PATIENCE,
            **({"headers": headers} | settings),
        )

    def may_draw(self, ids: int) -> None:
        for bot in self.bots:
            bot.may_draw(ids)

    def running(self) -> int:
        """Requests that are replied to."""
        return sum(replica.service.engine.running for replica in self.replicas)

    def heard(self) -> list[int]:
        """How many requests each replica has replied to."""
        return [len(bot.script.contexts) for bot in self.bots]


@contextmanager
def front(nginx: str, folder: Path, **limits: Any) -> Iterator[Front]:
    """nginx in front of two replicas, which draw an id when they may."""
    bots = [HeldBot([REPLY]) for _ in range(2)]
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(serving(bot, "tiny", Limits(**limits), (NAME,), key=KEY))
            for bot in bots
        ]
        port = free_port()
        changes = {"listen 80;": f"listen 127.0.0.1:{port};"}
        for number, replica in enumerate(replicas):
            changes[f"127.0.0.1:800{number}"] = replica.url.removeprefix("http://")
        main = configuration(folder, SITE, changes)
        process = stack.enter_context(started([nginx, "-c", main, "-e", folder / "errors"], folder))
        running = Front(f"http://127.0.0.1:{port}", replicas, bots)
        with running.client() as client:

            def answers() -> bool:
                assert process.poll() is None, (folder / "errors").read_text()
                try:
                    return client.get("/health").is_success
                except httpx.ConnectError:
                    return False

            eventually(answers)
        yield running


def body(stream: bool = False) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "早上好"}], "stream": stream}


CHAT = "/v1/chat/completions"


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_a_stream_is_not_held_back(nginx: str, tmp_path: Path) -> None:
    with front(nginx, tmp_path) as there, there.client() as client:
        with client.stream("POST", CHAT, json=body(stream=True)) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = (line for line in response.iter_lines() if line)
            assert "role" in next(lines)
            for _ in REPLY:  # each comes before the next one may be drawn
                there.may_draw(1)
                chunk = json.loads(next(lines).removeprefix("data: "))
                assert chunk["choices"][0]["delta"]["content"] == "好"
            there.may_draw(1)
            assert next(lines).endswith('"finish_reason":"stop"}]}')
            assert next(lines) == "data: [DONE]"
        with client.stream("POST", CHAT, json=body(stream=True)) as response:
            assert response.status_code == 200
            eventually(lambda: there.running() == 1)
        left = {"path": CHAT, "status": "499"}
        requests = "smallgpt_requests_total"
        eventually(lambda: sum(each.metric(requests, **left) for each in there.replicas) == 1)
        there.may_draw(1)
        eventually(lambda: there.running() == 0)


def test_a_client_keeps_its_replica_until_that_one_ends(
    nginx: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses, original = set[str](), Service.replies

    def seen(service: Service, request: Request) -> Replies:
        assert request.client
        addresses.add(request.client.host)
        return original(service, request)

    monkeypatch.setattr(Service, "replies", seen)
    with front(nginx, tmp_path) as there:
        there.may_draw(1000)
        owners = []
        for number in range(1, 9):
            before = there.heard()
            with there.client(number) as client:
                replies = [text(client.post(CHAT, json=body())) for _ in range(2)]
            assert replies == [REPLY, REPLY]
            more = [n - m for n, m in zip(there.heard(), before, strict=True)]
            assert sorted(more) == [0, 2]
            owners.append(more.index(2))
        assert set(owners) == {0, 1}
        assert addresses == {f"127.0.0.{number}" for number in range(1, 9)}  # they take turns
        there.replicas[owners[0]].service.engine.drain()
        with there.client(1) as client:
            assert text(client.post(CHAT, json=body())) == REPLY
            assert client.get("/health").json()["status"] == "ok"


def test_a_full_replica_passes_on_to_the_other(nginx: str, tmp_path: Path) -> None:
    with (
        front(nginx, tmp_path, slots=1, queue=0) as there,
        there.client() as client,
        ThreadPoolExecutor() as threads,
    ):
        asked = []
        for _ in there.replicas:
            asked.append(threads.submit(client.post, CHAT, json=body()))
            eventually(lambda: there.running() == len(asked))
        for _ in range(2):
            refused = client.post(CHAT, json=body())
            assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
            assert refused.json()["error"]["code"] == "queue_full"
        there.may_draw(1000)
        assert [text(one.result()) for one in asked] == [REPLY, REPLY]
        assert there.heard() == [1, 1]
        assert text(client.post(CHAT, json=body())) == REPLY


def test_what_the_server_refuses_it_refuses_behind_nginx(nginx: str, tmp_path: Path) -> None:
    with front(nginx, tmp_path) as there:
        with there.client() as client:
            assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
            assert client.get("/metrics").status_code == 404
            for content, code in (("x" * 1_100_000, 413), ("", 400)):
                answer = client.post(CHAT, content=content)
                assert answer.status_code == code and answer.json()["error"]["message"]
        for headers, code in (({"Host": NAME}, 401), ({"Host": "evil.example"}, 403)):
            with there.client(headers=headers) as client:
                assert client.get("/v1/models").status_code == code


def test_the_lines_for_a_certificate(nginx: str, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "privkey.pem", tmp_path / "fullchain.pem"
    wanted = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={NAME}"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *wanted.split(), *files], capture_output=True, check=True)
    site = re.sub("# (?=listen 443|ssl_)", "", SITE.replace("    listen 80;\n", ""))
    site = site.replace(f"/etc/letsencrypt/live/{NAME}", str(tmp_path))
    assert site.count(str(tmp_path)) == 2
    main = configuration(tmp_path, site, {"listen 443 ssl;": f"listen {free_port()} ssl;"})
    command = [nginx, "-t", "-c", str(main), "-e", str(tmp_path / "errors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
