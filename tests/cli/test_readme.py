"""Every command of the READMEs runs, as written but on a tiny model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smallgpt.checkpoints import checkpoint, legacy_pth
from smallgpt.config import load_config
from smallgpt.sentiment import recipe
from smallgpt.training import pretrain
from tests.helpers.models import DIALOGUES
from tests.helpers.processes import REPOSITORY, free_port, python_environment
from tests.helpers.reviews import classifier_config, write_reviews

README, CHINESE = REPOSITORY / "README.md", REPOSITORY / "README.zh-CN.md"
COMMAND = re.compile(r"^    ((?:python|torchrun|make|pip|git|printf) .*)$", re.MULTILINE)
IN_TEXT = re.compile(r"`((?:make|pip) [^`]+)`")
TINY = [
    "data_path=my.txt",
    "vocab_size=0",
    "n_layer=1",
    "n_head=2",
    "n_embd=16",
    "train_batch=2",
    "max_steps=1",
    "compile=false",
    "tensorboard_path=",
]
TINY_CLASSIFIER = [
    "sentimental_data_path=my.csv",
    "base_model=checkpoints/demo",
    "device=cpu",
    "max_steps=2",
    "eval_freq=1",
]
# What prepares a machine or takes minutes has a target or a test of its own.
ELSEWHERE = {
    "git clone … && cd small-gpt": "tests/test_demo.py",
    "make demo": "tests/test_demo.py",
    "printf '早上好呀\\n你叫什么名字\\nexit\\n' | make -s demo": "tests/test_demo.py",
    "pip install -r requirements.txt": "the target .venv/.run",
    "pip install .": "tests/test_demo.py",
    "pip install pyarrow": "requirements-dev.txt",
    "make test": ".ci/run",
    "make test-slow": "itself",
    "make bench": "tests/test_benchmark*.py, in small",
    "make bench-time": "tests/test_benchmarks.py, in small",
    "make sentiment-full HOTELS=data/ChnSentiCorp_htl_all.csv "
    "DOMAINS=data/reviews_other_domains.csv CHATS=data/train.txt": "tests/test_sentiment_full.py",
    "python -m smallgpt download pretrained-300M": "tests/test_downloads.py",
    "python -m smallgpt download hotel-reviews chitchat": "tests/test_downloads.py",
    "make bench-gpu": "tests/test_benchmarks.py, without a GPU",
    "make bench-sentiment": "tests/test_benchmark_sentiment.py, in small",
    "make bench-scaling": "tests/test_benchmark_scaling.py, in small (slow)",
    "make test-distributed": "itself",
    "make drill": "itself",
    "torchrun --nnodes=2 --node_rank=0 --nproc_per_node=8 --master_addr=10.0.0.1 "
    "--master_port=29500 train.py config/train300M_ddp.yaml": "tests/test_network.py",
}


def commands(readme: Path) -> list[str]:
    """The commands, without comments; each once, in order."""
    text = readme.read_text("utf-8")
    found = [line.split("  #")[0].strip() for line in COMMAND.findall(text)]
    return list(dict.fromkeys(found + [c for c in IN_TEXT.findall(text) if c != "make help"]))


RUN_HERE = [command for command in commands(README) if command not in ELSEWHERE]


def test_both_readmes_have_the_same_commands_and_pictures() -> None:
    assert commands(README) == commands(CHINESE)
    links = [
        re.findall(r"\]\((docs/[^)]+|smallgpt/[^)]+)\)", f.read_text("utf-8"))
        for f in (README, CHINESE)
    ]
    assert links[0] == links[1]
    for link in links[0]:
        assert (REPOSITORY / link).exists(), link


def test_the_commands_run_here_are_the_ones_expected() -> None:
    first = {shlex.split(command)[1] for command in RUN_HERE}
    assert first == {"train.py", "chat.py", "sentimentalTrain.py", "-m", "--nproc_per_node=2"}
    assert len(RUN_HERE) >= 10


@pytest.fixture(scope="module")
def place(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as after `make demo` and training: programs, configs, text and checkpoints."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("train.py", "chat.py", "sentimentalTrain.py"):
        shutil.copy(REPOSITORY / name, folder)
    shutil.copytree(REPOSITORY / "config", folder / "config")
    (folder / "my.txt").write_text(DIALOGUES, encoding="utf-8")
    pairs = [part.splitlines() for part in DIALOGUES.split("\n\n")]
    (folder / "my.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    (folder / "data").mkdir()
    for run in ("demo", "train90M", "train300M"):
        shutil.copytree(trained, folder / "checkpoints" / run / "cpt1200")
    shutil.copy(folder / "my.txt", folder / "data" / "train.txt")
    published_ones(folder)
    write_reviews(folder / "my.csv")
    classified = recipe.run(
        classifier_config(folder, trained, sentimental_data_path=str(folder / "my.csv"))
    )
    shutil.copytree(classified, folder / "checkpoints" / "sentimental_demo" / "cpt400")
    return folder


def published_ones(folder: Path) -> None:
    """Tiny models in the place and format of the published weights."""
    pretrained = folder / "checkpoints" / "pretrained"
    pretrained.mkdir()
    here = [*TINY, f"data_path={folder / 'my.txt'}", f"checkpoint_root={folder / 'tiny'}"]
    tiny = pretrain.run(load_config(folder / "config" / "train300M.yaml", here))
    for name in ("cpt90M.pth", "cpt300M.pth"):
        legacy_pth.write(checkpoint.load(tiny), pretrained / name)


@pytest.mark.parametrize("command", RUN_HERE)
def test_command_of_the_readme(place: Path, command: str) -> None:
    program, _, output = command.partition(" > ")
    arguments = shlex.split(program)[1:]
    trains = "train.py" in arguments
    if trains:
        folder = f"checkpoint_root={place / 'trained' / str(abs(hash(command)))}"
        arguments = [*arguments, *TINY, folder]
    if "resume_from=" in command:
        arguments += ["data_path=data/train.txt", "max_steps=2"]
    if program.startswith("torchrun "):
        port = f"--master_port={free_port()}"
        arguments = ["-m", "torch.distributed.run", port, *arguments]
    if "sentimentalTrain.py" in arguments or "ablation" in arguments:
        folder = f"checkpoint_root={place / 'classified' / str(abs(hash(command)))}"
        arguments = [*arguments, *TINY_CLASSIFIER, folder]
    if "--smalltalk" in arguments:
        arguments += ["--dialogues", "2"]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        input="早上好呀\nexit\n".encode(),
        capture_output=True,
        env=python_environment(),
        timeout=120,
        check=False,
    )
    errors = done.stderr.decode()
    assert done.returncode == 0, errors
    if arguments[0] == "chat.py":
        assert len(done.stdout.decode().splitlines()) == 1
    elif trains:
        assert re.search(r"^chat with it: \S*python\S* chat\.py ", errors, re.MULTILINE)
    elif "--input" in arguments:
        assert (place / "scored.csv").exists()
    else:
        assert done.stdout.strip()
    if output:
        assert len(done.stdout.decode().split("\n\n")) == 60_000


def test_python_of_the_readme(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    text = README.read_text("utf-8")
    blocks = [
        "\n".join(line.removeprefix("    ") for line in block.splitlines())
        for block in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
        if re.match(r"    (import|from) ", block)
    ]
    assert len(blocks) == 3
    for block in blocks:
        names: dict[str, object] = {}
        exec(block, names)
        assert names.keys() & {"bot", "context", "judge"}


def test_shipped_configs_are_the_table_of_the_readme() -> None:
    named = set(re.findall(r"config/\w+\.yaml", README.read_text("utf-8")))
    assert named == {f"config/{path.name}" for path in (REPOSITORY / "config").glob("*.yaml")}
