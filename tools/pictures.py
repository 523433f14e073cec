"""The README's pictures, from an actual run (`make pictures`).

    python -m tools.pictures checkpoints/demo docs/pictures

chat.svg    a terminal: real prompts, the model's real replies
loss.svg    training and validation loss by step, from metrics.jsonl
"""

from __future__ import annotations

import subprocess
import sys
from html import escape
from pathlib import Path

import matplotlib

from smallgpt.training.metrics import records

PROMPTS = (
    "早上好呀",
    "你叫什么名字",
    "我叫小明",
    "今天天气真好",
    "不知道晚上吃什么",
    "讲个笑话吧",
    "你还记得我叫什么吗",
    "晚安",
)
LINE_HEIGHT, CHARACTER_WIDTH, MARGIN = 26, 16, 24


def main(run: Path, output: Path) -> None:
    """Chat with the run's latest checkpoint and draw both pictures into `output`."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "chat.svg").write_text(terminal(PROMPTS, chat(run, PROMPTS)), encoding="utf-8")
    draw_loss(run / "metrics.jsonl", output / "loss.svg")


def chat(run: Path, prompts: tuple[str, ...]) -> list[str]:
    """The replies of chat.py, one a prompt."""
    done = subprocess.run(
        [sys.executable, "chat.py", "config/demo.yaml", f"checkpoint_root={run}"],
        input="\n".join([*prompts, "exit", ""]),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    replies = done.stdout.splitlines()
    if len(replies) != len(prompts):
        raise RuntimeError(f"{len(prompts)} prompts, {len(replies)} replies: {done.stderr}")
    return replies


def terminal(prompts: tuple[str, ...], replies: list[str]) -> str:
    """An SVG of a terminal with the conversation."""
    lines = [("#7f8ea3", "$ python chat.py config/demo.yaml")]
    for prompt, reply in zip(prompts, replies, strict=True):
        lines += [("#8fd18f", f">>> {prompt}"), ("#e8edf4", reply)]
    height = 2 * MARGIN + LINE_HEIGHT * len(lines)
    width = 2 * MARGIN + CHARACTER_WIDTH * max(28, *(len(text) for _, text in lines))
    text = "\n".join(
        f'<text x="{MARGIN}" y="{MARGIN + LINE_HEIGHT * (i + 0.7):.0f}" fill="{colour}" '
        f'xml:space="preserve">{escape(line)}</text>'
        for i, (colour, line) in enumerate(lines)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="ui-monospace, Menlo, Consolas, monospace" '
        f'font-size="16">\n<rect width="100%" height="100%" rx="10" fill="#1b222d"/>\n'
        f"{text}\n</svg>\n"
    )


def draw_loss(metrics: Path, picture: Path) -> None:
    """Draw the loss by step."""
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "smallgpt"  # the same picture for the same run
    from matplotlib import pyplot

    entries = list(records(metrics))
    steps = [e for e in entries if "loss" in e]
    checks = [e for e in entries if "validation_loss" in e]
    figure, axes = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
    axes.plot([e["step"] for e in steps], [e["loss"] for e in steps], lw=0.8, label="training")
    axes.plot(
        [e["step"] for e in checks],
        [e["validation_loss"] for e in checks],
        "o-",
        label="validation",
    )
    minutes = steps[-1]["seconds"] / 60
    axes.set(
        xlabel="step",
        ylabel="loss (nats a character)",
        title=f"config/demo.yaml on two CPU cores, {minutes:.1f} minutes of training",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
