"""Check of going on from a model: adapters, and preferences, on the card and on the CPU."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.report import Figures, Row, must
from benchmarks.gpu_check.runs import recorded
from benchmarks.gpu_check.setting import Setting, own_root
from smallgpt.checkpoints.open import open_checkpoint
from smallgpt.training import preference, pretrain

PROMPTS = ("早上好", "你好", "晚安", "吃了吗", "今天天气不错", "你叫什么名字", "好吗", "在吗")
STEPS = 6
KINDS: dict[str, dict[str, Any]] = {
    "adapters": {"lora_rank": 4, "lr": 1e-3},
    "dpo": {"preference_loss": "dpo"},
    "kto": {"preference_loss": "kto", "lora_rank": 4},
}


def measure_tuning(setting: Setting) -> Figures:
    """Losses of a few steps of each kind in float32 on both devices, and on the card as it chooses
    itself."""
    few: dict[str, Any] = {"max_steps": STEPS, "eval_freq": 0, "dropout": 0.0, "keep_last": 1}
    small = replace(setting.small, train_batch=4, warmup_steps=1, **few)
    figures: Figures = {}
    with own_root(replace(small, device=setting.device)) as begun:
        base, pairs = pretrain.run(begun), Path(begun.checkpoint_root, "pairs.jsonl")
        said = ({"prompt": p, "chosen": f"{p}呀", "rejected": "不好说"} for p in PROMPTS)
        pairs.write_text("".join(json.dumps(pair) + "\n" for pair in said), "utf-8")
        places = {"card": (setting.device, "float32"), "cpu": ("cpu", "float32")}
        places["as chosen"] = (setting.device, setting.small.dtype)
        for kind, keys in KINDS.items():
            run, data = pretrain.run, small.data_path
            if "preference_loss" in keys:
                run, data = preference.run, str(pairs)
            for place, (device, dtype) in places.items():
                tuned = replace(small, base_model=str(base), data_path=data, **keys)
                tuned = replace(tuned, device=device, dtype=dtype, preference_patience=0)  # type: ignore[arg-type]
                with own_root(tuned) as own:
                    last = run(own)
                    figures[f"{kind}, {place}"] = recorded(own.checkpoint_root)
                    finite = open_checkpoint(last).weights.values()
                    figures[f"{kind}, {place}, finite"] = all(
                        bool(weight.isfinite().all()) for weight in finite
                    )
    return figures


def judge_tuning(figures: Figures) -> list[Row]:
    """Both devices learn the same; dpo begins at log 2, and falls."""
    rows = []
    for kind in KINDS:
        card, cpu = figures[f"{kind}, card"], figures[f"{kind}, cpu"]
        apart = max(abs(a - b) / abs(b) for a, b in zip(card, cpu, strict=True))
        what = f"{kind}: losses of card and CPU"
        rows.append(must(what, f"{apart:.2g} apart", "at most 0.005", apart <= 5e-3))
        finite = all(figures[f"{kind}, {place}, finite"] for place in ("card", "as chosen"))
        rows.append(
            must(f"{kind}: weights", "finite" if finite else "not finite", "finite", finite)
        )
    first, *_, last = figures["dpo, as chosen"]
    holds = math.isclose(first, math.log(2), abs_tol=1e-3)
    rows.append(must("dpo: first loss", f"{first:.4f}", "log 2", holds))
    rows.append(must("dpo: last loss", f"{last:.4f}", "lower", last < first))
    return rows
