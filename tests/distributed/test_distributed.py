"""Several processes, started by torchrun: the same run, whatever their number."""

from __future__ import annotations

import os
import re
import signal
import textwrap
from pathlib import Path

import pytest

from smallgpt import runtime
from smallgpt.checkpoints import run_folder
from smallgpt.config import Config, check_shares, load_config
from smallgpt.data.corpus import open_corpus
from smallgpt.data.packing import RowOrder
from smallgpt.distributed import launch
from smallgpt.training.pretrain import pack_corpus
from tests.helpers.commands import refusal
from tests.helpers.processes import (
    children,
    finished,
    forked,
    losses,
    same_weights,
    started,
    torchrun_command,
    train,
    wait_for_steps,
    write_run,
)

LONG = ["max_steps=30", "decay_steps=30", "eval_freq=10", "save_freq=30"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 steps in one process."""
    folder = write_run(tmp_path_factory.mktemp("alone"))
    train(folder, *LONG)
    return folder


# -- the same run -----------------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (4, 2)])
def test_the_number_of_processes_does_not_change_the_run(
    alone: Path, tmp_path: Path, processes: int, accumulate: int
) -> None:
    folder, parts = write_run(tmp_path), f"accumulate={accumulate}"
    done = forked(folder, "run.yaml", *LONG, parts, processes=processes)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert len(losses(alone)) == 30
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-5)
    validations = [losses(folder, "validation_loss") for folder in (tmp_path, alone)]
    assert len(validations[0]) == 3
    assert validations[0] == pytest.approx(validations[1], rel=1e-5)
    assert losses(tmp_path, "step") == losses(alone, "step")
    for said in ("text: ", f"{processes} processes", "step 30: validation", "done: the model is"):
        assert done.stderr.count(said) == 1, done.stderr


def test_the_ranks_of_these_runs_get_unequal_numbers_of_characters(tmp_path: Path) -> None:
    """Or a mean of means would pass for the mean."""
    folder = write_run(tmp_path)
    plan = load_config(folder / "run.yaml", [f"data_path={folder / 'text.txt'}"])
    corpus = open_corpus(plan.data_paths())
    rows, _ = pack_corpus(plan, corpus, corpus.tokenizer)
    order = RowOrder(len(rows), plan.seed)
    counts = []
    for step in range(30):
        batch = rows.batch(order.take(step * plan.train_batch, plan.train_batch))
        counts.append([part.target_count() for part in batch.parts(2)])
    assert sum(one != other for one, other in counts) > 10


def test_resuming_with_as_many_processes_is_bitwise_exact_and_with_others_nearly(
    tmp_path: Path,
) -> None:
    straight, cut = write_run(tmp_path / "straight"), write_run(tmp_path / "cut")
    # Of three and more numbers the sum depends on their order; of two it does not.
    thirds = ["dropout=0.1", "train_batch=6"]
    whole = train(straight, *thirds, processes=3)
    train(cut, *thirds, "max_steps=5", processes=3)
    assert same_weights(train(cut, *thirds, "resume_from=auto", processes=3), whole)
    assert losses(cut) == losses(straight)

    other, more = write_run(tmp_path / "other"), write_run(tmp_path / "more")
    train(other)
    train(more, "max_steps=5", processes=2)
    train(more, "resume_from=latest")
    assert losses(more) == pytest.approx(losses(other), rel=1e-5)


PROGRAM = """
    import atexit, os, sys, time
    from pathlib import Path
    import torch
    from smallgpt.config import load_config
    from smallgpt.distributed import launch
    from smallgpt.training import pretrain
    from smallgpt import runtime
    from smallgpt.data.corpus import open_corpus
    from smallgpt.distributed.world import replicate
    from smallgpt.model.gpt import GPT
    from smallgpt.training.trainer import Trainer

    def write_threads():
        names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
        Path("threads" + os.environ["RANK"]).write_text("".join(names))

    def run():
        plan = load_config("run.yaml", sys.argv[1:])
        with launch.join(plan, "x") as world:
{body}
    atexit.register(write_threads)
    run()
"""


def write_program(file: Path, body: str) -> Path:
    """What each process does between joining and parting; its threads at the end go to a file."""
    body = textwrap.indent(textwrap.dedent(body), " " * 12)
    file.write_text(textwrap.dedent(PROGRAM.format(body=body)))
    return file


ONE_STEP = """
    corpus = world.first_process_first(lambda: open_corpus(plan.data_paths()))
    plan = load_config("run.yaml", [*sys.argv[1:], f"vocab_size={len(corpus.tokenizer)}"])
    rows = pretrain.pack_corpus(plan, corpus, corpus.tokenizer)
    here, model = runtime.start(plan, world.local_rank), GPT(plan).train()
    task = pretrain.DialogueTask(plan, here, model, corpus.tokenizer, *rows, world)
    run = Trainer(plan, here, task, world)
    sent = []
    def count(state, bucket):
        sent.append(bucket.buffer().numel())
        future = torch.distributed.all_reduce(bucket.buffer() / world.size, async_op=True)
        return future.get_future().then(lambda done: done.value()[0])
    run.replica.register_comm_hook(None, count)
    run.step()
    sent.clear()  # of what was done once, before the first step
    run.step()
    parameters = sum(p.numel() for p in run.model.parameters())
    Path(f"sent{world.rank}").write_text(str(sum(sent) / parameters))
"""
STOP = """
    replicate(torch.nn.Linear(3, 3), world)(torch.ones(1, 3)).sum().backward()
    Path(f"sent{world.rank}").write_text("1.0")
    sys.exit()
"""


@pytest.mark.parametrize("body", [ONE_STEP, STOP], ids=["at the end", "early"])
def test_gradients_are_averaged_once_a_step_and_processes_part(tmp_path: Path, body: str) -> None:
    """A thread of gloo that still holds a Python object when Python ends aborts the process."""
    program = write_program(write_run(tmp_path) / "program.py", body)
    done = finished(torchrun_command(2, "accumulate=4", program=program), tmp_path)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        assert (tmp_path / f"sent{rank}").read_text() == "1.0"
        assert "gloo" not in (tmp_path / f"threads{rank}").read_text()


def test_processes_talk_and_take_turns(tmp_path: Path) -> None:
    body = """
        def work():
            time.sleep(1.2 if world.is_first else 0)
            with Path("order").open("a") as file:
                file.write(str(world.rank))
            return world.rank
        said = world.sum(world.rank, 0.5), world.max(world.rank), world.share([world.rank])
        text = f"{said} {world.first_process_first(work) == world.rank}"
        Path(f"said{world.rank}").write_text(text)
        world.agree("the weather", "good" if world.rank < 2 else "bad", "wait")
    """
    program = write_program(write_run(tmp_path) / "talk.py", body)
    done = forked(tmp_path, program=program, processes=3)
    for rank in range(3):
        assert (tmp_path / f"said{rank}").read_text() == "([3.0, 1.5], 2, [0]) True", done.stderr
    order = (tmp_path / "order").read_text()
    assert order[0] == "0"
    assert sorted(order) == ["0", "1", "2"]
    assert re.search(r"the weather of rank 2 on \S+ \(\S+\) differs from rank 0's", done.stderr)
    assert done.returncode == 1


@pytest.mark.slow
def test_compiled_training_in_two_processes(alone: Path, tmp_path: Path) -> None:
    command = torchrun_command(2, "run.yaml", *LONG, "compile=true", "accumulate=2")
    done = finished(command, write_run(tmp_path), timeout=280)
    assert done.returncode == 0, done.stderr
    assert re.search(r"compile: compiled in \d+ s, [1-9]\d* graphs", done.stderr), done.stderr
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-4)


# -- crashes ----------------------------------------------------------------------------------


def test_torchrun_restarts_a_killed_worker_and_the_run_ends_as_undisturbed(
    tmp_path: Path,
) -> None:
    straight, killed = write_run(tmp_path / "straight"), write_run(tmp_path / "killed")
    steps = ["max_steps=200", "save_freq=20", "decay_steps=200"]
    whole = train(straight, *steps, processes=2)
    command = torchrun_command(2, "run.yaml", *steps, options=["--max-restarts=3"])
    with started(command, killed) as agent:
        wait_for_steps(killed, agent, 50)
        os.kill(children(agent.pid)[1], signal.SIGKILL)
        _, said = agent.communicate(timeout=100)
    assert agent.returncode == 0, said
    for once in ("going on from run/cpt", "done: the model is"):
        assert said.count(once) == 1, said
    assert same_weights(run_folder.checkpoints(killed / "run")[-1], whole)
    assert losses(killed) == losses(straight)


# -- what is refused --------------------------------------------------------------------------


def test_ddp_without_torchrun_shows_the_command() -> None:
    def join() -> None:
        with launch.join(Config(ddp=True), "train.py config/train300M_ddp.yaml"):
            pass

    said = refusal(join)
    assert re.search(
        r"needs torchrun.*\n.*torchrun --nproc_per_node=\d+ train\.py config/train300M_ddp\.yaml\n",
        said,
    )


def test_rows_that_cannot_be_shared_are_told_the_nearest_that_can() -> None:
    plan = Config(train_batch=50, accumulate=2)
    check_shares(plan, 1)
    check_shares(plan, 5)
    said = refusal(lambda: check_shares(plan, 4))
    assert "train_batch: 50 is not divisible by 4 processes x accumulate (2)" in said
    assert "set train_batch to 48 or 56" in said
    assert "set train_batch to 64" in refusal(lambda: check_shares(plan, 32))


def test_a_refusal_under_torchrun_is_told_once(tmp_path: Path) -> None:
    done = finished(torchrun_command(2, "run.yaml", "train_batch=7"), write_run(tmp_path))
    assert done.returncode == 1
    before_torchrun = done.stderr.partition("torch.distributed.elastic")[0].partition("W1")[0]
    assert before_torchrun.count("error: train_batch: 7 is not divisible by 2 processes") == 1
    assert "set train_batch to 6 or 8" in before_torchrun
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("value", ["", "two", "-1"])
def test_garbage_in_torchruns_variables(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", value)

    def join() -> None:
        with launch.join(Config(), "x"):
            pass

    assert f"WORLD_SIZE is {value!r}, not a number" in refusal(join)


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert runtime.device_of_process(cpu, 5) == cpu
    assert runtime.device_of_process(cuda, 1) == torch.device("cuda:1")
    said = refusal(lambda: runtime.device_of_process(cuda, 2))
    assert "no GPU for process 2" in said
    assert "--nproc_per_node=2" in said
    assert "is one GPU" in refusal(lambda: runtime.device_of_process(torch.device("cuda:1"), 0))
    assert "is one GPU" in refusal(lambda: runtime.device_of_process(torch.device("mps"), 0))


def test_how_to_go_on_is_told_as_it_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launch.launcher() == runtime.python_command()
    variables = {
        "TORCHELASTIC_RUN_ID": "none",
        "LOCAL_WORLD_SIZE": "8",
        "GROUP_WORLD_SIZE": "1",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29500",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch.launcher() == "torchrun --nproc_per_node=8"
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert launch.launcher() == (
        "torchrun --nnodes=2 --node_rank=1 --nproc_per_node=8 "
        "--master_addr=10.0.0.1 --master_port=29500"
    )
