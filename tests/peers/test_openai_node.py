"""OpenAI's own library for Node as the client."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import smallgpt
from tests.helpers.server import serving

pytestmark = pytest.mark.peers
OPENAI = "openai@6.49.0"  # version 7 is for Node 22 and newer
KEY = "a key of nobody"
PROGRAM = """
import OpenAI from "openai";
const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey });
const said = {};
const models = await client.models.list();
const model = models.data[0].id;
const messages = [{ role: "user", content: "早上好呀" }];

const completion = await client.chat.completions.create({ model, messages });
said.completion = completion.choices[0].message.content;
said.usage = completion.usage;

said.streamed = "";
const stream = await client.chat.completions.create({
    model, messages, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
    said.streamed += chunk.choices[0]?.delta?.content ?? "";
    said.streamedUsage = chunk.usage ?? null;
}

const runner = client.chat.completions.stream({ model, messages });
said.added = (await runner.finalChatCompletion()).choices[0].message.content;

const left = await client.chat.completions.create({ model, messages, stream: true });
for await (const chunk of left) break;  // closes the connection

const completed = await client.completions.create({ model, prompt: "早上好呀\\n", stop: "\\n" });
said.completed = completed.choices[0].text;

said.errors = {};
const asked = {
    model: () => client.models.retrieve("gpt-4"),
    tools: () => client.chat.completions.create({
        model, messages, tools: [{ type: "function", function: { name: "f", parameters: {} } }],
    }),
    key: () => new OpenAI({ baseURL, apiKey: "another" }).models.list(),
};
for (const [name, ask] of Object.entries(asked))
    await ask().catch(e => said.errors[name] = [e.constructor.name, e.status, e.code, e.param]);
console.log(JSON.stringify(said));
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which Node finds the library."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node or npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true}')
    options = ["--no-audit", "--no-fund", "--ignore-scripts", f"--cache={folder / 'cache'}"]
    done = subprocess.run(
        [npm, "install", *options, OPENAI], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (folder / "program.mjs").write_text(PROGRAM, "utf-8")
    return folder


def test_node_gets_the_chatbots_reply_and_its_own_errors(project: Path, trained: Path) -> None:
    expected = smallgpt.load(trained).reply("早上好呀")
    with serving(smallgpt.load(trained), key=KEY) as server:
        done = subprocess.run(
            ["node", "program.mjs", f"{server.url}/v1", KEY],
            cwd=project,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    texts = {said[name] for name in ("completion", "streamed", "added", "completed")}
    assert texts == {expected}
    assert said["usage"]["completion_tokens"] == len(expected)
    assert said["streamedUsage"]["total_tokens"] == said["usage"]["total_tokens"]
    assert said["errors"] == {
        "model": ["NotFoundError", 404, "model_not_found", "model"],
        "tools": ["BadRequestError", 400, None, "tools"],
        "key": ["AuthenticationError", 401, "invalid_api_key", None],
    }
