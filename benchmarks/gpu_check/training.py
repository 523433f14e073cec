"""Checks of single steps: speed, memory, precision, compilation, synchronisations, validation."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.gpu_check.report import Figures, Row, must, not_run, target
from benchmarks.gpu_check.setting import Setting, give_back_memory, run_steps
from benchmarks.measure import timed
from benchmarks.training import OurSide
from smallgpt import runtime
from smallgpt.config import Config, Dtype
from smallgpt.training import memory
from smallgpt.training.memory import rows_apart
from smallgpt.training.pretrain import DialogueTask
from smallgpt.utils.errors import UserError

SYNCHRONISING = {
    "cuda": (
        "cudaStreamSynchronize",
        "cudaEventSynchronize",
        "cudaDeviceSynchronize",
        "cudaMemcpy",
    ),
    "cpu": ("aten::_local_scalar_dense",),  # what waits for the device where there is one
}
"""Calls after which the host has waited for the device."""
ATTENTION = re.compile(
    "^(?!autograd|triton_(poi|per|red)).*(flash|fmha|attention|attn|sdpa)", re.IGNORECASE
)
_SPAN = "gpu_check"


def measure_product(setting: Setting) -> Figures:
    """Square matrix products in bfloat16, one after the other."""
    device = torch.device(setting.device)
    shape = (setting.product, setting.product)
    a, b = (torch.randn(shape, device=device).bfloat16() for _ in range(2))
    a @ b
    seconds = _seconds(lambda: [a @ b for _ in range(setting.products)], device)
    return {"flops_per_second": 2 * setting.product**3 * setting.products / seconds}


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Between two CUDA events; on a CPU by the clock."""
    if device.type != "cuda":
        return timed(work)[0]
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    work()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1000


def judge_product(figures: Figures) -> list[Row]:
    """What the others are divided by."""
    teraflops = figures["flops_per_second"] / 1e12
    what, wanted = "bfloat16 matrix product", "550–800 TFLOP/s on an H100"
    return [Row(what, f"{teraflops:.4g} TFLOP/s", wanted)]


# -- speed and memory -------------------------------------------------------------------------


def measure_large(setting: Setting) -> Figures:
    """Training of 300M."""
    return measure_training(setting.large, setting)


def measure_medium(setting: Setting) -> Figures:
    """Training of 90M."""
    return measure_training(setting.medium, setting)


def measure_training(config: Config, setting: Setting) -> Figures:
    """Steps as train.py takes them. GB are 1e9 bytes; `first_seconds` are those of the first step,
    compilation included."""
    cuda = setting.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    side = OurSide(config)
    device = side.here.device
    first_seconds, results = timed(lambda: run_steps(side.trainer, 1), device)
    results += run_steps(side.trainer, setting.warm_up)
    seconds, timed_results = timed(lambda: run_steps(side.trainer, setting.steps), device)
    task = side.trainer.task
    assert isinstance(task, DialogueTask)
    part = next(rows_apart(config, 1, task.rows.texts_a_row()))
    expected = memory.expected(config, side.here, task.model, part)
    rate = setting.steps * config.train_batch * config.block_size / seconds
    return {
        "precision": str(side.here.dtype).removeprefix("torch."),
        "parameters": side.parameters,
        "compiled": side.trainer.compiles,
        "first_seconds": first_seconds,
        "step_seconds": seconds / setting.steps,
        "positions_per_second": rate,
        "utilisation": 6 * side.parameters * rate / setting.peak,
        "expected_gb": expected / 1e9,
        "allocated_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9 if cuda else 0.0,
        "losses": [result.loss for result in results + timed_results],
    }


def judge_large(figures: Figures) -> list[Row]:
    """It fits into 16 GB and uses the card."""
    return judge_training(figures, 11.5, 13.0)


def judge_medium(figures: Figures) -> list[Row]:
    """It fits into 16 GB and uses the card."""
    return judge_training(figures, 10.0, 13.0)


def judge_training(figures: Figures, allocated: float, reserved: float) -> list[Row]:
    """Utilisation is 6 x parameters x positions a second, without attention, by the peak of the
    matrix product; most memory in GB."""
    share, losses = figures["utilisation"], figures["losses"]
    expected, off = figures["expected_gb"], figures["allocated_gb"] / figures["expected_gb"] - 1
    speed = f"{1000 * figures['step_seconds']:.1f} ms, {figures['positions_per_second']:,.0f}"
    return [
        must(f"allocated, {figures['precision']}", *_at_most(figures["allocated_gb"], allocated)),
        target(
            "allocated, against what was expected",
            f"{off:+.0%} of {expected:.2f} GB",
            f"{memory.MARGIN:.0%} apart",
            abs(off) <= memory.MARGIN,
        ),
        must("reserved", *_at_most(figures["reserved_gb"], reserved)),
        must(
            "loss, first and last step",
            f"{losses[0]:.3f}, {losses[-1]:.3f}",
            "falls",
            losses[-1] < losses[0],
        ),
        target("share of the peak product", f"{share:.1%}", "40 % (dream 50 %)", share >= 0.4),
        Row("a step, positions a second", speed),
        Row("first step, with compilation", f"{figures['first_seconds']:.1f} s"),
    ]


