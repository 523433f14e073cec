"""What training takes of a GPU's memory: expected, counted, and checked before it begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory import dialogue_step, measure
from benchmarks.memory import main as memory_of_steps
from smallgpt import runtime
from smallgpt.config import Config
from smallgpt.config_file import config_from_dict, config_to_yaml, load_config
from smallgpt.model.classifier import Classifier
from smallgpt.model.gpt import GPT
from smallgpt.runtime import Runtime
from smallgpt.training import memory, pretrain
from smallgpt.training.memory import Part, expected, positions_apart, rows_apart
from smallgpt.utils.errors import UserError
from tests.helpers.models import DIALOGUES
from tests.helpers.processes import REPOSITORY, SMALL

GPU = Runtime(torch.device("cuda:0"), torch.bfloat16, "")
CPU = Runtime(torch.device("cpu"), torch.bfloat16, "")
GIB = 2**30
MIDDLE = Config(
    block_size=256, vocab_size=5000, n_layer=4, n_head=8, n_embd=512, train_batch=24, dropout=0.1
)
SHIPPED = {
    size: load_config(REPOSITORY / f"config/train{size}.yaml", []) for size in ("90M", "300M")
}


# -- expected, against every tensor of a step ---------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "dtype"),
    [
        pytest.param(SHIPPED["90M"], torch.bfloat16, id="90M"),
        pytest.param(SHIPPED["300M"], torch.bfloat16, id="300M"),
        pytest.param(MIDDLE, torch.float32, id="float32"),
        pytest.param(replace(MIDDLE, accumulate=2), torch.float16, id="in parts"),
        pytest.param(replace(MIDDLE, train_batch=1), torch.bfloat16, id="one row"),
        pytest.param(replace(MIDDLE, dropout=0.0, optimizer="muon"), torch.bfloat16, id="muon"),
        pytest.param(replace(MIDDLE, ngram_order=3, tied=False), torch.bfloat16, id="n-grams"),
    ],
)
def test_what_is_expected_is_what_a_step_takes(plan: Config, dtype: torch.dtype) -> None:
    part = next(rows_apart(plan, 1))
    build = dialogue_step(plan, part.positions // plan.block_size)
    taken = measure(plan, dtype, build, plan.accumulate)
    with torch.device("meta"):
        model = GPT(plan)
    needed = expected(plan, replace(GPU, dtype=dtype), model, part)
    assert needed == pytest.approx(taken.peak, rel=0.1)


@pytest.mark.parametrize("frozen", [False, True])
def test_of_a_classifier_only_layers_that_learn_keep_something(frozen: bool) -> None:
    rows = 16

    def classifier() -> Classifier:
        model = Classifier(MIDDLE, 2)
        if frozen:
            model.freeze()
        return model.train()

    def build() -> tuple[nn.Module, Callable[[], Tensor]]:
        model = classifier()

        def loss() -> Tensor:
            ids = torch.zeros(rows, MIDDLE.block_size, dtype=torch.long)
            states = torch.zeros(*ids.shape, MIDDLE.n_embd) if frozen else None
            logits: Tensor = model(ids, ids[:, 0], None, states)
            return logits.float().sum()

        return model, loss

    taken = measure(MIDDLE, torch.bfloat16, build)
    part = Part("", rows * MIDDLE.block_size, True)
    needed = expected(MIDDLE, GPU, classifier(), part, of_tokens=False)
    assert needed == pytest.approx(taken.peak, rel=0.1)


def test_the_benchmark_prints_what_takes_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(config_to_yaml(replace(MIDDLE, train_batch=32, accumulate=4)))
    memory_of_steps([plan])
    line = json.loads(capsys.readouterr().out)
    assert line["positions"] == 2048
    assert line["weights_gb"] == line["gradients_gb"] == pytest.approx(line["moments_gb"] / 2, 0.1)
    assert line["expected_gb"] == pytest.approx(line["peak_gb"], rel=0.1)


# -- checked before training --------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the GPU have so many GiB free, in all, and held by this process."""

    def has(free: float, total: float = 0, held: float = 0, integrated: bool = False) -> None:
        sizes = round(free * GIB), round((total or free) * GIB)
        properties = SimpleNamespace(is_integrated=integrated)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: sizes)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: round(held * GIB))

    return has


def check(plan: Config, processes: int = 1) -> float:
    with torch.device("meta"):
        model = GPT(plan)
    return memory.check(plan, GPU, model, rows_apart(plan, processes)) / GIB


