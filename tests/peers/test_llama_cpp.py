"""Our models in llama.cpp itself: the same ids, probabilities and replies."""

from __future__ import annotations

import importlib
import json
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import smallgpt
from smallgpt.chat.chatbot import ROLES
from smallgpt.checkpoints import checkpoint, gguf, legacy_pth
from smallgpt.checkpoints.gguf_tokenizer import for_llama_cpp
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.config import Config
from smallgpt.config_file import load_config
from smallgpt.demo import smalltalk
from smallgpt.demo.judge import Judge
from smallgpt.tokenizer.characters import SEP, UNK, Tokenizer
from smallgpt.training import pretrain
from tests.helpers import commands
from tests.helpers.corpora import subwords
from tests.helpers.foreign import make_foreign
from tests.helpers.models import CHARACTERS, DIALOGUES, random_model
from tests.helpers.processes import REPOSITORY

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1200)]
BAR = "\u2581"  # llama.cpp's space
KNOWN = list(dict.fromkeys([*CHARACTERS, *"ok\u3000😀𠮷\t/"]))
TALK = ("早上好呀", "你叫什么名字", "今天天气不错")


class LlamaCpp:
    """llama.cpp's server in this process, with one model.

    `rows` is the size of our vocabulary: ids from there on are further ones of `<unk>`.
    """

    def __init__(self, file: Path, rows: int) -> None:
        xllamacpp = importlib.import_module("xllamacpp")  # 100 MB, for these tests alone
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.cpuparams.n_threads = 1
        parameters.warmup, parameters.verbosity = False, 0
        self._server, self._rows = xllamacpp.Server(parameters), rows

    def ids(self, text: str) -> list[int]:
        request = urllib.request.Request(
            f"{self._server.listening_address}/tokenize",
            json.dumps({"content": text}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return [i if i < self._rows else 0 for i in json.load(answer)["tokens"]]

    def likeliest(self, ids: Sequence[int]) -> dict[int, float]:
        """Log-probabilities of the eight likeliest ids to come next."""
        # It says nothing of what it has drawn while that is a part of a character: draw <sep>.
        tokens = self._next(ids, temperature=0, logit_bias=[[SEP, 1000]])["top_logprobs"]
        return {token["id"]: token["logprob"] for token in tokens}

    def drawn(self, ids: Sequence[int]) -> dict[int, float]:
        """Probabilities of the ids that are drawn from, with the settings in the file."""
        tokens = self._next(ids, post_sampling_probs=True)["top_probs"]
        return {token["id"]: token["prob"] for token in tokens}

    def _next(self, ids: Sequence[int], **settings: Any) -> dict[str, Any]:
        wanted = {"prompt": list(ids), "n_predict": 1, "n_probs": 8, **settings}
        (token,) = self._server.handle_completions(wanted)["choices"][0]["logprobs"]["content"]
        return token

    def reply(self, said: Sequence[str]) -> tuple[str, str]:
        """The greedy reply to a conversation, and why it ended."""
        messages = [{"role": ROLES[n % 2], "content": text} for n, text in enumerate(said)]
        wanted = {"messages": messages, "max_tokens": 20, "temperature": 0}
        choice = self._server.handle_chat_completions(wanted)["choices"][0]
        return choice["message"]["content"], choice["finish_reason"]


Run = Callable[..., LlamaCpp]


@pytest.fixture(scope="module", autouse=True)
def _there_is_a_wheel() -> None:
    pytest.importorskip("xllamacpp", reason="xllamacpp has no wheel for this platform")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a model in llama.cpp; in each precision it is started once."""
    running: dict[tuple[Path, str], LlamaCpp] = {}

    def run(path: Path, precision: gguf.Quantization = "f32") -> LlamaCpp:
        if (path, precision) not in running:
            file = tmp_path_factory.mktemp("gguf") / "model.gguf"
            stored = open_checkpoint(path)
            gguf.write(stored, file, precision)
            running[path, precision] = LlamaCpp(file, stored.config.vocab_size)
        return running[path, precision]

    return run


@pytest.fixture(scope="module")
def small_talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of subwords that has learnt some of the built-in small talk: half a minute."""
    folder = tmp_path_factory.mktemp("talk")
    (folder / "talk.txt").write_text("\n\n".join(smalltalk.generate(6000, 1)), "utf-8")
    changes = f"data_path={folder / 'talk.txt'} checkpoint_root={folder / 'run'} tensorboard_path= "
    changes += "vocab_size=1500 n_layer=2 n_embd=128 train_batch=16 max_steps=300 lr=1e-2 "
    changes += "eval_freq=0 temperature=0 device=cpu"
    return pretrain.run(load_config(REPOSITORY / "config" / "demo.yaml", changes.split()))


def save(folder: Path, tokenizer: Tokenizer, spare: int = 0, **changes: Any) -> Path:
    """An untrained model with the GELU of llama.cpp."""
    changes = {"vocab_size": len(tokenizer) + spare, "activation": "gelu_new"} | changes
    model = random_model(5, **changes)
    assert isinstance(model.config, Config)
    return checkpoint.save(folder, 1, model.config, tokenizer, model.state_dict(), None, {})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained models by what is particular about them."""
    folder = tmp_path_factory.mktemp("models")
    characters = Tokenizer(KNOWN)
    lines = [*DIALOGUES.splitlines(), "ok  好吗  好吗 ok", "😀😀 ok <pad>"]
    for kind in ("bytes", "characters"):
        make_foreign(folder / f"other program's {kind}", kind, spare=3, n_embd=32)
    return {
        "characters": save(folder / "1", characters),
        "U+2581": save(folder / "2", Tokenizer([*KNOWN, BAR, "\ufffd"])),
        "subwords": save(folder / "3", subwords(lines, KNOWN, 90)),
        "vocab_size above": save(folder / "4", characters, spare=9),
        "without biases": save(folder / "5", characters, bias=False),
        "untied": save(folder / "6", characters, tied=False),
        "a width of 48": save(folder / "7", characters, n_embd=48, spare=5),
        **{path.name: path for path in folder.glob("other*")},
    }


# ids

TEXT = st.lists(
    st.sampled_from([*KNOWN, "\n", "早上好", "  ", "ok", "<pad>", "<unk>", "龘", "🙂"])
    | st.characters(codec="utf-8", min_codepoint=1)
).map("".join)
"""NUL is the end of a text to llama.cpp's tables of replacements."""


@pytest.mark.parametrize(
    "kind",
    ["characters", "U+2581", "subwords", "other program's bytes", "other program's characters"],
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT)
@example(text="你 好  吗\n早上\n\n晚安 \n")
@example(text="🙂😀🙂🙂龘龘好龘\u0301e\u0301\ufffd\ufffd")
@example(text=f"{BAR}好 {BAR}{BAR}  {BAR}")
@example(text="<pad><unk><|endoftext|><unused 30><0xE4>\r\n\u3000 \t")
@example(text="今天天气很好 hello world's 123 ,.!")
def test_ids_are_ours(models: dict[str, Path], run: Run, kind: str, text: str) -> None:
    if kind == "subwords":
        text = text.replace(BAR, "")  # there it is a space
    assert run(models[kind]).ids(text) == open_checkpoint(models[kind]).tokenizer.encode(text)


# probabilities


def check_probabilities(
    path: Path, there: LlamaCpp, contexts: Sequence[Sequence[int]], aliases: int = 0
) -> None:
    """The eight likeliest, where so many further ids there are as likely as `<unk>`."""
    model = open_checkpoint(path).model()
    for context in contexts:
        with torch.inference_mode():
            ours_V = model(torch.tensor([context]))[0, -1]
        ours_V = torch.cat([ours_V, ours_V[UNK].expand(aliases)]).log_softmax(-1)
        theirs = there.likeliest(context)
        assert len(theirs) == 8
        assert min(theirs.values()) > ours_V.topk(8).values[-1] - 0.01  # none is missing
        assert theirs == pytest.approx({i: ours_V[i].item() for i in theirs}, abs=0.01)


@pytest.mark.parametrize(
    "kind",
    [
        "characters",
        "vocab_size above",
        "without biases",
        "untied",
        "a width of 48",
        "other program's bytes",
        "other program's characters",
    ],
)
def test_probabilities_are_ours(models: dict[str, Path], run: Run, kind: str) -> None:
    draw = torch.Generator().manual_seed(2)
    rows = open_checkpoint(models[kind]).config.vocab_size
    contexts = [torch.randint(rows, (n,), generator=draw).tolist() for n in (1, 5, 12, 30)]
    check_probabilities(models[kind], run(models[kind]), contexts)


def test_probabilities_of_subwords_are_ours(small_talk: Path, run: Run) -> None:
    tokenizer = open_checkpoint(small_talk).tokenizer
    aliases = for_llama_cpp(tokenizer, len(tokenizer)).aliases
    contexts = [tokenizer.encode(f"{text}\n") for text in (*TALK, "你喜欢龘吗", "🙂🙂")]
    check_probabilities(small_talk, run(small_talk), contexts, aliases)


def test_replies_are_drawn_as_ours(tmp_path: Path, run: Run) -> None:
    path = save(tmp_path, Tokenizer(KNOWN), spare=9, temperature=1.3, top_k=7, top_p=0.8)
    there, stored = run(path), open_checkpoint(path)
    for text in TALK:
        ids = stored.tokenizer.encode(f"{text}\n")
        with torch.no_grad():
            logits_V = stored.model()(torch.tensor([ids]))[0, -1]
        logits_V[[*stored.tokenizer.suppressed_ids(), *range(-9, 0)]] = float("-inf")
        likeliest = logits_V.topk(7)
        probabilities = (likeliest.values / 1.3).softmax(-1)
        inside = probabilities[probabilities.cumsum(-1) - probabilities < 0.8]
        ours = dict(zip(likeliest.indices.tolist(), (inside / inside.sum()).tolist(), strict=False))
        assert 1 < len(ours) < 7
        assert there.drawn(ids) == pytest.approx(ours, abs=0.01)


# replies


@pytest.mark.parametrize("kind", ["characters", "subwords"])
def test_greedy_replies_are_ours(trained: Path, small_talk: Path, run: Run, kind: str) -> None:
    path = trained if kind == "characters" else small_talk
    bot, there = smallgpt.load(path), run(path)
    for said in (*([text] for text in TALK), ["早上好呀", "早上好", "你呢"], ["龘？"]):
        ours = "".join(bot.respond(said, torch.Generator())[0])
        assert there.reply(said) == (ours, "stop")


@pytest.mark.parametrize("precision", get_args(gguf.Quantization))
@pytest.mark.parametrize("kind", ["small talk", "a width of 48"])
def test_every_precision_replies(
    models: dict[str, Path], small_talk: Path, run: Run, kind: str, precision: gguf.Quantization
) -> None:
    there = run(small_talk if kind == "small talk" else models[kind], precision)
    said, why = there.reply(["早上好呀"])
    assert said and (why == "stop" or kind != "small talk")


def test_a_legacy_file_talks_there(trained: Path, run: Run, tmp_path: Path) -> None:
    legacy, file = tmp_path / "x.pth", tmp_path / "x.gguf"
    legacy_pth.write(open_checkpoint(trained), legacy)
    text = trained.parents[1] / "text.txt"
    done = commands.smallgpt("convert", legacy, "--text", text, "--to", "gguf", "--output", file)
    assert done.exit_code == 0, done.output
    reply, why = LlamaCpp(file, 10**6).reply([TALK[0]])
    assert reply == smallgpt.load(trained).reply(TALK[0]) and why == "stop"


def test_8_bits_talk_as_well(small_talk: Path, run: Run) -> None:
    there, bot, fitting = run(small_talk, "q8_0"), smallgpt.load(small_talk), []
    for dialogue in smalltalk.held_out(300, 0):
        judges, said = (Judge(dialogue), Judge(dialogue)), list[str]()
        for turn in dialogue:
            said.append(turn.user)
            ours = "".join(bot.respond(said, torch.Generator())[0])
            replies = (ours, there.reply(said)[0])
            fitting.append([j.fits(reply) for j, reply in zip(judges, replies, strict=True)])
            said.append(ours)
    here, there_share = torch.tensor(fitting, dtype=torch.float32).mean(0).tolist()
    assert here > 0.2
    assert there_share == pytest.approx(here, abs=0.01)
