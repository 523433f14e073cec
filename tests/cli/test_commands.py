"""The commands as they are typed: what they print where, and how they end."""

from __future__ import annotations

import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from smallgpt.config import Config
from tests.helpers.commands import Evil, refused_command, smallgpt
from tests.helpers.models import reseal
from tests.helpers.processes import REPOSITORY, Run, python_environment, run_on_a_full_disk

TRAIN, CHAT = REPOSITORY / "train.py", REPOSITORY / "chat.py"
DEMO = REPOSITORY / "config" / "demo.yaml"


# Help, and arguments that do not fit.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([TRAIN, "--help"], ["CONFIG", "[key=value]", "resume_from=latest"]),
        ([CHAT, "--help"], ["CONFIG", "[key=value]", "checkpoint directory"]),
        (["-m", "smallgpt", "--help"], ["train", "chat", "evaluate", "inspect", "data"]),
    ],
)
def test_help(run: Run, arguments: list[Any], words: list[str]) -> None:
    done = run(*arguments, env={"COLUMNS": "100", "NO_COLOR": "1"})
    assert (done.returncode, done.stderr) == (0, b"")
    for word in words:
        assert word in done.stdout.decode()


@pytest.mark.parametrize("command", ["train", "chat", "evaluate", "inspect", "data smalltalk"])
def test_help_of_each_command(command: str) -> None:
    result = smallgpt(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


@pytest.mark.parametrize(
    "arguments",
    ["train", "chat", "evaluate", "inspect", "--bad", "nonsense", "evaluate x --dialogues 0"],
)
def test_wrong_usage(arguments: str) -> None:
    assert "Usage: " in refused_command(*arguments.split())


def test_a_misspelt_key(run: Run) -> None:
    done = run(TRAIN, DEMO, "learning_rate=1")
    assert (done.returncode, done.stdout) == (2, b"")
    said = done.stderr.decode()
    assert said.startswith("error: command line: unknown key `learning_rate`\n  -> did you mean")
    assert "Traceback" not in said


def test_train_without_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused_command("train", DEMO)
    assert "data/smalltalk.txt" in said and "\n  -> " in said


# chat.py


def test_chat_through_a_pipe(run: Run, trained: Path) -> None:
    # The console's own encoding does not matter: what is piped is UTF-8, in and out.
    typed = "早上好呀\n\nflush\n晚安\nexit\n".encode()
    done = run(CHAT, trained, typed=typed, env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert done.returncode == 0
    assert done.stdout.decode() == "早上好！睡得好吗？\n晚安，做个好梦\n"
    assert done.stderr.decode().startswith(">>> >>> (nothing typed")


def test_chat_with_a_closed_reader(trained: Path) -> None:
    command = [sys.executable, str(CHAT), str(trained)]
    environment = python_environment()
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write("晚安\n".encode())
        process.stdin.flush()
        assert process.stdout.readline().decode() == "晚安，做个好梦\n"
        process.stdout.close()
        process.stdin.write("晚安\n".encode() * 3)
        process.stdin.close()
        said = process.stderr.read().decode()
        assert process.wait(30) == 141
    assert set(said) <= set("> \n")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT is another thing there")
def test_control_c_at_a_pipe(trained: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(CHAT), str(trained)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=python_environment(),
    ) as process:
        assert process.stderr
        assert process.stderr.read(4) == b">>> "
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"interrupted\n"
        assert process.wait(30) == 130


def test_chat_with_a_yaml_file(trained_run: Path) -> None:
    result = smallgpt("chat", trained_run / "run.yaml", typed="晚安\n")
    assert (result.exit_code, result.stdout) == (0, "晚安，做个好梦\n")
    earlier = trained_run / "checkpoints" / "cpt60"
    result = smallgpt("chat", trained_run / "run.yaml", f"resume_from={earlier}", typed="晚安\n")
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)
    for word in ("latest", "best"):
        result = smallgpt("chat", trained_run / "run.yaml", f"resume_from={word}", typed="晚\n")
        assert (result.exit_code, result.stdout.count("\n")) == (0, 1)


def test_settings_of_the_chat(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smallgpt.chat import terminal

    bots: list[Any] = []
    monkeypatch.setattr(terminal, "chat", bots.append)
    overrides = ["temperature=0.7", "top_k=5", "top_p=0.5", "repetition_penalty=1.2"]
    assert smallgpt("chat", trained, *overrides, "max_new_tokens=7", "seed=3").exit_code == 0
    assert smallgpt("chat", trained).exit_code == 0
    assert smallgpt("chat", trained / ".." / ".." / "run.yaml", "top_k=2").exit_code == 0
    given, stored, from_yaml = (bot.sampling for bot in bots)
    assert (given.temperature, given.top_k, given.top_p) == (0.7, 5, 0.5)
    assert (given.repetition_penalty, given.max_new_tokens) == (1.2, 7)
    assert bots[0].seed == 3
    assert (stored.temperature, stored.top_k, stored.max_new_tokens) == (0.0, 0, 12)
    assert bots[1].seed == Config().seed
    assert (from_yaml.top_k, from_yaml.max_new_tokens) == (2, 12)


def test_chat_with_nothing_trained_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chat = REPOSITORY / "config" / "chat90M.yaml"
    for arguments in ([DEMO], [chat, "resume_from=latest"]):
        said = refused_command("chat", *arguments)
        assert said.startswith("error: no checkpoint in checkpoints/")
        assert "train one first: python train.py" in said
    said = refused_command("chat", chat)
    assert said.startswith("error: checkpoints/pretrained/cpt90M.pth not found")
    assert "put it there" in said and "python train.py" in said
    assert "train one: python train.py" in refused_command("chat", "checkpoints/demo/cpt900")
    assert "config/lost.yaml not found" in refused_command("chat", "config/lost.yaml")


def test_chat_with_two_checkpoints(trained: Path) -> None:
    assert "give one of them" in refused_command("chat", trained, "resume_from=latest")


def test_chat_with_the_folder_above(trained: Path) -> None:
    assert f"did you mean {trained}?" in refused_command("chat", trained.parent)
    assert f"did you mean {trained}?" in refused_command(
        "chat", DEMO, f"resume_from={trained.parent}"
    )


# A damaged checkpoint, and one that a stranger made.


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.yaml"])
def test_damaged_files(trained_copy: Path, name: str) -> None:
    content = (trained_copy / name).read_bytes()
    (trained_copy / name).write_bytes(content[:-3] + b"#\n\n")
    for command in ("chat", "inspect"):  # chat has shown its prompt when it looks at the weights
        said = refused_command(command, trained_copy, typed="晚安\n").removeprefix(">>> ")
        assert said.startswith(f"error: {trained_copy / name} is damaged: its checksum")
        assert "there is no other checkpoint beside it" in said
    assert "is damaged" in refused_command(
        "evaluate", trained_copy, "--smalltalk", "--dialogues", "1"
    )
    assert "is damaged" in refused_command("train", DEMO, f"resume_from={trained_copy}")
    (trained_copy / name).unlink()
    assert f"{name} is missing" in refused_command("chat", trained_copy)


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_strangers_code_does_not_run(
    trained_run: Path, trained_copy: Path, tmp_path: Path, how: str
) -> None:
    marker, file = tmp_path / "it ran", tmp_path / "evil.pth"
    if how == "pickle":
        file.write_bytes(pickle.dumps({"model": Evil(marker)}))
    else:
        torch.save({"model": Evil(marker)}, file)
    for said in (
        refused_command("chat", file),
        refused_command("chat", DEMO, f"resume_from={file}"),
        refused_command("train", DEMO, f"resume_from={file}"),
        refused_command("convert", file, "--output", tmp_path / "out"),
    ):
        assert said.startswith(f"error: {file} is ")
        assert ("refused" if how == "torch.save" else "not a model of") in said
    said = refused_command("inspect", file)
    assert said.startswith(f"error: {file} is a file, not a checkpoint directory")
    assert "smallgpt convert" in said
    shutil.copy(file, trained_copy / "training_state.pt")
    reseal(trained_copy)
    text, root = trained_run / "text.txt", tmp_path / "new"
    said = refused_command(
        "train",
        trained_run / "run.yaml",
        f"resume_from={trained_copy}",
        f"data_path={text}",
        f"checkpoint_root={root}",
        "max_steps=130",
        "decay_steps=130",
    )
    assert f"error: {trained_copy / 'training_state.pt'} is refused" in said
    assert not marker.exists()
    assert [path.name for path in root.iterdir()] == [".lock"]


# The other commands.


def test_inspect(trained: Path) -> None:
    result = smallgpt("inspect", trained)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{trained}: whole, all checksums right\n  step: 120\n")


def test_evaluate(trained: Path, trained_run: Path) -> None:
    result = smallgpt(
        "evaluate", trained, "--data", trained_run / "text.txt", "--smalltalk", "--dialogues", "3"
    )
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("validation loss ")
    assert lines[-1].endswith("fitting in all")
    again = smallgpt("evaluate", trained, "--smalltalk", "--dialogues", "3")
    assert again.stdout.splitlines() == lines[1:]


def test_evaluate_refuses(trained: Path, tmp_path: Path) -> None:
    assert "give --data TEXT or --smalltalk" in refused_command("evaluate", trained)
    missing = tmp_path / "missing.txt"
    assert str(missing) in refused_command("evaluate", trained, "--data", missing)
    assert "not found" in refused_command("evaluate", tmp_path / "cpt1", "--smalltalk")
    assert "'abacus' is no device" in refused_command(
        "evaluate", trained, "--smalltalk", "--device", "abacus"
    )


def test_smalltalk_is_the_same_bytes_anywhere(run: Run) -> None:
    here = smallgpt("data", "smalltalk", "--dialogues", "5", "--seed", "1")
    assert here.exit_code == 0
    done = run(
        *("-m", "smallgpt", "data", "smalltalk", "--dialogues", "5", "--seed", "1"),
        env={"PYTHONIOENCODING": "gbk", "PYTHONHASHSEED": "5"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == here.stdout_bytes
    assert len(done.stdout.decode().split("\n\n")) == 5
    other = smallgpt("data", "smalltalk", "--dialogues", "5", "--seed", "2")
    assert other.stdout_bytes != here.stdout_bytes


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_smalltalk_on_a_full_disk() -> None:
    done = run_on_a_full_disk("-m", "smallgpt", "data", "smalltalk", "--dialogues", "5")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: the output cannot be written: No space left on device")
