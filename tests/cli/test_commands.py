"""The commands as they are typed: what they print where, and how they end."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from smallgpt.config import Config, SentimentConfig
from tests.helpers.commands import Evil, refused_command, smallgpt
from tests.helpers.models import reseal
from tests.helpers.processes import REPOSITORY, Run, python_environment, run_on_a_full_disk

TRAIN, CHAT = REPOSITORY / "train.py", REPOSITORY / "chat.py"
DEMO = REPOSITORY / "config" / "demo.yaml"


# Help, and arguments that do not fit.


@pytest.mark.parametrize(
    ("script", "words"),
    [(TRAIN, "[key=value] resume_from=latest"), (CHAT, "[key=value] checkpoint directory")],
)
def test_help_of_the_scripts(run: Run, script: Path, words: str) -> None:
    done = run(script, "--help", env={"COLUMNS": "100", "NO_COLOR": "1"})
    assert (done.returncode, done.stderr) == (0, b"")
    for word in ("CONFIG", *words.split()):
        assert word in done.stdout.decode()


COMMANDS = ["train", "chat", "evaluate", "inspect", "config", "data smalltalk"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_of_each_command(command: str) -> None:
    result = smallgpt(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.stdout
    assert command or all(name.split()[0] in result.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        *("train", "evaluate", "inspect", "--bad", "nonsense"),
        *("evaluate x --dialogues 0", "evaluate x --dtype half", "convert x --output y --to zip"),
    ],
)
def test_wrong_usage(arguments: str) -> None:
    assert "Usage: " in refused_command(*arguments.split())


# Keys.


def test_all_keys_are_printed_with_default_limits_and_meaning() -> None:
    printed = smallgpt("config").stdout
    for key in SentimentConfig.__dataclass_fields__:
        assert f"\n  {key}: " in printed
    assert re.search(r"^  top_p: 0.9 +# .* above 0 and at most 1\n      Draw from", printed, re.M)
    assert printed.count("\n  base_model: ") == 2  # of a GPT, and of a classifier


@pytest.mark.parametrize(
    ("option", "file"),
    [("--markdown", "docs/configuration.md"), ("--schema", "config/schema.json")],
)
def test_what_is_made_from_the_keys_is_fresh(option: str, file: str) -> None:
    made = smallgpt("config", option).stdout_bytes
    assert (REPOSITORY / file).read_bytes() == made, "run: make docs"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "train demo base_model=x",
            "train.py with base_model does not use block_size, tokenizer, vocab_size, ",
        ),
        ("chat run top_k=3 lr=1 eval_freq=5", "chat.py does not use eval_freq, lr"),
        ("sentiment train sentimental_demo top_k=3", "sentimentalTrain.py does not use top_k"),
        ("sentiment ablation sentimental_demo frozen=1", "smallgpt sentiment ablation does not "),
        ("sentiment text sentimental_demo lr=1", "smallgpt sentiment text does not use lr"),
    ],
)
def test_unused_keys_are_named(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no data: no command comes far
    configs = {
        name: REPOSITORY / "config" / f"{name}.yaml" for name in ("demo", "sentimental_demo")
    }
    configs["run"] = trained_run / "run.yaml"  # of a whole run, of which chat.py uses a part
    arguments = [configs.get(word, word) for word in command.split()]
    assert smallgpt(*arguments).stderr.startswith(said)
    if command != "train demo base_model=x":
        assert " does not use " not in smallgpt(*[a for a in arguments if "=" not in str(a)]).stderr


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


def chatting(trained: Path) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    command = [sys.executable, str(CHAT), str(trained)]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=python_environment())


def test_chat_with_a_closed_reader(trained: Path) -> None:
    with chatting(trained) as process:
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
    with chatting(trained) as process:
        assert process.stderr
        assert process.stderr.read(4) == b">>> "
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"interrupted\n"
        assert process.wait(30) == 130


def test_chat_with_a_yaml_file(trained_run: Path) -> None:
    result = smallgpt("chat", trained_run / "run.yaml", typed="晚安\n")
    assert (result.exit_code, result.stdout) == (0, "晚安，做个好梦\n")
    for name in (trained_run / "checkpoints" / "cpt60", "latest", "best"):
        result = smallgpt("chat", trained_run / "run.yaml", f"resume_from={name}", typed="晚\n")
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


@pytest.mark.parametrize(
    ("command", "example"),
    [("train", "demo"), ("sentiment train", "sentimental_demo")],
)
def test_a_key_where_the_config_should_stand(command: str, example: str) -> None:
    said = refused_command(*command.split(), "seed=1")
    assert "a config comes first" in said and f"{command} {example} seed=1\n" in said


@pytest.mark.parametrize("script", [TRAIN, REPOSITORY / "sentimentalTrain.py"])
def test_a_script_without_arguments_names_an_example(run: Run, script: Path) -> None:
    done = run(script)
    assert (done.returncode, done.stdout) == (2, b"")
    assert "error: no config is given\n  -> write: python " in done.stderr.decode()


@pytest.mark.parametrize(("named", "meant"), [("lastest", "latest"), ("Best", "best")])
def test_a_misspelt_name_of_a_checkpoint(tmp_path: Path, named: str, meant: str) -> None:
    said = refused_command("chat", DEMO, f"resume_from={named}", f"checkpoint_root={tmp_path}")
    assert f"did you mean {meant}?" in said


def test_chat_with_nothing_trained_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "train one first: python -m smallgpt train demo\n" in refused_command("chat", "demo")
    (tmp_path / "sentimentalTrain.py").touch()  # as in a clone
    chat = REPOSITORY / "config" / "chat90M.yaml"
    own = tmp_path / "own.yaml"
    own.write_text("checkpoint_root: runs/mine\n")
    for arguments, training in (
        ([DEMO], "make demo, or python train.py config/demo.yaml"),
        (["demo"], "make demo, or python train.py config/demo.yaml"),
        ([chat, "resume_from=latest"], "python train.py config/train90M.yaml"),
        ([own], f"python train.py {own}"),
    ):
        said = refused_command("chat", *arguments)
        assert said.startswith(
            ("error: no checkpoint in checkpoints/", "error: no checkpoint in r")
        )
        assert f"\n  -> train one first: {training}\n" in said
    said = refused_command("chat", chat)
    assert said.startswith("error: checkpoints/pretrained/cpt90M.pth not found")
    assert "-> fetch it: python -m smallgpt download pretrained-90M\n" in said
    assert "put it there" in said and "python train.py" in said
    assert "train one: make demo, or python train.py" in refused_command(
        "chat", "checkpoints/demo/cpt900"
    )
    assert "config/lost.yaml not found" in refused_command("chat", "config/lost.yaml")


# A damaged checkpoint, and one that a stranger made.


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.yaml"])
def test_damaged_files(
    trained_copy: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where training would write
    content = (trained_copy / name).read_bytes()
    (trained_copy / name).write_bytes(content[:-3] + b"#\n\n")
    for command in ("chat", "inspect"):  # chat has shown its prompt when it looks at the weights
        said = refused_command(command, trained_copy, typed="晚安\n").removeprefix(">>> ")
        damage = "damaged" if name == "model.safetensors" else "damaged or edited"
        assert said.startswith(f"error: {trained_copy / name} is {damage}: its checksum")
        assert ("if you edited it, undo that" in said) == (damage != "damaged")
        assert "there is no other checkpoint beside it" in said
    assert "is damaged" in refused_command(
        "evaluate", trained_copy, "--smalltalk", "--dialogues", "1"
    )
    assert "is damaged" in refused_command("train", DEMO, f"resume_from={trained_copy}")
    (trained_copy / name).unlink()
    assert f"{name} is missing" in refused_command("chat", trained_copy)


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_strangers_code_does_not_run(
    trained_run: Path,
    trained_copy: Path,
    tmp_path: Path,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # where training would write
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
        refused_command("inspect", file),
    ):
        assert said.startswith(f"error: {file} is refused: it is not a file of tensors and plain")
    shutil.copy(file, trained_copy / "training_state.pt")
    reseal(trained_copy)
    root = tmp_path / "new"
    keys = [f"resume_from={trained_copy}", f"checkpoint_root={root}"]
    said = refused_command("train", trained_run / "run.yaml", *keys)
    assert f"error: {trained_copy / 'training_state.pt'} is refused" in said
    assert not marker.exists()
    assert [path.name for path in root.iterdir()] == [".lock"]


# The other commands.


def test_inspect(trained: Path) -> None:
    result = smallgpt("inspect", trained)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{trained}: whole, all checksums right\n  step: 120\n")


def test_evaluate(trained: Path, trained_run: Path, tmp_path: Path) -> None:
    text, figures = trained_run / "text.txt", tmp_path / "figures.json"
    few = ("--pairs", "3", "--replies", "2", "--device", "cpu")
    play = ("--smalltalk", "--dialogues", "3")
    result = smallgpt("evaluate", trained, "--data", text, *few, "--json", figures, *play)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"A: {trained}"
    assert lines[-1].endswith("fitting in all")
    assert json.loads(figures.read_text("utf-8"))["replies"] == 2
    again = smallgpt("evaluate", trained, *play).stdout.splitlines()
    assert again == lines[-len(again) :]
    result = smallgpt("evaluate", trained, "--data", text, *few, "--compare", trained)
    assert f"B: {trained}" in result.stdout

    refused = refused_command("evaluate", trained, "--data", text, "--json", figures)
    assert f"{figures} is there already" in refused
    refused = refused_command("evaluate", trained, "--smalltalk", "--compare", trained)
    assert "--compare needs a text" in refused


@pytest.mark.parametrize("command", ["chat", "train", "inspect", "sentiment predict"])
def test_a_sentence_where_a_path_belongs(command: str) -> None:
    said = refused_command(*command.split(), "房间很干净，服务也很好，下次还会来。" * 10)
    assert "房间很干净" in said and len(said) < 1000


def test_what_contradicts_or_does_not_exist_is_refused(trained: Path, tmp_path: Path) -> None:
    assert "give one of them" in refused_command("chat", trained, "resume_from=latest")
    for key in ("resume_from", "checkpoint_root"):
        said = refused_command("chat", "temperature=0.5", f"{key}={trained}")
        assert f"{key} goes with a config, and none is given" in said
    said = refused_command("chat", "temperature=0.5", trained)
    assert "a config comes first" in said and f"{trained} temperature=0.5\n" in said
    assert "give --data TEXT or --smalltalk" in refused_command("evaluate", trained)
    missing = tmp_path / "missing.txt"
    both = ("--smalltalk", "--dialogues", "9999999")  # those would take days
    assert str(missing) in refused_command("evaluate", trained, "--data", missing, *both)
    assert "not found" in refused_command("evaluate", tmp_path / "cpt1", "--smalltalk")
    assert "'abacus' is not a device" in refused_command(
        "evaluate", trained, "--smalltalk", "--device", "abacus"
    )


def test_smalltalk_is_the_same_bytes_anywhere(run: Run, tmp_path: Path) -> None:
    command = ("data", "smalltalk", "--dialogues", "5", "--seed")
    here = smallgpt(*command, "1")
    environment = {"PYTHONIOENCODING": "gbk", "PYTHONHASHSEED": "5"}
    done = run("-m", "smallgpt", *command, "1", env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (here.exit_code, here.stdout_bytes) == (0, done.stdout)
    assert len(done.stdout.decode().split("\n\n")) == 5
    assert smallgpt(*command, "2").stdout_bytes != here.stdout_bytes
    made = tmp_path / "new folder" / "talk.txt"
    written = smallgpt(*command, "1", "--output", made)
    assert (written.exit_code, written.stdout) == (0, "")  # make demo's is for replies
    assert written.stderr == f"written: {made}, 5 dialogues\n"
    assert made.read_bytes() == here.stdout_bytes


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_smalltalk_on_a_full_disk() -> None:
    done = run_on_a_full_disk("-m", "smallgpt", "data", "smalltalk", "--dialogues", "5")
    assert done.returncode == 2
    said = done.stderr.rsplit(b"\r", 1)[-1]  # a slow machine shows a progress bar before
    assert said.startswith(b"error: the output cannot be written: No space left on device")
