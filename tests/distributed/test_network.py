"""Two machines, made of network namespaces: torchrun in each, and nothing shared but a cable."""

from __future__ import annotations

import functools
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from smallgpt.checkpoints import run_folder
from tests.helpers.processes import (
    descendants,
    losses,
    same_weights,
    started,
    torchrun_command,
    train,
    wait_for_steps,
    write_run,
)

pytestmark = pytest.mark.distributed

STEPS = ["max_steps=1000", "decay_steps=1000", "save_freq=50", "dropout=0.1"]
TIMEOUT = 10
MARGIN = 60
"""Seconds that both machines may take longer than `ddp_timeout` until torchrun has ended on them:
6 to ask who answers, 3 for the machine's first process to report, the rest for slow machines."""


@dataclass(frozen=True)
class Machine:
    """A network namespace with one network card; its host name is its own too."""

    rank: int
    name: str
    address: str

    def ip(self, *words: str) -> None:
        """Run an `ip` command within it."""
        ip("-n", self.name, *words)

    def command(self, command: Sequence[str | Path]) -> list[str | Path]:
        """What runs `command` on it."""
        rename = 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"'
        inside = ["ip", "netns", "exec", self.name, "unshare", "--uts"]
        return [*inside, "sh", "-c", rename, self.name, *command]

    def pids(self) -> str:
        """The processes on it."""
        done = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True
        )
        return done.stdout


@dataclass(frozen=True)
class Network:
    """Two machines and the cable between them."""

    first: Machine
    second: Machine

    def lose_packets(self) -> None:
        """From now on each sends what it has to say to nobody, and no error comes back."""
        for one, other in ((self.first, self.second), (self.second, self.first)):
            nobody = [other.address, "lladdr", "02:00:00:00:00:99", "dev", "card"]
            one.ip("neigh", "replace", *nobody, "nud", "permanent")

    def unplug(self, machine: int) -> None:
        """Take a machine's card down: it has no way to the other, which sees no carrier."""
        (self.first, self.second)[machine].ip("link", "set", "card", "down")

    def mend(self) -> None:
        """The network is as it was."""
        for machine in (self.first, self.second):
            machine.ip("link", "set", "card", "up")
            machine.ip("neigh", "flush", "dev", "card", "nud", "permanent")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """The two machines, removed at the end."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("network namespaces need Linux and root")
    if not (shutil.which("ip") and shutil.which("unshare")):
        pytest.skip("needs the commands ip (iproute2) and unshare (util-linux)")
    tag = secrets.token_hex(3)
    machines = [Machine(r, f"{n}-{tag}", f"10.77.0.{r + 1}") for r, n in enumerate(("one", "two"))]
    with ExitStack() as made:
        try:
            for machine in machines:
                ip("netns", "add", machine.name)
                made.callback(ip, "netns", "delete", machine.name)
            ends = [["card", "netns", machine.name] for machine in machines]
            ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
            for machine in machines:
                machine.ip("addr", "add", f"{machine.address}/24", "dev", "card")
                for card in ("lo", "card"):
                    machine.ip("link", "set", card, "up")
                nothing = machine.command(["true"])
                subprocess.run(nothing, capture_output=True, text=True, check=True)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        yield Network(*machines)


@dataclass(frozen=True)
class Run:
    """A run on both machines, which has begun; each has a folder and a copy of the text."""

    network: Network
    torchruns: list[subprocess.Popen[str]]

    def end(self, timeout: float) -> list[str]:
        """What each machine says, when both have ended."""
        deadline = time.monotonic() + timeout
        said = []
        for torchrun in self.torchruns:  # the second says little: its pipe does not fill meanwhile
            out, err = torchrun.communicate(timeout=max(0.1, deadline - time.monotonic()))
            assert out == ""
            said.append(err)
        assert self.network.first.pids() == self.network.second.pids() == "", "left over"
        return said

    def workers(self, machine: Machine) -> list[int]:
        return descendants(self.torchruns[machine.rank].pid)


@contextmanager
def running(
    network: Network,
    folder: Path,
    *arguments: str,
    processes: int = 1,
    second: Sequence[str] = (),
    elastic: bool = False,
) -> Iterator[Run]:
    """torchrun on both machines; the second is given further arguments.

    elastic: torchruns agree on who is who, and when one starts its processes again, all do.
    """
    with ExitStack() as opened:
        torchruns = []
        for machine in (network.first, network.second):
            master = network.first.address
            meeting = [f"--node_rank={machine.rank}", f"--master_addr={master}"]
            meeting += ["--master_port=29500"]
            if elastic:  # the last two only because these machines' names stand for no address
                meeting = ["--max_restarts=3", "--rdzv_backend=c10d"]
                meeting += [f"--rdzv_endpoint={master}:29500"]
                meeting += [f"--rdzv_conf=is_host={1 - machine.rank}"]
                meeting += [f"--local_addr={machine.address}"]
            more = second if machine.rank else ()
            options = ["--nnodes=2", *meeting]
            command = torchrun_command(processes, "run.yaml", *arguments, *more, options=options)
            begun = started(machine.command(command), folder / f"machine{machine.rank}")
            torchruns.append(opened.enter_context(begun))
        yield Run(network, torchruns)


def two_folders(folder: Path, **settings: object) -> Path:
    """A folder a machine in `folder`, each with its own text and run.yaml; the first's path."""
    write_run(folder / "machine1", **settings)
    return write_run(folder / "machine0", **settings)