def test_what_does_not_fit_is_refused_with_the_smallest_accumulate_that_does(
    gpu: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = SHIPPED["300M"]
    gpu(15.5)
    needed = check(plan)
    assert capsys.readouterr().err == ""

    gpu(7.6)
    with pytest.raises(UserError) as refused:
        check(plan)
    assert refused.value.problem == (
        f"training takes about {needed:.1f} GiB of memory, cuda:0 has 7.6 GiB free of 7.6 GiB"
    )
    assert "set accumulate: 4, with which it takes" in refused.value.advice
    gpu(50)
    assert check(replace(plan, accumulate=4)) < 0.9 * 7.6 < check(replace(plan, accumulate=3))


def test_accumulate_that_is_named_can_be_shared_among_processes(gpu: Callable[..., None]) -> None:
    gpu(3.5)
    plan = replace(SHIPPED["90M"], train_batch=100)
    with pytest.raises(UserError, match="set accumulate: 5,"):
        check(plan, processes=4)
    assert [part[:2] for part in rows_apart(replace(plan, train_batch=12, accumulate=2), 2)] == [
        ("accumulate: 2", 768),
        ("accumulate: 3", 512),
        ("accumulate: 6", 256),
    ]


def test_reviews_are_told_the_positions_that_fit(gpu: Callable[..., None]) -> None:
    assert [part[:2] for part in positions_apart(6144, 5000, 2000)] == [
        ("max_positions: 6144", 5000),
        ("max_positions: 3072", 3072),
        ("max_positions: 2000", 2000),
    ]
    with torch.device("meta"):
        model = Classifier(SHIPPED["300M"], 2)
    gpu(9)
    with pytest.raises(UserError, match="set max_positions: 2048, with"):
        memory.check(SHIPPED["300M"], GPU, model, positions_apart(8192, 98304, 1000), False)


def test_a_model_that_fits_in_no_parts_is_told_what_else_helps(gpu: Callable[..., None]) -> None:
    gpu(3.5, total=8)
    with pytest.raises(UserError) as refused:
        check(SHIPPED["300M"])
    advice = refused.value.advice
    assert "even accumulate: 24 takes" in advice
    assert "train a smaller model (n_layer, n_embd)" in advice
    assert "end what else uses the GPU (nvidia-smi lists it)" in advice


def test_where_it_is_close_a_run_begins_with_a_warning(
    gpu: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    gpu(100)
    needed = check(SHIPPED["90M"])
    gpu(needed)
    assert check(SHIPPED["90M"]) == needed
    said = capsys.readouterr().err
    assert "warning: training takes about" in said
    assert "if it runs out, set accumulate: 2, with" in said


def test_what_is_held_already_or_a_cache_of_the_system_counts_as_free(
    gpu: Callable[..., None],
) -> None:
    gpu(7, total=15, held=7)
    check(SHIPPED["300M"])
    gpu(7, total=15, integrated=True)
    check(SHIPPED["300M"])
    gpu(7, total=15)
    with pytest.raises(UserError):
        check(SHIPPED["300M"])


def test_a_run_is_refused_before_the_model_is_on_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: Callable[..., None]
) -> None:
    (tmp_path / "text.txt").write_text("\n".join([DIALOGUES] * 4), encoding="utf-8")
    places: dict[str, Any] = {
        "data_path": str(tmp_path / "text.txt"),
        "checkpoint_root": str(tmp_path / "run"),
    }
    monkeypatch.setattr(runtime, "start", lambda *_: GPU)
    gpu(0.0001)
    with pytest.raises(UserError, match="cuda:0 has 0"):
        pretrain.run(config_from_dict(SMALL | places, "test", Config))


def test_variable_length_attention_takes_more_for_more_texts() -> None:
    model, flash = GPT(MIDDLE), replace(GPU, varlen=True)
    parts = [next(rows_apart(MIDDLE, 1, texts)) for texts in (1, 20)]
    few, many = (memory.expected(MIDDLE, flash, model, part) for part in parts)
    assert few < many
    masked = {memory.expected(MIDDLE, GPU, model, part) for part in parts}
    assert len(masked) == 1 and masked.pop() < few


def test_a_cpu_is_never_asked_for_a_gpus_memory() -> None:
    needed = memory.check(MIDDLE, CPU, GPT(MIDDLE), rows_apart(MIDDLE, 1))
    assert needed > 0.4 * GIB


def test_the_peak_is_told_beside_what_was_expected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memory.tell_peak(CPU, 1e9)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 9 * GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 10 * GIB)
    memory.tell_peak(GPU, 9.5 * GIB)
    said = capsys.readouterr().err
    assert said == "memory: 9.0 GiB at most (10.0 GiB reserved), 9.5 GiB expected\n"
