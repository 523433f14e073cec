"""Several processes: the same run, whatever their number."""

from __future__ import annotations

import re
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from smallgpt import runtime
from smallgpt.config import Config, check_shares
from smallgpt.config_file import load_config
from smallgpt.data.corpus import open_corpus
from smallgpt.data.packing import RowOrder
from smallgpt.distributed import launch, world
from smallgpt.training.rows import pack_corpus
from smallgpt.utils import commands
from tests.helpers.commands import refusal
from tests.helpers.processes import (
    finished,
    forked,
    losses,
    rank_variables,
    same_weights,
    started,
    torchrun_command,
    train,
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
    parts = f"accumulate={accumulate}"
    done = forked(write_run(tmp_path), "run.yaml", *LONG, parts, processes=processes)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for name, count in (("loss", 30), ("validation_loss", 3)):
        assert len(losses(alone, name)) == count
        assert losses(tmp_path, name) == pytest.approx(losses(alone, name), rel=1e-5)
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


@pytest.mark.slow
def test_compiled_training_in_two_processes(alone: Path, tmp_path: Path) -> None:
    command = torchrun_command(2, "run.yaml", *LONG, "compile=true", "accumulate=2")
    done = finished(command, write_run(tmp_path), timeout=280)
    assert done.returncode == 0, done.stderr
    assert re.search(r"compile: compiled in \d+ s, 2 graphs\n", done.stderr), done.stderr
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-4)


# -- between joining and parting --------------------------------------------------------------

PROGRAM = """
    import atexit, os, sys, time
    from pathlib import Path
    import torch
    from smallgpt.config_file import load_config
    from smallgpt.distributed import launch, world
    from smallgpt.training import pretrain
    from smallgpt import runtime
    from smallgpt.data.corpus import open_corpus
    from smallgpt.distributed.world import replicate
    from smallgpt.model.gpt import GPT
    from smallgpt.training.rows import pack_corpus
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


def write_program(folder: Path, body: str) -> Path:
    """What each process does between joining and parting; its threads at the end go to a file."""
    file = write_run(folder) / "program.py"
    body = textwrap.indent(textwrap.dedent(body), " " * 12)
    file.write_text(textwrap.dedent(PROGRAM.format(body=body)))
    return file


TWO_STEPS = """
    corpus = world.first_process_first(lambda: open_corpus(plan.data_paths()))
    plan = load_config("run.yaml", [*sys.argv[1:], f"vocab_size={len(corpus.tokenizer)}"])
    rows = pack_corpus(plan, corpus, corpus.tokenizer)
    here, model = runtime.start(plan, world.local_rank), GPT(plan).train()
    task = pretrain.DialogueTask(plan, here, model, corpus.tokenizer, *rows, world)
    run = Trainer(plan, here, task, world)
    sent = []
    def count(state, bucket):
        sent.append(bucket.buffer().numel())
        future = torch.distributed.all_reduce(bucket.buffer() / world.size, async_op=True)
        return future.get_future().then(lambda done: done.value()[0])
    run.network.register_comm_hook(None, count)
    run.step()  # with one more, in which DDP finds its order
    sent.clear()
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


@pytest.mark.parametrize("body", [TWO_STEPS, STOP], ids=["at the end", "early"])
def test_gradients_are_averaged_once_a_step_and_processes_part(tmp_path: Path, body: str) -> None:
    """A thread of gloo that still holds a Python object when Python ends aborts the process."""
    command = [sys.executable, str(write_program(tmp_path, body)), "accumulate=4"]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(started(command, tmp_path, **variables))
            for variables in rank_variables(2)
        ]
        for process in processes:
            _, said = process.communicate(timeout=100)
            assert process.returncode == 0, said
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
    done = forked(tmp_path, program=write_program(tmp_path, body), processes=3)
    for rank in range(3):
        assert (tmp_path / f"said{rank}").read_text() == "([3.0, 1.5], 2, [0]) True", done.stderr
    order = (tmp_path / "order").read_text()
    assert order[0] == "0"
    assert sorted(order) == ["0", "1", "2"]
    assert re.search(r"the weather of rank 2 on \S+ \(\S+\) differs from rank 0's", done.stderr)
    assert done.returncode == 1