def train_on_both(
    network: Network, folder: Path, *arguments: str, processes: int = 1
) -> tuple[Path, list[str]]:
    """Train to the end; the newest checkpoint and what each machine said."""
    with running(network, folder, *arguments, processes=processes) as run:
        said = run.end(120)
        assert [torchrun.returncode for torchrun in run.torchruns] == [0, 0], said
    return run_folder.checkpoints(folder / "machine0" / "run")[-1], said


def error_of(said: str) -> str:
    """The one error we tell the user, with its advice; torchrun quotes it in its summary below."""
    found = set(re.findall(r"^error: .*\n(?:  .*\n)*", said, re.MULTILINE))
    assert len(found) == 1, said  # twice the same where a slow torchrun lets the second speak too
    return str(found.pop())


@pytest.fixture(scope="module")
def undisturbed(
    network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], tuple[Path, Path]]:
    """Gives, for a number of processes each, a run of 1,000 steps on two machines: its folder on
    the first, and its last checkpoint."""

    @functools.cache
    def run(processes: int) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("undisturbed")
        first = two_folders(folder)
        return first, train_on_both(network, folder, *STEPS, processes=processes)[0]

    return run


# -- the same run -----------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
def test_two_machines_train_as_one_process_does(
    network: Network, tmp_path: Path, processes: int
) -> None:
    steps = ["max_steps=30", "decay_steps=30", "eval_freq=10", "save_freq=30"]
    alone, first = write_run(tmp_path / "alone"), two_folders(tmp_path)
    train(alone, *steps)
    _, said = train_on_both(network, tmp_path, *steps, processes=processes)
    assert len(losses(first)) == 30
    assert losses(first) == pytest.approx(losses(alone), rel=1e-5)
    assert len(losses(first, "validation_loss")) == 3
    for name in ("validation_loss", "step"):
        assert losses(first, name) == pytest.approx(losses(alone, name), rel=1e-5)
    assert f"{2 * processes} processes" in said[0]
    assert "step 30" not in said[1]
    second = tmp_path / "machine1"
    assert sorted(path.name for path in second.iterdir()) == sorted(
        [".smallgpt_cache", "run.yaml", "text.txt"]
    )
    assert (first / ".smallgpt_cache").is_dir()


def test_the_second_machine_needs_no_checkpoint_to_go_on(
    network: Network, tmp_path: Path, undisturbed: Callable[[int], tuple[Path, Path]]
) -> None:
    straight, whole = undisturbed(1)
    first = two_folders(tmp_path)
    train_on_both(network, tmp_path, *STEPS, "max_steps=105")
    assert not (tmp_path / "machine1" / "run").exists()
    last, said = train_on_both(network, tmp_path, *STEPS, "resume_from=auto")
    assert "going on from run/cpt105" in said[0]
    assert same_weights(last, whole)
    assert losses(first) == losses(straight)