def _at_most(gigabytes: float, most: float) -> tuple[str, str, bool]:
    return f"{gigabytes:.2f} GB", f"at most {most:g} GB", gigabytes <= most


def measure_compiled(setting: Setting) -> Figures:
    """The same training without compilation and with it."""
    torch._dynamo.utils.counters.clear()
    pair = {"eager": {"compile": False}, "compiled": {"compile": True}}
    figures = _compare(setting, setting.medium, pair)
    return figures | {"graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"]}


def _compare(setting: Setting, config: Config, pair: dict[str, dict[str, Any]]) -> Figures:
    """The same training twice, with other keys: its speed, and the mean of the last losses."""
    figures: Figures = {}
    for name, keys in pair.items():
        some = measure_training(replace(config, **keys), setting)
        some["loss"] = mean(some.pop("losses")[-setting.last :])
        figures[name] = some
        give_back_memory()
    return figures


def judge_compiled(figures: Figures) -> list[Row]:
    """The blocks are compiled, which is worth it and changes no loss. Each is compiled whole or not
    at all, as the trainer takes no graph with a part left out."""
    eager, compiled, graphs = figures["eager"], figures["compiled"], figures["graphs"]
    times = eager["step_seconds"] / compiled["step_seconds"]
    apart = abs(eager["loss"] - compiled["loss"])
    done = compiled["compiled"] and graphs > 0
    return [
        must("the blocks are compiled", "yes" if done else "no", "yes", done),
        target("graphs for all of them", str(graphs), "2: to train, to validate", graphs == 2),
        must("mean of the last losses, apart", f"{apart:.4f} nats", "at most 0.05", apart <= 0.05),
        target("compiled against eager", f"{times:.2f} ×", "1.25 ×", times >= 1.25),
    ]


def measure_attention(setting: Setting) -> Figures:
    """The same training with a mask and with variable-length attention, where that is possible."""
    config = replace(setting.medium, dropout=0.0)
    try:
        runtime.with_attention(runtime.start(config), replace(config, attention="varlen"))
    except UserError as refusal:
        return {"refused": refusal.problem}
    pair = {name: {"attention": name} for name in ("mask", "varlen")}
    return _compare(setting, config, pair)


def judge_attention(figures: Figures) -> list[Row]:
    """It is the same attention, and quicker."""
    if "refused" in figures:
        return [not_run("variable-length attention", figures["refused"])]
    mask, varlen = figures["mask"], figures["varlen"]
    times, apart = mask["step_seconds"] / varlen["step_seconds"], abs(mask["loss"] - varlen["loss"])
    return [
        must("mean of the last losses, apart", f"{apart:.4f} nats", "at most 0.02", apart <= 0.02),
        target("variable-length against a mask", f"{times:.2f} ×", "1 ×", times >= 1),
    ]


def precision_config(setting: Setting, dtype: Dtype) -> Config:
    """Training without dropout, in two parts: whole, a step in float32 takes nearly all memory."""
    return replace(setting.medium, dropout=0.0, accumulate=2, compile=True, dtype=dtype)


def measure_precisions(setting: Setting) -> Figures:
    """The same training in several precisions, whether it was compiled, and how many steps were
    skipped as loss scaling looked for its factor."""
    losses, compiled, skipped = {}, {}, {}
    for dtype in setting.precisions:
        side = OurSide(precision_config(setting, dtype))
        results = run_steps(side.trainer, setting.precision_steps)
        losses[dtype] = [result.loss for result in results]
        compiled[dtype] = side.trainer.compiles
        skipped[dtype] = sum(not math.isfinite(result.grad_norm) for result in results)
        del side
        give_back_memory()
    return {"losses": losses, "compiled": compiled, "skipped": skipped, "last": setting.last}


