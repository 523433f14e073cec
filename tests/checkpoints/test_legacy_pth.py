"""The earlier implementation's files: read, converted, written back, and refused."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import smallgpt
from smallgpt.checkpoints import checkpoint, huggingface, legacy_pth
from smallgpt.config import Config, config_from_dict
from smallgpt.training import pretrain
from smallgpt.utils.errors import UserError
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


def contents(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """What the earlier program saved, made by hand: names, order, shapes and optimizer."""
    shape: dict[str, Any] = {**SHAPE, **changes}
    generator = torch.Generator().manual_seed(seed)

    def tensor(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator) * 0.1

    E, T, V = shape["n_embd"], shape["block_size"], 3 + len(vocabulary())
    state = {"transformer.wte.weight": tensor(V, E), "transformer.wpe.weight": tensor(T, E)}
    kinds = ("weight", "bias") if shape["bias"] else ("weight",)
    for i in range(shape["n_layer"]):
        h = f"transformer.h.{i}."
        for norm in ("ln1", "ln2"):
            for kind in kinds:
                state[f"{h}{norm}.{kind}"] = tensor(E)
        state[f"{h}attention.attention.mask"] = torch.ones(T, T).tril()[None]
        layers = {f"attention.W_{x}": (E, E) for x in "qkv"}
        layers |= {"attention.out_net": (E, E), "ffn.dense1": (4 * E, E), "ffn.out_net": (E, 4 * E)}
        for name, size in layers.items():
            for kind in kinds:
                state[f"{h}{name}.{kind}"] = tensor(*size) if kind == "weight" else tensor(size[0])
    for kind in kinds:
        state[f"transformer.ln_f.{kind}"] = tensor(E)
    learnt = [t for name, t in state.items() if not name.endswith("mask")]
    matrices = [t for t in learnt if t.dim() >= 2]
    vectors = [t for t in learnt if t.dim() < 2]
    parameters = [torch.nn.Parameter(t.clone()) for t in matrices + vectors]
    groups = [
        {"params": parameters[: len(matrices)], "weight_decay": 0.1},
        {"params": parameters[len(matrices) :], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
    for _ in range(3):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return {
        "global_step": 3,
        "global_epoch": 1,
        "block_size": T,
        "vocab_size": V,
        **shape,
        "dataset": "data/train.txt",
        "state_dict": state,
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
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(1))

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (x.var(-1, unbiased=False, keepdim=True) + 1e-5).rsqrt()
        return centred * scale * w[f"{name}.weight"] + w.get(f"{name}.bias", torch.zeros(1))

    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][:T]
    for i in range(stored["n_layer"]):
        h = f"transformer.h.{i}."
        y = norm(x, h + "ln1")
        q, k, v = (
            linear(y, f"{h}attention.W_{n}").view(T, H, E // H).transpose(0, 1) for n in "qkv"
        )
        scores = q @ k.transpose(1, 2) / (E // H) ** 0.5
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(T, E)
        x = x + linear(mixed, h + "attention.out_net")
        y = linear(norm(x, h + "ln2"), h + "ffn.dense1")
        x = x + linear(y * (1 + torch.erf(y / 2**0.5)) / 2, h + "ffn.out_net")
    return norm(x, "transformer.ln_f") @ w["transformer.wte.weight"].T


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_published_file_gives_its_own_logits_and_vocabulary(
    tmp_path: Path, text: Path, compiled: bool, bias: bool
) -> None:
    stored = contents(bias=bias)
    if compiled:
        stored["state_dict"] = {f"_orig_mod.{n}": t for n, t in stored["state_dict"].items()}
    torch.save(stored, tmp_path / "cpt3.pth")
    legacy_pth.to_checkpoint(tmp_path / "cpt3.pth", [text], tmp_path / "cpt3")

    loaded = checkpoint.load(tmp_path / "cpt3")
    assert loaded.tokenizer.characters == vocabulary()
    assert loaded.step == 3
    ids = [5, 3, 4, 1, 9, 3, 2]
    mine = loaded.model()(torch.tensor([ids]))[0]
    torch.testing.assert_close(mine, logits_by_hand(stored, ids), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["cpt3.pth", "cpt3_compiled.pth"])
def test_the_reference_files_give_the_expected_logits(tmp_path: Path, name: str) -> None:
    if not GOLDEN.exists():
        pytest.skip("needs ../shared/golden/original_tiny")
    expected = json.loads((GOLDEN / "expected.json").read_text("utf-8"))
    text = shutil.copy(GOLDEN / "train.txt", tmp_path)  # its cache is written beside it
    stored, _ = legacy_pth.load_with_state(GOLDEN / name, [Path(text)])
    assert ["<unk>", "<sep>", "<pad>", *stored.tokenizer.characters] == expected["vocab"]
    logits = stored.model()(torch.tensor(expected["input_ids"]))
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_there_and_back_is_bit_equal(tmp_path: Path, text: Path, compiled: bool) -> None:
    stored = contents()
    if compiled:
        stored["state_dict"] = {f"_orig_mod.{n}": t for n, t in stored["state_dict"].items()}
    torch.save(stored, tmp_path / "a.pth")
    legacy_pth.to_checkpoint(tmp_path / "a.pth", [text], tmp_path / "a")
    legacy_pth.write(checkpoint.load(tmp_path / "a"), tmp_path / "b.pth")
    back = torch.load(tmp_path / "b.pth", weights_only=True)
    for key in stored:
        assert equal(stored[key], back[key]), key
    assert list(back) == list(stored)


def small_run(text: Path, root: Path, **changes: Any) -> Config:
    values = {
        **SHAPE,
        "data_path": str(text),
        "train_percent": 0.5,
        "vocab_size": 0,
        "device": "cpu",
        "dtype": "float32",
        "train_batch": 2,
        "max_steps": 6,
        "warmup_steps": 1,
        "decay_steps": 6,
        "eval_freq": 0,
        "unk_rate": 0.0,
        "checkpoint_root": str(root),
        **changes,
    }
    return config_from_dict(values, "test", Config)


def test_our_checkpoint_survives_the_old_format(tmp_path: Path, text: Path) -> None:
    mine = pretrain.run(small_run(text, tmp_path / "run"))
    legacy_pth.write(checkpoint.load(mine), tmp_path / "mine.pth")
    legacy_pth.to_checkpoint(tmp_path / "mine.pth", [text], tmp_path / "back")
    before, after = checkpoint.load(mine), checkpoint.load(tmp_path / "back")
    assert equal(before.weights, after.weights)
    assert before.tokenizer.characters == after.tokenizer.characters
    by_name = legacy_pth._moments(before)
    assert by_name is not None
    moments = after.training_state()["moments"]
    assert len(moments) == len(by_name)
    assert equal(by_name, {name: moments[name] for name in by_name})


def test_training_goes_on_from_a_published_file_with_its_optimizer(
    tmp_path: Path, text: Path
) -> None:
    """Through the old format at step 3, training takes the very steps it would have taken."""
    halfway = pretrain.run(small_run(text, tmp_path / "half", max_steps=3))
    legacy_pth.write(checkpoint.load(halfway), tmp_path / "half.pth")

    def goes_on_from(path: Path, name: str) -> dict[str, Tensor]:
        config = small_run(text, tmp_path / name, resume_from=str(path))
        return checkpoint.load(pretrain.run(config)).weights

    weights = goes_on_from(tmp_path / "half.pth", "published")
    # Its rows begin anew, as those of a directory do whose text is told to be another.
    state = torch.load(halfway / "training_state.pt", weights_only=True)
    assert state["completed"] == 3
    whole = checkpoint.load(halfway)
    checkpoint.save(
        tmp_path,
        3,
        whole.config,
        whole.tokenizer,
        whole.weights,
        state | {"text": None},
        {},
        name="same",
    )
    assert equal(weights, goes_on_from(tmp_path / "same", "directory"))


def test_the_first_chat_converts_beside_the_file_and_the_next_does_not(
    tmp_path: Path, text: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save(contents(), tmp_path / "cpt3.pth")
    made = legacy_pth.directory_beside(tmp_path / "cpt3.pth", [text])
    assert made == tmp_path / "cpt3"
    assert "once" in capfd.readouterr().err
    assert isinstance(smallgpt.load(made).reply("早上好"), str)
    text.unlink()
    assert legacy_pth.directory_beside(tmp_path / "cpt3.pth", [text]) == made
    assert capfd.readouterr().err == ""
    (tmp_path / "cpt3.pth").unlink()  # the directory needs neither text nor file
    assert legacy_pth.directory_beside(tmp_path / "cpt3.pth", [text]) == made


def test_another_file_of_the_name_is_converted_anew(tmp_path: Path, text: Path) -> None:
    for seed in (0, 1):
        torch.save(contents(seed), tmp_path / "cpt3.pth")
        made = legacy_pth.directory_beside(tmp_path / "cpt3.pth", [text])
        expected = contents(seed)["state_dict"]["transformer.wte.weight"]
        assert torch.equal(checkpoint.load(made).weights["wte.weight"], expected)


def test_what_else_stands_beside_the_file_is_left_alone(tmp_path: Path, text: Path) -> None:
    torch.save(contents(), tmp_path / "cpt3.pth")
    (tmp_path / "cpt3").mkdir()
    (tmp_path / "cpt3" / "mine.txt").write_text("mine")
    with pytest.raises(UserError):
        legacy_pth.directory_beside(tmp_path / "cpt3.pth", [text])
    assert (tmp_path / "cpt3" / "mine.txt").read_text() == "mine"


def test_a_text_of_another_vocabulary_is_refused(tmp_path: Path, text: Path) -> None:
    torch.save(contents(), tmp_path / "cpt3.pth")
    text.write_text(TEXT + "新", "utf-8")
    with pytest.raises(UserError, match="the very text the weights were trained on"):
        legacy_pth.to_checkpoint(tmp_path / "cpt3.pth", [text], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ids_that_were_never_used_need_no_character(tmp_path: Path, text: Path) -> None:
    """A vocabulary that was rounded up, against one of which the text lacks characters."""
    used = len(vocabulary()) + 3
    text.write_text(f"{TEXT}\n\n{TEXT}", "utf-8")  # each dialogue is among those trained on
    config = small_run(text, tmp_path / "run", vocab_size=used + 5, train_percent=0.75)
    legacy_pth.write(checkpoint.load(pretrain.run(config)), tmp_path / "x.pth")
    stored, _ = legacy_pth.load_with_state(tmp_path / "x.pth", [text])
    assert len(stored.tokenizer) == used
    text.write_text(TEXT.replace("辛苦", ""), "utf-8")
    with pytest.raises(UserError, match="the very text"):
        legacy_pth.load_with_state(tmp_path / "x.pth", [text])


class _Runs:
    def __reduce__(self) -> Any:
        return (print, ("it ran",))


def _without(name: str) -> dict[str, Any]:
    stored = contents()
    del stored["state_dict"][name]
    return stored


def _with_tensor(name: str, tensor: Tensor) -> dict[str, Any]:
    stored = contents()
    stored["state_dict"][name] = tensor
    return stored


W_Q = "transformer.h.0.attention.W_q.weight"


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (contents() | {"dataset": _Runs()}, "refused"),
        ([1, 2], "refused"),
        (contents() | {"state_dict": {}}, "fewer tensors"),
        (contents() | {"state_dict": 3}, "state_dict"),
        (contents() | {"n_embd": "8"}, "n_embd is '8'"),
        (contents() | {"n_head": 3}, "n_head"),
        (contents() | {"n_layer": 10**9}, "fewer tensors"),
        (contents() | {"vocab_size": 0}, "vocab_size is 0"),
        (contents() | {"vocab_size": 5}, "wte.weight has shape"),
        (_without(W_Q), "lacks transformer.h.0.attention.W_q.weight"),
        (_with_tensor(W_Q, torch.zeros(8, 9)), "has shape"),
        (_with_tensor(W_Q, torch.zeros(8, 8, dtype=torch.int64)), "torch.int64"),
        (_with_tensor(W_Q, torch.full((8, 8), float("nan"))), "c_attn.weight holds numbers"),
        (_with_tensor("more", torch.zeros(2)), "unknown tensors"),
        (_with_tensor("lm_head.weight", torch.zeros(3, 8)), "output head"),
        (contents() | {"optimizer": {"state": {0: {}}, "param_groups": []}}, "optimizer"),
        (contents() | {"optimizer": {"state": {0: {}}}}, "optimizer"),
    ],
)
def test_other_files_are_refused_with_the_reason(
    tmp_path: Path, stored: Any, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save(stored, tmp_path / "x.pth")
    with pytest.raises(UserError, match=reason):
        legacy_pth.read(tmp_path / "x.pth")
    assert "it ran" not in capfd.readouterr().out


def test_a_small_file_that_claims_terabytes_is_refused(tmp_path: Path) -> None:
    stored = contents()
    width = 8 * 2**15
    for name, tensor in stored["state_dict"].items():
        size = [n * 2**15 if n in (8, 32) else n for n in tensor.shape]
        stored["state_dict"][name] = torch.zeros(1).expand(size)
    torch.save(stored | {"n_embd": width}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="larger than the file"):
        legacy_pth.read(tmp_path / "x.pth")


def test_a_folder_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "x.pth").mkdir()
    with pytest.raises(UserError, match="is refused"):
        legacy_pth.read(tmp_path / "x.pth")


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "packed"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.pth"
    torch.save(contents(), path)
    whole = path.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "text":
        path.write_text("not a model")
    else:  # entries that unpack to any size
        with zipfile.ZipFile(path) as old:
            entries = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name, data in entries.items():
                new.writestr(name, data)
    with pytest.raises(UserError):
        legacy_pth.read(path)


def test_memory_of_the_first_chat_stays_near_the_file(tmp_path: Path, run: Run) -> None:
    """Its peak, without what Python and torch need: the mapped file, and queries, keys, values."""
    ids = 3 + len(vocabulary())
    config = Config(block_size=64, n_layer=6, n_head=8, n_embd=512, vocab_size=ids)
    hollow = huggingface.hollow_model(config).state_dict()
    weights = {name: torch.zeros(tensor.shape) for name, tensor in hollow.items()}
    torch.save(legacy_pth.contents(0, config, weights, None, {}), tmp_path / "cpt1.pth")
    (tmp_path / "train.txt").write_text(TEXT, "utf-8")
    program = """
import re, sys
from pathlib import Path
from smallgpt.checkpoints import legacy_pth
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
legacy_pth.directory_beside(Path(sys.argv[1]), [Path(sys.argv[2])])
print(peak() - before)
"""
    done = run("-c", program, tmp_path / "cpt1.pth", tmp_path / "train.txt")
    assert done.returncode == 0, done.stderr.decode()
    allowance = 30 << 20  # of modules that are loaded on the way
    assert int(done.stdout) < 1.3 * (tmp_path / "cpt1.pth").stat().st_size + allowance