# -- trouble ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cut", "processes"),
    [
        (Network.lose_packets, 2),
        (lambda network: network.unplug(0), 1),
        (lambda network: network.unplug(1), 1),
    ],
    ids=["lost packets, 2 processes each", "first unplugged", "second unplugged"],
)
def test_when_the_link_is_cut_both_say_so_in_time_and_the_run_goes_on_when_it_is_back(
    network: Network,
    tmp_path: Path,
    undisturbed: Callable[[int], tuple[Path, Path]],
    cut: Callable[[Network], None],
    processes: int,
) -> None:
    straight, whole = undisturbed(processes)
    first = two_folders(tmp_path, ddp_timeout=TIMEOUT)
    arguments = [*STEPS, "resume_from=auto"]
    try:
        with running(network, tmp_path, *arguments, processes=processes) as run:
            wait_for_steps(first, run.torchruns[0], 100)
            cut(network)
            said = run.end(TIMEOUT + MARGIN)
            assert [torchrun.returncode for torchrun in run.torchruns] == [1, 1]
    finally:
        network.mend()
    ranks, do = ["rank 0", "rank 1"], "does"
    if processes == 2:
        ranks, do = ["ranks 0, 1", "ranks 2, 3"], "do"
    for machine, silent in ((0, network.second), (1, network.first)):
        assert error_of(said[machine]) == (
            f"error: lost contact: {ranks[silent.rank]} on {silent.name} ({silent.address}) "
            f"{do} not answer\n"
            "  -> see what that process said, and whether the network is up; then start every "
            "machine's torchrun again\n"
            "     with resume_from=auto: training goes on from the last checkpoint\n"
        )
    assert 100 <= len(losses(first)) < 1000
    last, said = train_on_both(network, tmp_path, *arguments, processes=processes)
    found = re.search(r"going on from run/cpt(\d+)", said[0])
    assert found, said[0]
    done = int(found[1])
    assert losses(first)[:done] == losses(straight)[:done]
    if processes == 1:
        assert same_weights(last, whole)
        assert losses(first) == losses(straight)
    else:  # DDP sums the gradients of more than two processes in another order in its first step
        soon = slice(done, done + 20)
        assert losses(first)[soon] == pytest.approx(losses(straight)[soon], rel=1e-4)
        assert len(losses(first)) == 1000


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_is_missed_on_the_other_machine(
    network: Network, tmp_path: Path, killed: int
) -> None:
    first = two_folders(tmp_path, ddp_timeout=1000)
    victim = (network.first, network.second)[killed]
    with running(network, tmp_path, *STEPS) as run:
        wait_for_steps(first, run.torchruns[0], 50)
        os.kill(run.workers(victim)[-1], signal.SIGKILL)
        said = run.end(MARGIN)
    assert (
        f"error: lost contact: rank {killed} on {victim.name} ({victim.address}) does not "
        "answer\n" in error_of(said[1 - killed])
    )
    assert "exitcode  : -9" in said[killed]
    assert "error: lost" not in said[killed]


def test_a_killed_process_comes_back_by_itself_where_torchrun_may_restart(
    network: Network, tmp_path: Path, undisturbed: Callable[[int], tuple[Path, Path]]
) -> None:
    straight, whole = undisturbed(1)
    first = two_folders(tmp_path)
    with running(network, tmp_path, *STEPS, elastic=True) as run:
        wait_for_steps(first, run.torchruns[0], 100)
        os.kill(run.workers(network.second)[-1], signal.SIGKILL)
        said = run.end(100)
        assert [torchrun.returncode for torchrun in run.torchruns] == [0, 0], said
    assert said[0].count("going on from run/cpt") == 1, said
    assert "error: " not in said[0] + said[1]
    assert same_weights(run_folder.checkpoints(first / "run")[-1], whole)
    assert losses(first) == losses(straight)


@pytest.mark.parametrize(
    ("second", "added", "problem", "advice"),
    [
        (
            ["lr=0.02", "dropout=0.2"],
            "",
            ("config", ": dropout is 0.2, not 0.0; lr is 0.02, not 0.01"),
            "give every machine the same YAML file and key=value",
        ),
        ([], "\n再见\n再见\n", ("text", ""), "give every machine the same data_path files"),
    ],
)
def test_machines_that_are_told_different_things_stop(
    network: Network,
    tmp_path: Path,
    second: list[str],
    added: str,
    problem: tuple[str, str],
    advice: str,
) -> None:
    two_folders(tmp_path)
    with (tmp_path / "machine1" / "text.txt").open("a", encoding="utf-8") as text:
        text.write(added)
    with running(network, tmp_path, second=second) as run:
        said = run.end(60)
    rank_1 = f"rank 1 on {network.second.name} ({network.second.address})"
    expected = (
        f"error: the {problem[0]} of {rank_1} differs from rank 0's{problem[1]}\n  -> {advice}\n"
    )
    assert [error_of(one) for one in said] == [expected, expected]