def judge_precisions(figures: Figures) -> list[Row]:
    """All of them learn the same, by the mean of the last losses; after as many steps that were not
    skipped."""
    all_losses, last = figures["losses"], figures["last"]
    done = [dtype for dtype, compiled in figures["compiled"].items() if compiled]
    whole = len(done) == len(all_losses)
    rows = [must("the blocks are compiled", ", ".join(done) or "no", "in each precision", whole)]
    exact = all_losses["float32"]
    for dtype, losses in all_losses.items():
        end = len(losses) - figures["skipped"][dtype]
        one, other = mean(losses[-last:]), mean(exact[max(0, end - last) : end] or [math.nan])
        what, wanted = f"{dtype} against float32, mean loss", "at most 0.02 nats apart"
        if dtype != "float32":
            rows.append(must(what, f"{one:.4f}, {other:.4f}", wanted, abs(one - other) <= 0.02))
    return rows


# -- what a profiler sees ---------------------------------------------------------------------


def events_of(work: Callable[[], object], device: torch.device) -> list[Any]:
    """What the host called and the device did while `work` ran."""
    kinds = [ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with profile(activities=kinds, acc_events=True) as profiler, record_function(_SPAN):
        work()
    # Before and after it the profiler waits for the device itself.
    (span,) = (e for e in profiler.events() if e.name == _SPAN and _on_host(e))
    begin, end = span.time_range.start, span.time_range.end
    return [e for e in profiler.events() if not _on_host(e) or begin < e.time_range.start < end]


def _on_host(event: Any) -> bool:
    return bool(event.device_type == DeviceType.CPU)


def _in_optimizer(event: Any) -> bool:
    """A CPU's fused AdamW asks its own counters of steps, which lie in host memory."""
    parent = event.cpu_parent
    return parent is not None and (parent.name == "aten::_fused_adamw_" or _in_optimizer(parent))


def measure_profile(setting: Setting) -> Figures:
    """A few steps under the profiler."""
    side = OurSide(setting.large)
    run_steps(side.trainer, setting.warm_up)
    count, device = setting.profiled_steps, side.here.device
    return summary(events_of(lambda: run_steps(side.trainer, count), device), count, device.type)


def summary(events: Sequence[Any], steps: int, kind: str) -> Figures:
    """What the device did at all; and of each step: calls that wait for it, copies from memory that
    is not pinned (the host waits for those as well), and the time of attention by kernel.

    Args:
        kind: of the device, cpu or cuda.
    """
    waiting = SYNCHRONISING[kind]
    waits = Counter(e.name for e in events if e.name in waiting and not _in_optimizer(e))
    attention: Counter[str] = Counter()
    of_device = [event for event in events if _on_host(event) == (kind == "cpu")]
    for event in of_device:
        if ATTENTION.search(event.name):
            attention[event.name] += event.time_range.elapsed_us()
    unpinned = sum("Memcpy HtoD (Pageable" in event.name for event in events)
    return {
        "device_events": len(of_device),
        "synchronisations": {name: number / steps for name, number in waits.items()},
        "unpinned_copies": unpinned / steps,
        "attention_microseconds": {n: t / steps for n, t in attention.most_common(4)},
    }


def judge_profile(figures: Figures) -> list[Row]:
    """The host seldom waits for the device, and attention has a kernel of its own."""
    waits, attention = figures["synchronisations"], figures["attention_microseconds"]
    seen = figures["device_events"]  # none where the profiler may not look (CUPTI)
    total, names = sum(waits.values()), ", ".join(waits)
    kernel = next(iter(attention), "")
    return [
        must("events of the device in the profile", f"{seen:,}", "some", seen > 0),
        must("synchronisations a step", f"{total:g} ({names})", "at most 2", total <= 2),
        Row("copies from unpinned memory a step", f"{figures['unpinned_copies']:g}"),
        must("attention's kernel", kernel or "none found", "a fused one", bool(kernel)),
    ]


def measure_validation(setting: Setting) -> Figures:
    """Validation of 300M, and what of it is a backward pass."""
    config = replace(setting.large, eval_steps=setting.validation_batches)
    side = OurSide(config)
    task, device = side.trainer.task, side.here.device
    assert isinstance(task, DialogueTask)
    run_steps(side.trainer, 1)
    task.config = replace(config, eval_steps=2)
    events = events_of(lambda: task.validate(lambda: False), device)
    task.config = config
    seconds, measured = timed(lambda: task.validate(lambda: False), device)
    rows = min(len(task.validation_rows), config.test_batch * config.eval_steps)
    return {
        "backward": sorted({e.name for e in events if "backward" in e.name.lower()}),
        "milliseconds": 1000 * seconds / (rows * config.block_size / 2048),
        "validation_loss": measured.as_dict()["validation_loss"] if measured else None,
    }


def judge_validation(figures: Figures) -> list[Row]:
    """It computes no gradients, and is quick."""
    found, took = figures["backward"], figures["milliseconds"]
    return [
        must("backward kernels in validation", ", ".join(found) or "none", "none", not found),
        target("validation of 2,048 positions", f"{took:.2f} ms", "at most 10 ms", took <= 10),
    ]
