"""Every command of the READMEs and of the pages for users runs, as written but on a tiny model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from smallgpt.checkpoints import checkpoint, legacy_pth
from smallgpt.config_file import load_config
from smallgpt.sentiment import recipe
from smallgpt.training import pretrain
from tests.helpers.commands import python_here
from tests.helpers.models import DIALOGUES
from tests.helpers.processes import REPOSITORY, finished, torchrun_command
from tests.helpers.reviews import classifier_config, write_reviews

README, CHINESE = REPOSITORY / "README.md", REPOSITORY / "README.zh-CN.md"
PAGES = (
    "install",
    "training",
    "data",
    "chat",
    "serving",
    "evaluation",
    "sentiment",
    "checkpoints",
    "distributed",
    "performance",
    "your-own-bot",
    "preferences",
)
OWN_BOT = REPOSITORY / "docs" / "your-own-bot.md"
"""A way of many steps, which tests/cli/test_own_bot.py takes."""
USERS_TEXTS = (README, *(REPOSITORY / "docs" / f"{name}.md" for name in PAGES))
COMMAND = re.compile(r"^    ((?:python|torchrun|make|pip|git|printf) .*)$", re.MULTILINE)
IN_TEXT = re.compile(r"`((?:make|pip) [^`]+)`")
TINY = shlex.split(
    "data_path=my.txt vocab_size=0 n_layer=1 n_head=2 n_embd=16 train_batch=2 max_steps=1 "
    "compile=false tensorboard_path="
)
TINY_CLASSIFIER = shlex.split(
    "sentimental_data_path=my.csv base_model=checkpoints/demo device=cpu max_steps=2 eval_freq=0"
)
# What prepares a machine or takes minutes is run elsewhere: a file, and what stands in it.
BENCHMARKS = "tests/benchmarks/test_benchmarks.py"
SIMULATION = "tests/benchmarks/test_preference_simulation.py", "def test_"
DEMO = "tests/cli/test_demo.py"
DOWNLOADS = "tests/hub/test_download.py", "def test_the_command"
BUILDS = "tests/test_makefile.py", "def test_pytorchs_cpu_build"
SERVES = "tests/server/test_serve.py", "def test_serving_a_run"
NETWORK = "tests/distributed/test_network.py", "--node_rank="
ELSEWHERE = {
    "git clone … && cd small-gpt": (DEMO, "git clone"),
    "make demo": (DEMO, "make -s demo"),
    "make demo TORCH=cpu": BUILDS,
    "make demo TORCH=cu126": BUILDS,
    "pip install torch==2.13.0 --no-deps --index-url https://download.pytorch.org/whl/cpu": BUILDS,
    "pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130": BUILDS,
    "pip install torch==2.13.0+cu126 --index-url https://download.pytorch.org/whl/cu126": (
        "tests/utils/test_nvidia.py",
        "torch==2.13.0+cu126 --index-url https://download.pytorch.org/whl/cu126",
    ),
    "make demo PYTHON=python3.12": ("Makefile", "PYTHON ?="),
    "make clean": ("Makefile", "clean:"),
    "printf '早上好呀\\n你叫什么名字\\nexit\\n' | python chat.py checkpoints/demo": (
        "tests/cli/test_commands.py",
        "def test_chat_through_a_pipe",
    ),
    "make sentiment-full": ("tests/sentiment/test_sentiment_full.py", "def test_the_whole_path"),
    "printf '早上好呀\\n你叫什么名字\\nexit\\n' | make -s demo": (DEMO, "make -s demo"),
    "pip install -r requirements.txt": (
        "Makefile",
        "pip install -q --disable",
    ),
    "make serve": ("Makefile", "serve: $(VENV)/.run"),
    "python -m smallgpt serve": ("tests/cli/test_box.py", "def test_it_is_served"),
    "python -m smallgpt serve checkpoints/demo": SERVES,
    "python -m smallgpt serve checkpoints/demo --feedback feedback.jsonl": (
        "tests/browser/test_feedback_loop.py",
        "--feedback",
    ),
    "make learn FEEDBACK=feedback.jsonl BASE=checkpoints/demo": (
        "tests/training/test_learn.py",
        "def test_it_learns",
    ),
    "python -m benchmarks.preference checkpoints/demo --rule short --dialogues 5000 "
    "--output preference.jsonl": SIMULATION,
    "python -m benchmarks.preference checkpoints/demo --compare checkpoints/preference "
    "--dialogues 1500": SIMULATION,
    "python -m smallgpt serve checkpoints/demo --classifier checkpoints/sentimental_demo": SERVES,
    "pip install openai": ("requirements-dev.txt", "openai=="),
    "pip install llm": ("requirements-dev.txt", "llm=="),
    "pip install .": (DEMO, "def test_package_installs"),
    "pip install pyarrow": ("requirements-dev.txt", "pyarrow=="),
    "pip install gguf": ("requirements-dev.txt", "gguf=="),
    "pip install peft": ("requirements-dev.txt", "peft=="),
    "make box": ("Makefile", "box: $(VENV)/.run"),
    "make test": (".ci/run", "make test"),
    "make bench": (BENCHMARKS, "def test_the_training_benchmark"),
    "make bench-time": (BENCHMARKS, "def test_time_to_loss"),
    "make gpu-check": ("tests/test_makefile.py", "def test_gpu_check"),
    "python -m benchmarks.memory": ("tests/training/test_memory.py", "memory_of_steps([plan])"),
    "make bench-sentiment": (BENCHMARKS, "def test_the_sentiment_benchmark"),
    "make bench-scaling": (BENCHMARKS, "def test_two_processes_are_measured"),
    "make sentiment-full HOTELS=data/ChnSentiCorp_htl_all.csv "
    "DOMAINS=data/reviews_other_domains.csv CHATS=data/train.txt": (
        "tests/sentiment/test_sentiment_full.py",
        "def test_the_whole_path",
    ),
    "python -m smallgpt download pretrained-300M": DOWNLOADS,
    "python -m smallgpt download hotel-reviews chitchat": DOWNLOADS,
    "make test-distributed": ("Makefile", "pytest -m distributed"),
    "make drill": ("Makefile", "pytest -m drill"),
    "torchrun --nnodes=2 --node_rank=0 --nproc_per_node=8 --master_addr=10.0.0.1 "
    "--master_port=29500 train.py config/train300M_ddp.yaml": NETWORK,
    "torchrun --nnodes=2 --node_rank=1 --nproc_per_node=8 --master_addr=10.0.0.1 "
    "--master_port=29500 train.py config/train300M_ddp.yaml": NETWORK,
}

OF_PIP = ("pip cache purge", "pip download -r requirements.txt -d wheels")
"""They need the network, or change what is outside this folder; no README names them."""


def commands(*texts: Path) -> list[str]:
    """The commands in some texts, without comments; each once, in order."""
    found: list[str] = []
    for text in (path.read_text("utf-8") for path in texts):
        found += [line.split("  #")[0].strip() for line in COMMAND.findall(text)]
        found += [c for c in IN_TEXT.findall(text) if c != "make help"]
    return list(dict.fromkeys(found))


ALL = commands(*USERS_TEXTS)
RUN_HERE = [c for c in ALL if c not in (*ELSEWHERE, *OF_PIP, *commands(OWN_BOT))]


def test_the_readmes_agree_with_each_other_and_with_the_files() -> None:
    assert commands(README) == commands(CHINESE)
    texts = [file.read_text("utf-8") for file in (README, CHINESE)]
    assert max(len(text.splitlines()) for text in texts) <= 190
    links = [re.findall(r"\]\(((?:docs/)?[\w-]+\.md)\)", text) for text in texts]
    assert [x for x in links[0] if "README" not in x] == [x for x in links[1] if "README" not in x]
    assert {f"docs/{name}.md" for name in PAGES} <= set(links[0])
    for source in (*USERS_TEXTS, CHINESE, OWN_BOT.with_suffix(".zh-CN.md")):
        for link in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", source.read_text("utf-8")):
            assert (source.parent / link).exists(), (source, link)
    configs = {f"config/{path.name}" for path in (REPOSITORY / "config").glob("*.yaml")}
    named = "".join(page.read_text("utf-8") for page in USERS_TEXTS)
    assert set(re.findall(r"config/\w+\.yaml", named)) == configs
    for command, (file, text) in ELSEWHERE.items():
        assert command in ALL
        assert text in (REPOSITORY / file).read_text("utf-8"), (command, file)


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
    said = (
        ("在吗", "在的", "up"),
        ("在吗", "不在", "down"),
        ("早", "早上好", "up"),
        ("早", "晚", "down"),
    )
    with (folder / "feedback.jsonl").open("w", encoding="utf-8") as file:
        for user, bot, verdict in said:
            talk = [{"role": "user", "content": user}, {"role": "assistant", "content": bot}]
            file.write(json.dumps({"messages": talk, "verdict": verdict}) + "\n")
    shutil.copy(folder / "feedback.jsonl", folder / "preference.jsonl")
    lines = ["2024-03-01 12:30:05 小明", "在吗", "2024-03-01 12:31:00 张三", "在的", "怎么了"]
    lines += ["2024-03-01 12:32:10 小明", "没事，想你了"]
    (folder / "export.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "data").mkdir()
    for run in ("demo", "finetune", "preference", "laptop", "train90M", "train300M"):
        shutil.copytree(trained, folder / "checkpoints" / run / "cpt1200")
    shutil.copy(folder / "my.txt", folder / "data" / "train.txt")
    # Tiny models in the place and format of the published weights.
    (folder / "checkpoints" / "pretrained").mkdir()
    changes = [*TINY, f"data_path={folder / 'my.txt'}", f"checkpoint_root={folder / 'tiny'}"]
    base, root = folder / "checkpoints" / "demo", folder / "checkpoints" / "lora"
    adapted = [*changes, f"base_model={base}", "mix_path=", f"checkpoint_root={root}"]
    pretrain.run(load_config(folder / "config" / "lora.yaml", adapted))
    tiny = checkpoint.load(pretrain.run(load_config(folder / "config" / "train300M.yaml", changes)))
    for name in ("cpt90M.pth", "cpt300M.pth"):
        legacy_pth.write(tiny, folder / "checkpoints" / "pretrained" / name)
    write_reviews(folder / "my.csv")
    classified = recipe.run(
        classifier_config(folder, trained, sentimental_data_path=str(folder / "my.csv"))
    )
    shutil.copytree(classified, folder / "checkpoints" / "sentimental_demo" / "cpt400")
    return folder


def tiny_changes(command: str, place: Path) -> list[str]:
    """What makes a command quick: of an option that is given twice the last counts."""
    root = f"checkpoint_root={place / 'runs' / str(RUN_HERE.index(command))}"
    changes = [*TINY, root] if " train.py" in command else []
    if "jsonl" in command and changes:
        changes += [re.findall(r"data_path=\S+", command)[0], "train_percent=0.5"]
    if "resume_from=" in command:
        changes += ["data_path=data/train.txt", "max_steps=2"]
    if "sentimentalTrain.py" in command or "ablation" in command:
        changes += [*TINY_CLASSIFIER, root]
    if "ablation" in command:
        changes += ["--seeds", "2"]
    if "smalltalk" in command:
        changes += ["--dialogues", "2"]
    if re.search("data (convert|split|smalltalk .*--output)|--input|--html", command):
        changes += ["--force"]
    return changes


@pytest.mark.parametrize("command", RUN_HERE)
def test_command_of_the_readme(place: Path, command: str) -> None:
    line, _, output = command.partition(" > ")
    program, *arguments = [*shlex.split(line), *tiny_changes(command, place)]
    if program == "torchrun":
        done = finished(torchrun_command(2, *arguments[2:], program=place / "train.py"), place)
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        assert program == "python"
        result = python_here(place, *arguments, typed="早上好呀\nexit\n")
        code, out, err = result.exit_code, result.stdout, result.stderr
        if result.exception and code == 1:
            raise result.exception
    assert code == 0, err
    if arguments[0] == "chat.py":
        assert len(out.splitlines()) == 1
    elif "train.py" in arguments:
        assert re.search(r"^chat with it: \S*python\S* chat\.py ", err, re.MULTILINE)
    elif "--input" in arguments:
        assert (place / "scored.csv").exists()
    elif "smalltalk" in arguments and "data" in arguments:
        assert (place / "data" / "smalltalk.txt").exists()
    else:
        assert out.strip()
    if output:
        assert len(out.split("\n\n")) == 2


def test_python_of_the_readme(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    text = "".join(page.read_text("utf-8") for page in USERS_TEXTS)
    blocks = [
        "\n".join(line.removeprefix("    ") for line in block.splitlines())
        for block in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
        # Those that need a server: tests/peers/test_examples.py.
        if re.match(r"    (import|from) (?!openai)", block)
    ]
    assert len(blocks) == 4
    for block in blocks:
        names: dict[str, object] = {}
        exec(block, names)
        assert names.keys() & {"bot", "context", "judge"}
