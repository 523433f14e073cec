"""Legacy `.pth` files: read, converted, written back, and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import smallgpt
from smallgpt.checkpoints import checkpoint, legacy_pth
from smallgpt.config import Config
from smallgpt.config_file import config_from_dict
from smallgpt.training import pretrain
from tests.helpers.commands import refusal
from tests.helpers.processes import Run

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "original_tiny"
TEXT = "早上好呀\n早上好，昨晚睡得好吗？\n好呀\n\n你在干嘛\n上班呢 3点开会\n辛苦了\n"
SHAPE = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 8, "bias": True}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "train.txt"
    path.write_text(TEXT, "utf-8")
    return path


def vocabulary() -> list[str]:
    """By the rule of the published files, computed with plain Python."""
    characters = TEXT.replace("\n", "")
    return sorted(set(characters), key=lambda c: (-characters.count(c), characters.index(c)))


def network(T: int, V: int, layers: int, E: int, bias: bool) -> nn.ModuleDict:
    """The earlier program's, made by hand: modules by its names, in its order."""

    def norm() -> nn.LayerNorm:
        return nn.LayerNorm(E, bias=bias)

    def block() -> nn.ModuleDict:
        mask = nn.Module()
        mask.register_buffer("mask", torch.ones(T, T).tril()[None])
        projections = {n: nn.Linear(E, E, bias) for n in ("W_q", "W_k", "W_v", "out_net")}
        attention = nn.ModuleDict({"attention": mask, **projections})
        ffn = {"dense1": nn.Linear(E, 4 * E, bias), "out_net": nn.Linear(4 * E, E, bias)}
        parts = {"ln1": norm(), "ln2": norm(), "attention": attention, "ffn": nn.ModuleDict(ffn)}
        return nn.ModuleDict(parts)

    blocks = nn.ModuleList(block() for _ in range(layers))
    embeddings = {"wte": nn.Embedding(V, E), "wpe": nn.Embedding(T, E)}
    transformer = nn.ModuleDict({**embeddings, "h": blocks, "ln_f": norm()})
    model = nn.ModuleDict({"transformer": transformer, "lm_head": nn.Linear(E, V, bias=False)})
    model["lm_head"].weight = embeddings["wte"].weight
    return model