def test_what_is_shared_arrives_whole_and_tensors_are_not_pickled(tmp_path: Path) -> None:
    """Pickled, an optimizer's state would take several times its memory."""
    body = """
        from types import SimpleNamespace
        import pickle
        import torch.distributed as dist

        numbers = torch.arange(60_000.0)
        kinds = [numbers.to(t) for t in (torch.float64, torch.bfloat16, torch.int32)]
        odd = [torch.tensor(3.5), torch.ones(0, 2), numbers.view(600, 100).t()[7:], numbers > 9]
        tensors = [*kinds, *odd, numbers]
        nested = {"first": kinds, 3: (odd, None, b"x"), "again": numbers}
        pickled, send = [], dist.broadcast_object_list
        def broadcast_object_list(box, **options):
            pickled.append(len(pickle.dumps(box)))
            send(box, **options)
        dist.broadcast_object_list = broadcast_object_list
        got = world.share(SimpleNamespace(state=nested) if world.is_first else None).state
        assert list(got) == list(nested) and got[3][1:] == (None, b"x")
        arrived = [*got["first"], *got[3][0], got["again"]]
        for one, other in zip(arrived, tensors, strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other), (one, other)
        assert pickled[0] < 5_000, pickled
        Path(f"said{world.rank}").write_text("equal")
    """
    done = forked(tmp_path, program=write_program(tmp_path, body), processes=2)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"said{rank}").read_text() for rank in range(2)] == ["equal"] * 2


def test_gradients_of_a_large_model_are_sent_in_larger_buckets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DDP's own 25 MiB would be 46 messages a step at 300M."""
    asked: list[float | None] = []

    def replicated(model: torch.nn.Module, *, bucket_cap_mb: float | None, **_: Any) -> None:
        asked.append(bucket_cap_mb)

    monkeypatch.setattr(world, "DistributedDataParallel", replicated)
    for width in (1_000, 17_000):
        model = torch.nn.Linear(width, width, device="meta")
        world.replicate(model, world.World(size=2))
    assert asked == [None, pytest.approx(92, rel=0.01)]


# -- what is refused --------------------------------------------------------------------------


def join(config: Config) -> None:
    with launch.join(config, "train.py my.yaml"):
        pass


def test_ddp_without_torchrun_shows_the_command() -> None:
    said = refusal(lambda: join(Config(ddp=True)))
    command = r"needs torchrun.*\n.*torchrun --nproc_per_node=\d+ train\.py my\.yaml\n"
    assert re.search(command, said)


@pytest.mark.parametrize("value", ["", "two", "-1"])
def test_garbage_in_torchruns_variables(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    for name, text in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", value)):
        monkeypatch.setenv(name, text)
    assert f"WORLD_SIZE is {value!r}, not a number" in refusal(lambda: join(Config()))


def test_rows_that_cannot_be_shared_are_told_the_nearest_that_can() -> None:
    plan = Config(train_batch=50, accumulate=2)
    check_shares(plan, 1)
    check_shares(plan, 5)
    said = refusal(lambda: check_shares(plan, 4))
    assert "train_batch: 50 is not divisible by 4 processes x accumulate (2)" in said
    assert "set train_batch to 48 or 56" in said
    assert "set train_batch to 64" in refusal(lambda: check_shares(plan, 32))


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert launch.launcher() == commands.python_command()
    where = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    group = {"LOCAL_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "1", "GROUP_RANK": "1"}
    for name, value in ({"TORCHELASTIC_RUN_ID": "none"} | group | where).items():
        monkeypatch.setenv(name, value)
    assert launch.launcher() == "torchrun --nproc_per_node=8"
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert launch.launcher() == (
        "torchrun --nnodes=2 --node_rank=1 --nproc_per_node=8 "
        "--master_addr=10.0.0.1 --master_port=29500"
    )
