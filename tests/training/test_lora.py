"""Adapters learn and the base stays as it is; what is saved is in PEFT's format."""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import smallgpt
from smallgpt.checkpoints import checkpoint
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.config import LORA_TARGETS, Config
from smallgpt.hub import publish
from smallgpt.model import lora
from smallgpt.model.classifier import Classifier
from smallgpt.model.gpt import GPT
from smallgpt.sentiment import recipe
from tests.helpers.commands import refusal, refused_command
from tests.helpers.commands import smallgpt as command
from tests.helpers.finetuning import MINE, finetune
from tests.helpers.foreign import make_foreign
from tests.helpers.models import SMALL, random_model, reseal, vocabulary
from tests.helpers.processes import forked, losses, write_run
from tests.helpers.reviews import classifier_config

os.environ["HF_HUB_OFFLINE"] = "1"
transformers: Any = importlib.import_module("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
LORA: dict[str, Any] = {"lora_rank": 3, "lora_alpha": 7.0, "lr": 0.05, "min_lr": 0.0}


@pytest.fixture(scope="module")
def adapted(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for `trained`, which knows more characters; not to be changed."""
    return finetune(tmp_path_factory.mktemp("lora"), trained, **LORA)


def some_ids(size: int) -> Tensor:
    return torch.randint(0, size, (4, 20), generator=torch.manual_seed(0))


# The computation.


@pytest.mark.parametrize("targets", [LORA_TARGETS, ("attn.c_attn",), ("mlp.c_proj",)])
@pytest.mark.parametrize("tied", [True, False])
def test_merged_weights_give_what_the_adapters_give(targets: tuple[str, ...], tied: bool) -> None:
    """Logits, and what a classifier reads at one position alone."""
    model = random_model(tied=tied)
    ids = some_ids(model.config.vocab_size)
    lora.add_adapters(model, targets, 3, 2.5, added_rows=2)
    before = model(ids)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    plain = GPT(model.config)
    plain.load_state_dict(lora.merged(model.state_dict(), alpha=7.5))
    assert (model(ids) - before).abs().max() > 0.1
    torch.testing.assert_close(plain.eval()(ids), model(ids), atol=2e-4, rtol=1e-4)
    by_hand, made = (one.h[0].get_submodule(targets[0]) for one in (model, plain))
    assert isinstance(by_hand, lora.AdaptedLinear) and isinstance(made, torch.nn.Linear)
    more = 2.5 * (by_hand.lora_B @ by_hand.lora_A)
    expected = by_hand.weight + more
    assert torch.equal(made.weight, expected)


def test_a_classifier_reads_one_position_through_its_adapters() -> None:
    config = replace(SMALL, vocab_size=40)
    model, plain = Classifier(config, 2), Classifier(config, 2)
    lora.add_adapters(model, LORA_TARGETS, 2, 1.0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    plain.load_state_dict(lora.merged(model.state_dict(), alpha=2))
    ids, ends = some_ids(40), torch.tensor([3, 19, 0, 7])
    torch.testing.assert_close(plain.eval()(ids, ends), model.eval()(ids, ends))


def test_a_frozen_matrix_stays_in_its_own_precision() -> None:
    model, exact = random_model(), random_model()
    for parameter in (*model.parameters(), *exact.parameters()):
        parameter.data = parameter.data.bfloat16().float()
    assert lora.own_precision(model.state_dict()) == torch.bfloat16
    assert lora.own_precision(random_model().state_dict()) == torch.float32
    lora.add_adapters(model, LORA_TARGETS, 3, 1.0, dtype=torch.bfloat16)
    lora.add_adapters(exact, LORA_TARGETS, 3, 1.0)
    exact.load_state_dict(model.state_dict())
    ids = some_ids(model.config.vocab_size)
    for one in (model, exact):
        for name, parameter in one.named_parameters():
            if name.endswith("lora_B"):
                torch.nn.init.constant_(parameter, 0.1)
        one(ids).logsumexp(-1).sum().backward()
    assert model.state_dict()["h.1.mlp.c_fc.weight"].dtype == torch.bfloat16
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert len(gradients) == 2 * 4 * 2
    for name, parameter in exact.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(gradients[name], parameter.grad)


# Training.


def test_only_adapters_and_rows_of_new_characters_change(trained: Path, adapted: Path) -> None:
    base, merged = checkpoint.load(trained), open_checkpoint(adapted)
    old, layers = len(base.tokenizer), set()
    for name, weight in merged.weights.items():
        same = torch.equal(weight[:old] if name == "wte.weight" else weight, base.weights[name])
        if name.startswith("h.") and name.endswith(
            ("c_attn.weight", "c_proj.weight", "c_fc.weight")
        ):
            layers.add(same)
        else:
            assert same, name
    assert layers == {False}
    new = merged.weights["wte.weight"][old:]
    assert len(new) == len(set(MINE) - set(base.tokenizer.characters) - {"\n"})
    assert not torch.equal(new, base.weights["wte.weight"].mean(0).expand_as(new))
    assert smallgpt.load(adapted).reply("魑魅")
    size = sum(file.stat().st_size for file in adapted.glob("*.safetensors"))
    assert size < (trained / "model.safetensors").stat().st_size / 2


def test_before_the_first_step_it_is_the_base(trained: Path, tmp_path: Path) -> None:
    path = finetune(tmp_path, trained, **LORA | {"lr": 1e-30}, max_steps=1)
    base, merged = checkpoint.load(trained), open_checkpoint(path)
    ids = some_ids(len(base.tokenizer))
    logits = merged.model()(ids)[..., : len(base.tokenizer)]
    torch.testing.assert_close(logits, base.model()(ids)[..., : len(base.tokenizer)])


def test_it_goes_on_where_it_was_stopped(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = LORA | {"lora_dropout": 0.3, "lora_targets": ["c_proj", "attn.c_attn"]}
    whole = finetune(tmp_path, trained, **more)
    said = "adapters: rank 3 for attn.c_attn, attn.c_proj, mlp.c_proj: 0.0"
    assert said in capfd.readouterr().err
    root = {"checkpoint_root": str(tmp_path / "two")}
    finetune(tmp_path, trained, **more, **root, max_steps=2)
    last = finetune(tmp_path, trained, **more, **root, resume_from="latest")
    one, other = open_checkpoint(whole).weights, open_checkpoint(last).weights
    assert all(torch.equal(one[name], other[name]) for name in one)
    for changes in (
        {"lora_rank": 2},
        {"lora_alpha": 8.0},
        {"lora_targets": "all"},
        {"lora_rank": 0},
    ):
        wrong = more | root | changes | {"resume_from": "latest", "max_steps": 6}
        (key,) = changes
        said = refusal(partial(finetune, tmp_path, trained, **wrong))
        assert f"{key} is " in said
        assert "but the run that goes on was begun with" in said


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert forked(tmp_path, "run.yaml").returncode == 0
    publish.make_ready(tmp_path / "run/cpt12", tmp_path / "base", "mit", dtype="bfloat16")
    base = ["base_model=base", "lora_rank=2", "max_steps=4", "tokenizer=characters"]
    for processes in (1, 2):
        done = forked(
            tmp_path, "run.yaml", *base, f"checkpoint_root=of{processes}", processes=processes
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("(the layers' in bfloat16)") == 1
    alone, together = (losses(tmp_path, folder=f"of{processes}") for processes in (1, 2))
    assert together == pytest.approx(alone, rel=1e-5)
    assert len(alone) == len(set(alone)) == 4


def test_a_classifier_of_adapters(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = classifier_config(tmp_path, trained, lora_rank=4, lr=2e-2)
    best = recipe.run(plan)
    report = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    assert report["test"]["accuracy"] > 0.85
    predictor = smallgpt.load(best, kind="classifier")
    assert predictor.predict(["好好好"])[0].label == "0"
    stored = open_checkpoint(best, classifier=True, merge=False)
    body = checkpoint.load(trained).weights
    for name in ("wpe.weight", "h.0.mlp.c_fc.weight", "ln_f.bias"):
        assert torch.equal(stored.weights[f"transformer.{name}"], body[name])
    # It goes on as if it had not been stopped.
    root = str(tmp_path / "two")
    recipe.run(replace(plan, checkpoint_root=root, max_steps=20))
    recipe.run(replace(plan, checkpoint_root=root, resume_from="latest"))
    one, other = (
        open_checkpoint(folder / "cpt40", classifier=True).weights
        for folder in (tmp_path / "run", Path(root))
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    said = refusal(lambda: smallgpt.load(best, kind="chatbot"))
    assert "is a classifier (0, 1)" in said
    # transformers and PEFT say the same of it.
    base = transformers.GPT2ForSequenceClassification.from_pretrained(trained, num_labels=2)
    base.resize_token_embeddings(len(stored.tokenizer), mean_resizing=False)
    theirs = peft_model(base, best)
    ids = torch.tensor([[stored.tokenizer.start, *stored.tokenizer.encode("今天好好")]])
    ids = torch.cat([ids, torch.tensor([[stored.tokenizer.start + 1]])], 1)
    theirs.config.pad_token_id = 2
    with torch.no_grad():
        p = theirs(ids).logits.softmax(1)[0]
    ours = predictor.predict(["今天好好"])[0].probabilities
    assert [ours["0"], ours["1"]] == pytest.approx(p.tolist(), abs=1e-5)


# PEFT.


def peft_model(base: Any, path: Path) -> Any:
    peft = importlib.import_module("peft")
    return peft.PeftModel.from_pretrained(base, str(path)).eval()


def made_by_peft(base: Path, folder: Path, **settings: Any) -> Any:
    """An adapter of random weights for a model, saved by PEFT; PEFT's model."""
    peft = importlib.import_module("peft")
    wanted = {"r": 3, "lora_alpha": 5, "target_modules": ["c_attn", "c_proj", "c_fc"]}
    plan = peft.LoraConfig(
        **{"fan_in_fan_out": True, "task_type": "CAUSAL_LM", **wanted, **settings}
    )
    kind = "CausalLM" if plan.task_type == "CAUSAL_LM" else "SequenceClassification"
    body = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(base)
    theirs = peft.get_peft_model(body, plan)
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    theirs.eval().save_pretrained(folder)
    return theirs


def edit(file: Path, **changes: Any) -> None:
    """Other values in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes), "utf-8")


def make_base(folder: Path, **changes: Any) -> Path:
    """An untrained checkpoint that transformers can read."""
    model = random_model(**changes)
    assert isinstance(model.config, Config)
    return checkpoint.save(folder, 1, model.config, vocabulary(), model.state_dict(), {}, {})


@pytest.mark.parametrize("targets", ["all", ["c_fc", "attn.c_proj"]])
@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"bias": False}])
def test_peft_computes_the_same_logits(
    tmp_path: Path, changes: dict[str, Any], targets: Any
) -> None:
    """With new characters, for which its embedding is made larger first."""
    base = make_base(tmp_path, **changes)
    ours = open_checkpoint(finetune(tmp_path, base, **LORA, lora_targets=targets))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert len(ours.tokenizer) > theirs.config.vocab_size
    theirs.resize_token_embeddings(len(ours.tokenizer), mean_resizing=False)
    before = theirs(some_ids(len(ours.tokenizer))).logits
    theirs = peft_model(theirs, ours.path)
    ids = some_ids(len(ours.tokenizer))
    with torch.no_grad():
        expected, logits = theirs(ids).logits, ours.model()(ids)
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"vocab_size": 40}])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "target_modules": ["c_attn"]},
        {"rank_pattern": {"c_fc": 5}},
        {"trainable_token_indices": [7, 3]},
        {"modules_to_save": ["wpe", "ln_f"]},
        {"target_modules": ["c_attn"], "modules_to_save": ["attn.c_proj", "c_fc"]},
    ],
)
def test_an_adapter_trained_by_peft_loads_here(
    tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any]
) -> None:
    theirs = made_by_peft(make_base(tmp_path, **changes), tmp_path / "theirs", **settings)
    ours = open_checkpoint(tmp_path / "theirs")
    ids = some_ids(len(vocabulary()))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours.model()(ids), expected, atol=2e-4, rtol=1e-4)
    assert smallgpt.load(tmp_path / "theirs").reply("早上好")


def test_ids_of_another_program_are_not_mistaken_for_ours(tmp_path: Path) -> None:
    """Its ids are put into our order here, the rows of an adapter of PEFT's are not."""
    (tmp_path / "base").mkdir()
    make_foreign(tmp_path / "base", "bytes")
    made_by_peft(tmp_path / "base", tmp_path / "plain")
    assert open_checkpoint(tmp_path / "plain").weights
    made_by_peft(tmp_path / "base", tmp_path / "rows", trainable_token_indices=[260])
    said = refusal(lambda: open_checkpoint(tmp_path / "rows"))
    assert "changes the embedding or the output head of another program's model" in said


def test_a_classifier_of_peft_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    made_by_peft(base, tmp_path / "theirs", task_type="SEQ_CLS")
    said = refusal(lambda: open_checkpoint(tmp_path / "theirs", classifier=None))
    assert "is an adapter for a classifier of another program" in said


@pytest.mark.parametrize("through", ["itself", "the folder of its run", "another"])
def test_an_adapter_for_an_adapter_is_refused(adapted: Path, tmp_path: Path, through: str) -> None:
    path = tmp_path / "theirs"
    made_by_peft(make_base(tmp_path), path)
    name = {"itself": path, "another": adapted}.get(through, adapted.parent)
    edit(path / "adapter_config.json", base_model_name_or_path=str(name))
    assert f"{path} is an adapter for another adapter" in refusal(lambda: open_checkpoint(path))


@pytest.mark.parametrize(
    "changes",
    [
        {"base": 5},
        {"base": None},
        {"base": {"name": "x"}},
        {"base": {"name": 5, "path": "", "sha256": "", "added_rows": 0}},
        {"labels": 5},
        {"labels": [1, 2]},
        {"rank": None},
    ],
)
def test_a_manifest_that_says_nonsense_is_refused(
    adapted: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    copy = tmp_path / "cpt4"
    shutil.copytree(adapted, copy)
    edit(copy / "manifest.json", **changes)
    assert "manifest.json is damaged" in refused_command("inspect", copy)


def test_a_head_that_has_not_the_labels_is_refused(adapted: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cpt4"
    shutil.copytree(adapted, copy)
    file = copy / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["base_model.model.score.weight"] = torch.zeros(2, 5)
    safetensors.torch.save_file(tensors, file)
    reseal(copy)
    assert "does not fit its base" in refusal(lambda: open_checkpoint(copy))


# The directory, and what is refused.


def test_it_becomes_a_whole_checkpoint(adapted: Path, tmp_path: Path) -> None:
    done = command("convert", adapted, "--merge", "--output", tmp_path / "whole")
    assert done.exit_code == 0, done.output
    whole, parts = checkpoint.load(tmp_path / "whole"), open_checkpoint(adapted, merge=False)
    scale = parts.config.lora_alpha / parts.config.lora_rank
    for name, weight in whole.weights.items():
        module = name.removesuffix(".weight")
        expected = parts.weights.get(name)
        if module + lora.A in parts.weights:
            more = parts.weights[module + lora.B] @ parts.weights[module + lora.A]
            expected = parts.weights[name] + scale * more
        assert expected is None or torch.equal(weight, expected), name
    assert whole.config.lora_rank == 0
    assert smallgpt.load(whole.path, seed=3).reply("早上好") == smallgpt.load(
        adapted, seed=3
    ).reply("早上好")
    assert "is no adapter" in refused_command(
        "convert", whole.path, "--merge", "--output", tmp_path / "x"
    )
    assert "add --merge" in refused_command("convert", adapted, "--output", tmp_path / "x")
    assert "leave it out: --to gguf merges anyway" in refused_command(
        "convert", adapted, "--merge", "--to", "gguf", "--output", tmp_path / "x"
    )
    assert "is an adapter" in refusal(lambda: publish.make_ready(adapted, tmp_path / "y", "mit"))


def test_it_serves_wherever_a_model_does(adapted: Path, trained: Path, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text(MINE, "utf-8")
    for path in (adapted, adapted.parent):
        done = command("evaluate", path, "--data", text, "--replies", "2", "--compare", trained)
        assert done.exit_code == 0, done.output
    said = command("inspect", adapted).stdout
    assert f"an adapter of rank 3 for: {trained}" in said
    assert "adapter_model.safetensors" in said
    assert (
        command("convert", adapted, "--to", "gguf", "--output", tmp_path / "a.gguf").exit_code == 0
    )
    # It is a base too, but not of other adapters.
    assert finetune(tmp_path, adapted).exists()
    other = {**LORA, "checkpoint_root": str(tmp_path / "other")}
    said = refusal(lambda: finetune(tmp_path, adapted, **other))
    assert "is an adapter, not a whole model" in said
    assert "--merge" in said


def test_its_base_is_found_from_a_folder_above(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    shutil.copytree(trained, project / "base")
    monkeypatch.chdir(project)
    path = finetune(project, "base", **LORA, checkpoint_root="runs/lora")
    ids = some_ids(20)
    expected = open_checkpoint(path).model()(ids)
    project.rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    path = tmp_path / "moved" / path
    assert torch.equal(open_checkpoint(path).model()(ids), expected)
    # Another model in its place, and none.
    other = make_base(tmp_path)
    shutil.rmtree(tmp_path / "moved" / "base")
    assert "is an adapter for base, which is missing" in refusal(lambda: open_checkpoint(path))
    shutil.copytree(other, tmp_path / "moved" / "base")
    assert "for another model than" in refusal(lambda: open_checkpoint(path))
    # Another one of that name in the current folder does not stand in the way of the right one.
    shutil.rmtree(tmp_path / "moved" / "base")
    shutil.copytree(trained, tmp_path / "moved" / "base")
    shutil.copytree(other, tmp_path / "elsewhere" / "base")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(open_checkpoint(path).model()(ids), expected)
    # One that is named by its whole path is looked for once.
    base = tmp_path / "elsewhere" / "base"
    absolute = finetune(tmp_path, base, **LORA, checkpoint_root=str(tmp_path / "absolute"))
    shutil.rmtree(base)
    shutil.copytree(trained, base)
    assert refusal(lambda: open_checkpoint(absolute)).count(str(base)) == 1


def test_damage_is_noticed(adapted: Path, tmp_path: Path) -> None:
    for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json"):
        copy = tmp_path / f"of {name}" / "cpt4"
        shutil.copytree(adapted, copy)
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[:-9] + b"#" + whole[-8:])
        assert "damaged" in refusal(partial(open_checkpoint, copy))
        (copy / name).unlink()
        assert "missing" in refusal(partial(open_checkpoint, copy))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"peft_type": "LOHA"}, "an adapter of type LOHA"),
        ({"use_dora": True}, "has use_dora: True"),
        ({"bias": "all"}, "has bias: 'all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "began with pissa_niter_4"),
        ({"init_lora_weights": "lora_ga"}, "began with lora_ga"),
        ({"base_model_name_or_path": None}, "a model that it does not name, which is missing"),
        ({"base_model_name_or_path": 5}, "a model that it does not name, which is missing"),
        ({"base_model_name_or_path": "x" * 5000}, "xxx, which is missing"),
        ({"r": "many"}, "lora_rank is 'many'"),
    ],
)
def test_what_our_network_does_not_have_is_refused(
    adapted: Path, tmp_path: Path, settings: dict[str, Any], problem: str
) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapted / name, tmp_path / name)
    edit(tmp_path / "adapter_config.json", **settings)
    assert problem in refusal(lambda: open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    "wrong", ["shape", "name", "half", "not finite", "rows", "pickle", "empty", "whole", "complex"]
)
def test_tensors_that_do_not_fit_the_base_are_refused(
    trained: Path, adapted: Path, tmp_path: Path, wrong: str
) -> None:
    described = json.loads((adapted / "adapter_config.json").read_text("utf-8"))
    file = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(adapted / file.name)
    rows = next(name for name in tensors if "token_adapter" in name)
    name = next(name for name in tensors if name.endswith("lora_A.weight"))
    if wrong != "rows":
        del tensors[rows], described["trainable_token_indices"]
    if wrong == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    elif wrong == "name":
        tensors["base_model.model.transformer.h.9.attn.q.lora_A.weight"] = tensors.pop(name)
    elif wrong == "half":
        del tensors[name]
    elif wrong == "not finite":
        tensors[name][0, 0] = math.nan
    elif wrong == "empty":
        tensors[name] = tensors[name][:0]
    elif wrong in ("whole", "complex"):
        tensors[name] = tensors[name].to(torch.int8 if wrong == "whole" else torch.complex64)
    safetensors.torch.save_file(tensors, file)
    if wrong == "pickle":
        file.rename(tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps(described), "utf-8")
    said = refusal(lambda: open_checkpoint(tmp_path))
    known = {"not finite": "not finite", "rows": "trainable_token_indices", "pickle": "missing"}
    known |= dict.fromkeys(("empty", "whole", "complex"), "not floating-point numbers")
    assert known.get(wrong, "does not fit its base") in said


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"lora_targets": "q_proj"}, "lora_targets is 'q_proj'; it must be all, or some of"),
        ({"lora_targets": []}, "lora_targets is []; it must be all, or some of"),
        ({"base_model": None}, "lora_rank is 2; it needs a base_model"),
        ({"lora_rank": -1}, "lora_rank is -1; it must be a whole number of at least 0"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    values = {"base_model": "box", "lora_rank": 2, **changes}
    assert problem in refusal(lambda: finetune(tmp_path, values.pop("base_model"), **values))