def contents(seed: int = 0, compiled: bool = False, **changes: Any) -> dict[str, Any]:
    """What the earlier program saved after three steps: names, order, shapes and optimizer."""
    shape: dict[str, Any] = {**SHAPE, "vocab_size": 3 + len(vocabulary()), **changes}
    torch.manual_seed(seed)
    model = network(*(shape[k] for k in ("block_size", "vocab_size", "n_layer", "n_embd", "bias")))
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
    for _ in range(3):
        for parameter in matrices + vectors:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    prefix = "_orig_mod." if compiled else ""
    return {
        "global_step": 3,
        "global_epoch": 1,
        **{key: shape[key] for key in ("block_size", "vocab_size")},
        **shape,
        "dataset": "data/train.txt",
        "state_dict": {prefix + name: t for name, t in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
    }


def equal(one: Any, other: Any) -> bool:
    """Bit-equal tensors and equal plain values, in the same order."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def logits_by_hand(stored: dict[str, Any], ids: list[int]) -> Tensor:
    """The network of the facts sheet, written out without any of our modules."""
    w = {n.removeprefix("_orig_mod."): t for n, t in stored["state_dict"].items()}
    E, H, T = stored["n_embd"], stored["n_head"], len(ids)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (E,), w[f"{name}.weight"], w.get(f"{name}.bias"), 1e-5)

    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][:T]
    for i in range(stored["n_layer"]):
        h = f"transformer.h.{i}."
        y = norm(x, h + "ln1")
        q, k, v = (
            linear(y, f"{h}attention.W_{n}").view(T, H, E // H).transpose(0, 1) for n in "qkv"
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(mixed.transpose(0, 1).reshape(T, E), h + "attention.out_net")
        x = x + linear(F.gelu(linear(norm(x, h + "ln2"), h + "ffn.dense1")), h + "ffn.out_net")
    return norm(x, "transformer.ln_f") @ w["transformer.wte.weight"].T


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_legacy_file_gives_its_own_logits_and_comes_back_bit_equal(
    tmp_path: Path, text: Path, compiled: bool, bias: bool
) -> None:
    stored = contents(bias=bias, compiled=compiled)
    torch.save(stored, tmp_path / "a.pth")
    legacy_pth.to_checkpoint(tmp_path / "a.pth", [text], tmp_path / "a")
    loaded = checkpoint.load(tmp_path / "a")
    assert loaded.tokenizer.characters == vocabulary()
    assert loaded.step == 3
    ids = [5, 3, 4, 1, 9, 3, 2]
    mine = loaded.model()(torch.tensor([ids]))[0]
    torch.testing.assert_close(mine, logits_by_hand(stored, ids), rtol=1e-5, atol=1e-6)
    legacy_pth.write(loaded, tmp_path / "b.pth")
    assert equal(stored, torch.load(tmp_path / "b.pth", weights_only=True))


@pytest.mark.parametrize("name", ["cpt3.pth", "cpt3_compiled.pth"])
def test_the_reference_files_give_the_expected_logits(tmp_path: Path, name: str) -> None:
    if not GOLDEN.exists():
        pytest.skip("needs ../shared/golden/original_tiny")
    expected = json.loads((GOLDEN / "expected.json").read_text("utf-8"))
    text = shutil.copy(GOLDEN / "train.txt", tmp_path)  # its cache is written beside it
    stored, _ = legacy_pth.load(GOLDEN / name, [Path(text)])
    assert ["<unk>", "<sep>", "<pad>", *stored.tokenizer.characters] == expected["vocab"]
    logits = stored.model()(torch.tensor(expected["input_ids"]))
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), rtol=1e-4, atol=1e-5)


def small_run(text: Path, root: Path, **changes: Any) -> Config:
    data = {"data_path": str(text), "train_percent": 0.5, "unk_rate": 0.0, "train_batch": 2}
    length = {"max_steps": 6, "warmup_steps": 1, "decay_steps": 6, "eval_freq": 0}
    where = {"checkpoint_root": str(root), "device": "cpu", "dtype": "float32"}
    return config_from_dict({**SHAPE, **data, **length, **where, **changes}, "test", Config)


def test_training_goes_on_from_a_legacy_file_with_its_optimizer(tmp_path: Path, text: Path) -> None:
    """Through the old format at step 3, training takes the very steps it would have taken."""
    halfway = checkpoint.load(pretrain.run(small_run(text, tmp_path / "half", max_steps=3)))
    legacy_pth.write(halfway, tmp_path / "half.pth")
    # Its rows begin anew, as those of a directory do whose text is told to be another.
    state = halfway.training_state() | {"text": None}
    assert state["completed"] == 3
    parts = (halfway.config, halfway.tokenizer, halfway.weights)
    same = checkpoint.save(tmp_path, 3, *parts, state, {}, name="same")

    def goes_on_from(path: Path, name: str) -> dict[str, Tensor]:
        config = small_run(text, tmp_path / name, resume_from=str(path))
        return checkpoint.load(pretrain.run(config)).weights

    assert equal(goes_on_from(tmp_path / "half.pth", "legacy"), goes_on_from(same, "directory"))


def test_a_file_is_converted_beside_itself_once(
    tmp_path: Path, text: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cpt3.pth"
    for seed in (0, 1):  # another file of the name is converted anew
        torch.save(contents(seed), path)
        made = legacy_pth.directory_beside(path, [text])
        assert made == tmp_path / "cpt3"
        assert "once" in capfd.readouterr().err
        expected = contents(seed)["state_dict"]["transformer.wte.weight"]
        assert torch.equal(checkpoint.load(made).weights["wte.weight"], expected)
    assert isinstance(smallgpt.load(made).reply("早上好"), str)
    text.unlink()
    assert legacy_pth.directory_beside(path, [text]) == made
    assert capfd.readouterr().err == ""
    path.unlink()  # the directory needs neither text nor file
    assert legacy_pth.directory_beside(path, [text]) == made


def test_what_else_stands_beside_the_file_is_left_alone(tmp_path: Path, text: Path) -> None:
    torch.save(contents(), tmp_path / "cpt3.pth")
    (tmp_path / "cpt3").mkdir()
    (tmp_path / "cpt3" / "mine.txt").write_text("mine")
    refusal(lambda: legacy_pth.directory_beside(tmp_path / "cpt3.pth", [text]))
    assert (tmp_path / "cpt3" / "mine.txt").read_text() == "mine"


def test_a_text_of_another_vocabulary_is_refused(tmp_path: Path, text: Path) -> None:
    torch.save(contents(), tmp_path / "cpt3.pth")
    text.write_text(TEXT + "新", "utf-8")
    said = refusal(lambda: legacy_pth.load(tmp_path / "cpt3.pth", [text]))
    assert "set data_path (or --text) to the very text the weights were trained on" in said


def test_ids_that_were_never_used_need_no_character(tmp_path: Path, text: Path) -> None:
    """A vocabulary that was rounded up, against one of which the text lacks characters."""
    used = len(vocabulary()) + 3
    text.write_text(f"{TEXT}\n\n{TEXT}", "utf-8")  # each dialogue is among those trained on
    config = small_run(text, tmp_path / "run", vocab_size=used + 5, train_percent=0.75)
    legacy_pth.write(checkpoint.load(pretrain.run(config)), tmp_path / "x.pth")
    stored, _ = legacy_pth.load(tmp_path / "x.pth", [text])
    assert len(stored.tokenizer) == used
    text.write_text(TEXT.replace("辛苦", ""), "utf-8")
    assert "the very text" in refusal(lambda: legacy_pth.load(tmp_path / "x.pth", [text]))


def _with(name: str, tensor: Tensor | None) -> dict[str, Any]:
    """A file with another tensor, or one tensor less."""
    stored = contents()
    stored["state_dict"][name] = tensor
    if tensor is None:
        del stored["state_dict"][name]
    return stored


def _expanded(sizes: int) -> dict[str, Any]:
    """A small file that claims terabytes: views of a small storage, of the moments or of all."""
    stored = contents()
    for moments in stored["optimizer"]["state"].values():
        moments["exp_avg"] = torch.zeros(1).expand(2**20, 2**20)
    for name, tensor in stored["state_dict"].items():
        size = [n * sizes if n in (8, 32) else n for n in tensor.shape]
        stored["state_dict"][name] = tensor if sizes == 1 else torch.zeros(1).expand(size)
    return stored | {"n_embd": 8 * sizes}


W_Q = "transformer.h.0.attention.W_q.weight"


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ([1, 2], "refused"),
        (contents() | {"state_dict": {}}, "fewer tensors"),
        (contents() | {"state_dict": 3}, "state_dict"),
        (contents() | {"n_embd": "wide"}, "n_embd is 'wide'; it must be a whole number"),
        (contents() | {"n_head": 3}, "n_head"),
        (contents() | {"n_layer": 10**9}, "fewer tensors"),
        (contents() | {"vocab_size": 0}, "wte.weight has shape"),
        (contents() | {"vocab_size": 5}, "wte.weight has shape"),
        (_with(W_Q, None), "lacks transformer.h.0.attention.W_q.weight"),
        (_with(W_Q, torch.zeros(8, 9)), "has shape"),
        (_with(W_Q, torch.zeros(8, 8, dtype=torch.int64)), "torch.int64"),
        (_with(W_Q, torch.full((8, 8), float("nan"))), "c_attn.weight holds numbers"),
        (_with("more", torch.zeros(2)), "unknown tensors"),
        (_with("lm_head.weight", torch.zeros(3, 8)), "output head"),
        (contents() | {"optimizer": {"state": {0: {}}, "param_groups": []}}, "optimizer"),
        (contents() | {"optimizer": {"state": {0: {}}}}, "optimizer"),
        (_expanded(1), "wte.weight has shape (1048576, 1048576)"),
        (_expanded(2**15), "larger than the file"),
    ],
)
def test_other_files_are_refused_with_the_reason(tmp_path: Path, stored: Any, reason: str) -> None:
    torch.save(stored, tmp_path / "x.pth")
    assert reason in refusal(lambda: legacy_pth.load(tmp_path / "x.pth", None))


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "folder"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.pth"
    torch.save(contents(), path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": whole[:9000]}.get(damage, b"not a model"))
    if damage == "folder":
        path.unlink()
        path.mkdir()
    said = refusal(lambda: legacy_pth.load(path, None))
    assert f"{path} is refused: it is not a file of tensors" in said


def test_memory_of_the_first_chat_stays_near_the_file(tmp_path: Path, run: Run) -> None:
    """Its peak, without what Python and torch need: the mapped file, and queries, keys, values."""
    stored = contents(block_size=64, n_layer=6, n_embd=512)
    del stored["optimizer"]
    torch.save(stored, tmp_path / "cpt1.pth")
    (tmp_path / "train.txt").write_text(TEXT, "utf-8")
    program = """
import re, sys
from pydantic import TypeAdapter
from pathlib import Path
from smallgpt.checkpoints import legacy_pth
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
legacy_pth.directory_beside(Path(sys.argv[1]), [Path(sys.argv[2])])
print(peak() - before)
"""
    # Freed blocks go back at once: how many a heap keeps is chance.
    heap = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = run("-c", program, tmp_path / "cpt1.pth", tmp_path / "train.txt", env=heap)
    assert done.returncode == 0, done.stderr.decode()
    allowance = 30 << 20  # of modules that are loaded on the way
    assert int(done.stdout) < 1.3 * (tmp_path / "cpt1.pth").stat().st_size + allowance
