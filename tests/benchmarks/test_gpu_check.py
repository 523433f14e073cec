"""`make gpu-check` on a CPU, at tiny sizes: each check passes, and fails on a planted fault."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.nn.attention import varlen
from typer.testing import Result

from benchmarks.gpu_check import __main__ as program
from benchmarks.gpu_check import report, runs
from benchmarks.gpu_check.checks import CHECKS, MOST_MEMORY
from benchmarks.gpu_check.report import FAILED, MISSED, NOT_RUN, Figures
from benchmarks.gpu_check.setting import Setting, shipped
from benchmarks.gpu_check.training import precision_config, summary
from smallgpt import runtime
from smallgpt.chat import chatbot
from smallgpt.checkpoints.checkpoint import Checkpoint
from smallgpt.config import Config, SentimentConfig
from smallgpt.model import attention, gpt
from smallgpt.model.gpt import GPT
from smallgpt.runtime import Runtime
from smallgpt.sentiment.task import ReviewTask
from smallgpt.training import memory, preference_loss, preference_task, trainer
from smallgpt.training.metrics import METRICS_FILE
from smallgpt.training.pretrain import DialogueTask
from smallgpt.training.schedule import Schedule
from smallgpt.training.trainer import Trainer
from smallgpt.utils.errors import UserError
from tests.helpers.commands import python_here
from tests.helpers.models import DIALOGUES
from tests.helpers.processes import REPOSITORY
from tests.helpers.varlen import varlen_on_cpu

# What the compiler does itself would end the compilation here.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
CUDA = torch.device("cuda:0")
Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    text = tmp_path_factory.mktemp("gpu_check") / "text.txt"
    text.write_text("\n".join([DIALOGUES] * 20), encoding="utf-8")
    dialogues = Config(
        data_path=str(text),
        vocab_size=64,
        block_size=32,
        n_layer=2,
        n_head=2,
        n_embd=16,
        max_new_tokens=4,
        device="cpu",
        dtype="float32",
        lr=0.01,
        warmup_steps=3,
        decay_steps=100,
        max_steps=100,
        train_batch=8,
        test_batch=2,
        eval_steps=4,
    )
    reviews = SentimentConfig(
        device="cpu", dtype="float32", train_batch=8, eval_freq=3, warmup_steps=2
    )
    return Setting(
        large=dialogues,
        medium=dialogues,
        small=dialogues,
        whole=reviews,
        frozen=replace(reviews, frozen=True),
        chat_size="tiny",
        device="cpu",
        product=64,
        products=2,
        warm_up=2,
        steps=10,
        precisions=("bfloat16", "float32"),
        precision_steps=10,
        last=5,
        resumed_steps=10,
        profiled_steps=2,
        validation_batches=4,
        characters=5,
        reviews=60,
        large_step=100,
        ddp_steps=4,
        patience=120,
        quality_minutes=60,
        peak=1e10,
    )


@pytest.fixture(scope="module")
def measure(setting: Setting) -> Callable[[str], Figures]:
    """The figures of a check as all is now; those without a fault are measured once."""

    @functools.cache
    def healthy(name: str) -> Figures:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
            allow_varlen(patch)
            pretend_a_card(patch, Path(str(setting.medium.data_path)).parent)
            return CHECKS[name].measure(setting)

    return healthy


def pretend_a_card(patch: pytest.MonkeyPatch, devices: Path) -> None:
    """In the commands of the check of the driver."""
    (devices / "nvidia0").touch()
    pretend = "import pathlib, torch; from smallgpt.utils import nvidia"
    pretend += f"; torch.version.cuda = '13.0'; nvidia.DEVICES = pathlib.Path({str(devices)!r})"
    patch.setattr(runs, "HIDDEN_CARD", f"{pretend}; {runs.HIDDEN_CARD}")


def allow_varlen(patch: pytest.MonkeyPatch) -> None:
    varlen_on_cpu()
    patch.setattr(
        runtime,
        "with_attention",
        lambda here, config: replace(here, varlen=config.attention == "varlen"),
    )


def failures(name: str, figures: Figures) -> list[str]:
    return [row.what for row in CHECKS[name].judge(figures) if row.verdict == FAILED]


# -- without a fault --------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKS)
def test_nothing_fails_where_all_is_right(name: str, measure: Callable[[str], Figures]) -> None:
    figures = measure(name)
    assert json.loads(json.dumps(figures)) == figures
    assert CHECKS[name].judge(figures)
    assert not failures(name, figures)


def test_compiled_blocks_have_the_graphs_that_are_wanted(measure: Callable[[str], Figures]) -> None:
    rows = CHECKS["compiled"].judge(measure("compiled"))
    (row,) = (row for row in rows if row.what.startswith("graphs"))
    assert row.verdict == "pass", row


def test_the_real_setting_is_what_is_shipped(setting: Setting) -> None:
    real = shipped(Path(str(setting.medium.data_path)))
    sizes = [(c.n_layer, c.n_embd) for c in (real.large, real.medium, real.small)]
    assert sizes == [(26, 960), (12, 768), (6, 384)]
    assert (real.large.vocab_size, real.large.train_batch, real.medium.train_batch) == (
        7587,
        24,
        80,
    )
    assert {real.large.device, real.small.device, real.frozen.device} == {"cuda"}
    assert (real.whole.frozen, real.frozen.frozen) == (False, True)


def test_each_precision_leaves_room_in_memory(setting: Setting) -> None:
    real = shipped(Path(str(setting.medium.data_path)))
    for dtype in real.precisions:
        config, here = precision_config(real, dtype), Runtime(CUDA, getattr(torch, dtype), "")
        with torch.device("meta"):
            model = GPT(config)
        part = next(memory.rows_apart(config, 1))
        assert memory.expected(config, here, model, part) < 0.8 * MOST_MEMORY


# -- with a fault in the code -----------------------------------------------------------------


def learn_in_reverse(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Schedule, "learning_rate", lambda self, step: -0.01)


def shift_a_precision(patch: pytest.MonkeyPatch) -> None:
    lack_a_compiler(patch)
    loss = DialogueTask.loss

    def shifted(self: DialogueTask, network: Any, part: Any) -> Tensor:
        return loss(self, network, part) * (1.05 if self.runtime.dtype == torch.bfloat16 else 1)

    patch.setattr(DialogueTask, "loss", shifted)


def lose_the_moments(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.optim.Optimizer, "load_state_dict", lambda self, state: None)


def lose_the_weights(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Checkpoint, "model", lambda self, config: GPT(config))


def wait_in_attention(patch: pytest.MonkeyPatch) -> None:
    attend = attention.attend

    def waiting(*tensors: Any) -> Tensor:
        assert all(tensor.isfinite().all().item() for tensor in tensors[:3])
        return attend(*tensors)

    patch.setattr(gpt, "attend", waiting)


def attend_without_a_kernel(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gpt, "attend", lambda q, k, v, *others: (q @ k.transpose(-1, -2)).softmax(-1) @ v)


def validate_with_gradients(patch: pytest.MonkeyPatch) -> None:
    validate = DialogueTask.validate

    def training_too(self: DialogueTask, *arguments: Any) -> Any:
        self.loss(self.model, self.on_device(self.parts(0, 1)[0][0])).backward()
        return validate(self, *arguments)

    patch.setattr(DialogueTask, "validate", training_too)


def attend_to_nothing_else(patch: pytest.MonkeyPatch) -> None:
    allow_varlen(patch)
    patch.setattr(varlen, "varlen_attn", lambda q, k, v, *others, **options: v.contiguous())


def compile_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch, "compile", lambda model, **options: model)


def lack_a_compiler(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trainer, "can_compile", lambda device: False)


def reply_differently(patch: pytest.MonkeyPatch) -> None:
    ids = itertools.count(5)
    patch.setattr(chatbot, "generate", lambda *arguments: iter([next(ids)]))


def forget_the_reference(patch: pytest.MonkeyPatch) -> None:
    dpo = preference_loss.dpo
    patch.setattr(preference_task, "dpo", lambda chosen, *others: dpo(chosen + 1, *others))


@pytest.mark.parametrize(
    ("name", "plant", "fails"),
    [
        ("train300M", learn_in_reverse, "loss, first and last step"),
        ("precisions", shift_a_precision, "bfloat16 against float32, mean loss"),
        ("precisions", lack_a_compiler, "the blocks are compiled"),
        ("resume", lose_the_moments, "largest deviation later"),
        ("resume", lose_the_weights, "first loss, resumed"),
        ("profile", wait_in_attention, "synchronisations a step"),
        ("profile", attend_without_a_kernel, "attention's kernel"),
        ("validation", validate_with_gradients, "backward kernels in validation"),
        ("compiled", compile_nothing, "the blocks are compiled"),
        ("attention", attend_to_nothing_else, "mean of the last losses, apart"),
        ("chat", reply_differently, "the same reply twice"),
        ("tuning", forget_the_reference, "dpo: first loss"),
        ("tuning", learn_in_reverse, "dpo: last loss"),
    ],
)
def test_a_fault_in_the_code_fails(
    name: str, plant: Plant, fails: str, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert fails in failures(name, CHECKS[name].measure(setting))


def test_two_processes_that_learn_something_else_fail(
    setting: Setting, measure: Callable[[str], Figures], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = measure("torchrun")["two"]

    def as_before(config: Config, setting: Setting) -> tuple[int, str]:
        assert config.max_steps == runs.MOST_STEPS  # left alone, it would end
        lines = "".join(json.dumps({"loss": loss}) + "\n" for loss in two)
        Path(config.checkpoint_root, METRICS_FILE).write_text(lines, encoding="utf-8")
        return 143, ""

    monkeypatch.setattr(runs, "_two_processes", as_before)
    loss = DialogueTask.loss
    monkeypatch.setattr(DialogueTask, "loss", lambda *arguments: 1.001 * loss(*arguments))
    figures = CHECKS["torchrun"].measure(setting)
    assert failures("torchrun", figures) == [
        "losses of two processes and one",
        "SIGTERM: saved",
    ]


def test_two_processes_end_with_the_check(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = f"import socket; s = socket.create_connection({server.getsockname()}); s.recv(1)"
        (tmp_path / "train.py").write_text(connect, encoding="utf-8")
        workers: list[socket.socket] = []

        def interrupted(*arguments: Any) -> None:
            server.settimeout(60)
            workers.extend(server.accept()[0] for _ in range(2))
            raise SystemExit(143)

        monkeypatch.setattr(runs, "ROOT", tmp_path)
        monkeypatch.setattr(runs, "_wait_for_steps", interrupted)
        with pytest.raises(SystemExit):
            runs._two_processes(setting.small, setting)
        for worker in workers:
            with worker:
                worker.settimeout(30)
                assert worker.recv(1) == b""  # its process is gone


def on(device: DeviceType, *names: str) -> list[Any]:
    """What a profiler tells of calls or kernels; each takes a microsecond longer than the last."""
    return [
        SimpleNamespace(
            name=name,
            device_type=device,
            cpu_parent=None,
            time_range=SimpleNamespace(elapsed_us=lambda took=took: took),
        )
        for took, name in enumerate(names)
    ]


def test_calls_and_kernels_of_a_card_are_told_by_their_names() -> None:
    calls = on(
        DeviceType.CPU,
        "aten::scaled_dot_product_attention",
        "aten::_local_scalar_dense",
        "cudaStreamSynchronize",
        "cudaStreamSynchronize",
        "cudaEventSynchronize",
        "cudaMemcpyAsync",
        "cudaMemcpy",
    )
    kernels = on(
        DeviceType.CUDA,
        "pytorch_flash::flash_fwd_kernel<…>",
        "triton_poi_fused__scaled_dot_product_flash_attention_0",
        "Memcpy HtoD (Pageable -> Device)",
        "Memcpy HtoD (Pinned -> Device)",
        "nvjet_sm90_tst_128x256",
        "fmha_cutlassB_bf16_aligned_64x64_k64_sm80(…)",
    )
    assert summary(calls, 2, "cuda")["device_events"] == 0
    figures = summary([*calls, *kernels], 2, "cuda")
    assert figures["device_events"] == len(kernels)
    assert figures["synchronisations"] == {
        "cudaStreamSynchronize": 1.0,
        "cudaEventSynchronize": 0.5,
        "cudaMemcpy": 0.5,
    }
    assert figures["unpinned_copies"] == 0.5
    assert list(figures["attention_microseconds"]) == [kernels[5].name, kernels[0].name]


def test_what_this_torch_cannot_do_is_not_run(setting: Setting) -> None:
    (row,) = CHECKS["attention"].judge(CHECKS["attention"].measure(setting))
    assert row.verdict == "not run" and "attention: varlen needs " in row.measured


def test_int8_may_be_refused(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = runtime.choose_precision

    def refusing(name: str, *others: Any) -> runtime.Precision:
        if name == "int8":
            raise UserError("dtype: int8 is slower here", "use bfloat16")
        return choose(name, *others)

    monkeypatch.setattr("benchmarks.generation.choose_precision", refusing)
    rows = CHECKS["chat"].judge(CHECKS["chat"].measure(setting))
    assert (rows[-1].measured, rows[-1].verdict) == ("refused: dtype: int8 is slower here", "pass")


# -- with a fault in the figures --------------------------------------------------------------


def changed(figures: Figures, path: str, value: Any) -> Figures:
    """A copy with another value at `path`, such as `a.b`."""
    key, _, rest = path.partition(".")
    return figures | {key: changed(figures[key], rest, value) if rest else value}


@pytest.mark.parametrize(
    ("name", "path", "value", "row", "verdict"),
    [
        ("train300M", "allocated_gb", 11.6, "allocated, float32", FAILED),
        ("train300M", "reserved_gb", 13.1, "reserved", FAILED),
        ("train90M", "allocated_gb", 10.1, "allocated, float32", FAILED),
        ("train300M", "allocated_gb", 0.0, "allocated, against", MISSED),
        ("train300M", "losses", [4.0, math.nan], "loss", FAILED),
        ("train300M", "utilisation", 0.39, "share of the peak", MISSED),
        ("train300M", "utilisation", math.nan, "share of the peak", MISSED),
        ("compiled", "compiled.compiled", False, "the blocks are compiled", FAILED),
        ("compiled", "graphs", 0, "the blocks are compiled", FAILED),
        ("compiled", "graphs", 3, "graphs", MISSED),
        ("compiled", "compiled.loss", 9.0, "mean of the last losses", FAILED),
        ("compiled", "eager.step_seconds", 0.0, "compiled against eager", MISSED),
        ("attention", "varlen.step_seconds", 1e9, "variable-length", MISSED),
        ("precisions", "losses.bfloat16", [4.0] * 10, "bfloat16 against float32", FAILED),
        ("precisions", "losses.bfloat16", [math.nan] * 10, "bfloat16 against float32", FAILED),
        ("precisions", "skipped.bfloat16", 10, "bfloat16 against float32", FAILED),
        ("precisions", "compiled.bfloat16", False, "the blocks are compiled", FAILED),
        ("resume", "resumed", [], "steps after resuming", FAILED),
        ("profile", "device_events", 0, "events of the device", FAILED),
        ("profile", "synchronisations", {"cudaStreamSynchronize": 2.2}, "synchron", FAILED),
        ("profile", "attention_microseconds", {}, "attention", FAILED),
        ("validation", "backward", ["MulBackward0"], "backward", FAILED),
        ("validation", "milliseconds", 10.1, "validation of 2,048", MISSED),
        ("chat", "bfloat16.second", 0.0051, "a character, second", MISSED),
        ("chat", "bfloat16.first", 1.0, "first time", MISSED),
        ("chat", "int8.second", 1.0, "int8", MISSED),
        ("sentiment", "most_positions", 99, "positions of the largest", FAILED),
        ("sentiment", "saving_share", 0.21, "saving", MISSED),
        ("sentiment", "frozen_epochs", [9.0, 9.0], "epoch 2 frozen", MISSED),
        ("torchrun", "two", [], "steps of two", FAILED),
        ("torchrun", "saved", [], "SIGTERM: saved", FAILED),
        ("torchrun", "exit_code", 1, "SIGTERM: exit", FAILED),
        ("torchrun", "exit_code", None, "SIGTERM: exit", FAILED),
        ("quality", "validation_loss", math.nan, "validation loss", FAILED),
    ],
)
def test_a_figure_beyond_its_limit_is_marked(
    name: str, path: str, value: Any, row: str, verdict: str, measure: Callable[[str], Figures]
) -> None:
    rows = CHECKS[name].judge(changed(measure(name), path, value))
    assert [found.verdict for found in rows if found.what.startswith(row)] == [verdict]


@pytest.mark.parametrize(
    ("code", "said", "holds"),
    [
        (2, "error: device: cuda: the driver is too old\n  -> install 580\n", True),
        (0, "device: no CUDA GPU here, using the CPU\n", False),
        (2, "error: data_path: run.txt not found\n", False),
        (1, "Traceback …\nerror: device: cuda\n", False),
    ],
)
def test_only_a_clear_refusal_passes(code: int, said: str, holds: bool) -> None:
    assert bool(failures("driver", {"exit_code": code, "said": said})) != holds


# -- all together -----------------------------------------------------------------------------


class InThisProcess(contextlib.nullcontext[Any]):
    """A contestant without a process of its own; at chat it takes too long, and is killed."""

    folders: ClassVar[list[Path]] = []

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        super().__init__(self)
        self._made = make(*arguments)

    def call(self, method: str, *arguments: Any, seconds: float) -> Any:
        self.folders.append(Path(os.environ["TMPDIR"]))
        if arguments == ("chat",):
            (self.folders[-1] / "left").mkdir()
            raise TimeoutError
        return getattr(self._made, method)(*arguments)


def test_no_check_ends_the_others(
    setting: Setting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_memory(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(program, "Contestant", InThisProcess)
    monkeypatch.setattr(InThisProcess, "folders", [])
    monkeypatch.setattr(ReviewTask, "loss", no_memory)
    monkeypatch.setattr(Trainer, "_update", no_memory)
    written: list[list[str]] = []
    write = report.write

    def watched(file: Path, result: Any) -> None:
        write(file, result)
        written.append(list(json.loads(file.read_text("utf-8"))["checks"]))

    monkeypatch.setattr(report, "write", watched)
    names = ["product", "sentiment", "train300M", "chat", "quality"]
    file = tmp_path / "figures.json"
    assert not program.run(names, setting, 239, file)
    assert written == [names[: count + 1] for count in range(len(names))]
    result = json.loads(file.read_text("utf-8"))
    rows = {name: check["rows"] for name, check in result["checks"].items()}
    assert result["checks"]["product"]["figures"]["flops_per_second"] > 0
    assert "out of memory at step 1" in rows["sentiment"][0]["measured"]
    assert "Tried to allocate 2 GiB" in rows["train300M"][0]["measured"]
    assert "not done in 90 s" in rows["chat"][0]["measured"]
    assert "it takes about 240" in rows["quality"][0]["measured"]
    said = capsys.readouterr().out
    assert f"torch: {torch.__version__}" in said
    assert said.endswith("not run: 2 checks (chat, quality)\n")
    verdicts = [rows[name][0]["verdict"] for name in names]
    assert verdicts == ["", FAILED, FAILED, NOT_RUN, NOT_RUN]
    assert len(set(InThisProcess.folders)) == 4
    assert not any(folder.exists() for folder in InThisProcess.folders)


def test_what_takes_too_long_does_not_fail(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "Contestant", InThisProcess)
    assert program.run(["chat"], setting, 1000, None)
    assert capsys.readouterr().out.endswith("not run: 1 check (chat)\n")


def test_a_check_has_a_process_of_its_own(setting: Setting) -> None:
    figures, rows = program.check("product", setting, 100)
    assert figures["flops_per_second"] > 0 and [row.verdict for row in rows] == [""]


@pytest.mark.parametrize(("whole", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_says_whether_a_check_failed(
    whole: bool, code: int, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[str]] = []

    def run(names: Sequence[str], *others: Any) -> bool:
        asked.append(names)
        return whole

    monkeypatch.setattr(program, "choose_device", torch.device)
    monkeypatch.setattr(program, "run", run)
    ended = pytest.raises(SystemExit) if code else contextlib.nullcontext()
    with ended as stopped:
        program.main(["chat", "resume"], Path(str(setting.medium.data_path)), None, 9)
    assert asked == [["product", "resume", "chat"]]
    assert (stopped.value.code if stopped else 0) == code


def gpu_check(*options: str) -> Result:
    return python_here(REPOSITORY, "-m", "benchmarks.gpu_check.__main__", *options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card is here")
def test_without_a_card_nothing_is_checked() -> None:
    done = gpu_check()
    assert (done.exit_code, done.stdout) == (0, "")
    assert "nothing was checked" in done.stderr


def test_an_unknown_check_is_refused() -> None:
    done = gpu_check("--only", "train30M")
    assert done.exit_code == 2
    assert "error: --only: 'train30M' is unknown" in done.stderr and "train300M" in done.stderr


# -- one card for several processes -----------------------------------------------------------


def test_processes_share_a_card_only_where_a_test_wants_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="no GPU for process 1"):
        runtime.device_of_process(torch.device("cuda"), 1)
    monkeypatch.setenv("SMALLGPT_SHARE_GPU", "1")
    assert runtime.device_of_process(torch.device("cuda"), 1) == torch.device("cuda", 0)
