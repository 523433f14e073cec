"""deploy/: what torchrun is called with, what signals do, whether Kubernetes knows every field."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from torch.distributed.launcher.api import LaunchConfig
from torch.distributed.run import get_args_parser

from smallgpt.config import check_shares
from smallgpt.config_file import load_config
from tests.helpers.processes import REPOSITORY, finished, started

DEPLOY = REPOSITORY / "deploy"
SLURM = DEPLOY / "slurm.sh"
CONFIG = "config/train300M_ddp.yaml"
OLDEST = "1.31"  # as deploy/README.md says
BASH = shutil.which("bash") or "/bin/bash"


parsed = get_args_parser().parse_args  # an argument that torchrun does not know ends the test


def records(file: Path) -> list[list[str]]:
    """Arguments of each call that a stand-in has recorded."""
    calls = file.read_text("utf-8").split("\n\0")[:-1]
    return [call.removesuffix("\0").split("\0") for call in calls]


def write_programs(folder: Path, programs: Mapping[str, str]) -> Path:
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(f"#!{BASH}\nset -u\n{text}", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


# -- Slurm ------------------------------------------------------------------------------------

# Stand-ins for Slurm's commands and torchrun. They write what happens to `events`.
SLURM_PROGRAMS = {
    "scontrol": """
        case "$1 $2" in
            "show hostnames") [[ $3 == "gpu[07-08]" ]] && printf 'gpu07\\ngpu08\\n' ;;
            "show job") cat job ;;
            requeue*) echo "requeue $2" >> events ;;
            *) exit 1 ;;
        esac
    """,
    # Like srun, it answers SIGTERM by killing its tasks.
    "srun": """
        while [[ $1 == -* ]]; do echo "$1" >> srun.options; shift; done
        tasks=()
        for ((node = 0; node < SLURM_NNODES; node++)); do
            SLURM_NODEID=$node "$@" &
            tasks+=($!)
        done
        trap 'echo "srun was signalled" >> events; kill -KILL "${tasks[@]}"; exit 143' TERM
        echo "${tasks[@]}" > tasks
        code=0
        for task in "${tasks[@]}"; do wait "$task" || code=$?; done
        exit "$code"
    """,
    # Like scancel with --signal, it signals the tasks and not the batch script.
    "scancel": """
        echo "scancel $*" >> events
        [[ $1 == --signal=TERM && $2 == 42 ]] && kill -TERM $(<tasks)
    """,
    # PLAN says for each attempt: an exit code, or `runs` until SIGTERM, or `done` at SIGTERM.
    "torchrun": """
        plan=($PLAN)
        attempt=$(cat "attempts.$SLURM_NODEID" 2>/dev/null || echo 0)
        echo $((attempt + 1)) > "attempts.$SLURM_NODEID"
        what=${plan[$attempt]}
        code=1
        [[ $what == done ]] && code=0
        trap 'sleep 0.1; echo "saved by $SLURM_NODEID" >> events; exit $code' TERM
        { printf '%s\\0' "$@"; printf '\\n\\0'; } >> "calls.$SLURM_NODEID"
        echo "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" > timeout
        [[ $what == [0-9]* ]] && exit "$what"
        while :; do sleep 0.02; done
    """,
}
RUNNING = (
    "JobId=42 JobState=RUNNING Reason=None\n   PreemptEligibleTime=2026-01-01 PreemptTime=None\n"
)
PREEMPTED = RUNNING.replace("PreemptTime=None", "PreemptTime=2026-01-02T03:04:05")
CANCELLED = RUNNING.replace("RUNNING", "CANCELLED")


class Cluster:
    """A folder in which slurm.sh runs on two nodes that are processes of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = write_programs(folder / "bin", SLURM_PROGRAMS)
        self.job(RUNNING)
        self.variables = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_ID": "42",
            "SLURM_JOB_NODELIST": "gpu[07-08]",
            "SLURM_NNODES": "2",
            "SLURM_GPUS_ON_NODE": "8",
            "SLURM_CPUS_PER_TASK": "32",
        }

    def job(self, shown: str) -> None:
        """What `scontrol show job` says from now on."""
        (self.folder / "job").write_text(shown, encoding="utf-8")

    def run(self, plan: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return finished(
            [BASH, SLURM, *arguments], self.folder, timeout=20, PLAN=plan, **self.variables
        )

    def interrupted(self, plan: str, shown: str, batch: bool = True) -> int:
        """Exit code after SIGTERM to the batch script, or else to the tasks, during training."""
        with started([BASH, SLURM], self.folder, PLAN=plan, **self.variables) as script:
            tasks = self.folder / "tasks"
            deadline = time.monotonic() + 20
            while not (tasks.exists() and all(self.calls(node) for node in (0, 1))):
                assert time.monotonic() < deadline
                assert script.poll() is None, script.communicate()
                time.sleep(0.01)
            self.job(shown)
            for process in [script.pid] if batch else map(int, tasks.read_text().split()):
                os.kill(process, signal.SIGTERM)
            return script.wait(timeout=20)

    def events(self) -> list[str]:
        """What happened; the two nodes save in no order."""
        file = self.folder / "events"
        lines = file.read_text("utf-8").splitlines() if file.exists() else []
        saved = [index for index, line in enumerate(lines) if line.startswith("saved")]
        for index, line in zip(saved, sorted(lines[i] for i in saved), strict=True):
            lines[index] = line
        return lines

    def calls(self, node: int) -> list[list[str]]:
        """The arguments of each torchrun on a node."""
        file = self.folder / f"calls.{node}"
        return records(file) if file.exists() else []


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_shellcheck_finds_nothing() -> None:
    program = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which(
        "shellcheck"
    )
    if program is None:
        pytest.skip("shellcheck is not installed: requirements-dev.txt has it for Linux on x86-64")
    done = subprocess.run([program, SLURM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_slurm_starts_a_torchrun_of_the_checkouts_environment_on_each_node(
    cluster: Cluster,
) -> None:
    (cluster.folder / ".venv").mkdir()
    program = f'echo "from .venv" >> events\nexec {cluster.folder / "bin" / "torchrun"} "$@"'
    write_programs(cluster.folder / ".venv" / "bin", {"torchrun": program})
    given = ["my.yaml", "data_path=my text.txt"]
    for arguments, expected in (([], [CONFIG]), (given, given)):
        done = cluster.run("0 0", *arguments)
        assert done.returncode == 0, done.stderr
        for node in (0, 1):
            read = parsed(cluster.calls(node)[-1])
            assert (read.nnodes, read.node_rank, read.nproc_per_node) == ("2", node, "8")
            assert (read.master_addr, read.master_port) == ("gpu07", 29500)
            assert (read.training_script, read.training_script_args) == ("train.py", expected)
    options = (cluster.folder / "srun.options").read_text().splitlines()
    assert "--cpus-per-task=32" in options
    assert cluster.events() == ["from .venv"] * 4


@pytest.mark.parametrize(("plan", "starts", "code"), [("1 3 0", 3, 0), ("1 1 1 3 0", 4, 3)])
def test_slurm_starts_all_nodes_again_after_a_crash_three_times_at_most(
    cluster: Cluster, plan: str, starts: int, code: int
) -> None:
    assert cluster.run(plan).returncode == code
    assert [len(cluster.calls(node)) for node in (0, 1)] == [starts, starts]
    assert cluster.events() == []


ASKED, SAVED = "scancel --signal=TERM 42", ["saved by 0", "saved by 1"]


@pytest.mark.parametrize(
    ("plan", "job", "batch", "code", "events"),
    [
        ("runs", RUNNING, True, 0, [ASKED, *SAVED, "requeue 42"]),
        ("runs 0", PREEMPTED, False, 0, [*SAVED, "requeue 42"]),
        ("runs 0", CANCELLED, True, 1, [ASKED, *SAVED]),
        ("done", RUNNING, True, 0, [ASKED, *SAVED]),
    ],
    ids=["time limit", "preemption announced to the tasks alone", "cancelled", "just finished"],
)
def test_at_a_signal_slurm_saves_and_requeues_a_job_that_must_go_on(
    cluster: Cluster, plan: str, job: str, batch: bool, code: int, events: list[str]
) -> None:
    assert cluster.interrupted(plan, job, batch) == code
    assert cluster.events() == events
    assert len(cluster.calls(0)) == 1


def test_slurm_signals_early_enough_and_requeues(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = SLURM.read_text("utf-8").partition("\nset -")[0]  # options below it do not count
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", head, re.MULTILINE))
    assert {"requeue", "time", "nodes", "gpus-per-node"} <= options.keys()
    assert options["ntasks-per-node"] == "1"
    assert options["open-mode"] == "append"
    early = re.fullmatch(r"B:TERM@(\d+)", options["signal"])
    assert early
    assert cluster.run("0").returncode == 0
    timeout = (cluster.folder / "timeout").read_text().strip()
    assert torchruns_patience(monkeypatch, timeout) + 60 <= int(early[1])
    nodes, gpus = int(options["nodes"]), int(options["gpus-per-node"])
    check_shares(load_config(REPOSITORY / CONFIG), nodes * gpus)


def torchruns_patience(monkeypatch: pytest.MonkeyPatch, value: str) -> int:
    """Seconds torchrun waits after SIGTERM where this is TORCH_ELASTIC_SHUTDOWN_TIMEOUT."""
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", value)
    patience = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).shutdown_timeout
    assert patience is not None
    return patience


# -- Kubernetes -------------------------------------------------------------------------------

Resource = dict[str, Any]


def resources(name: str) -> dict[str, Resource]:
    """The resources of a file, by kind."""
    loaded = list(yaml.safe_load_all((DEPLOY / f"{name}.yaml").read_text("utf-8")))
    by_kind = {resource["kind"]: resource for resource in loaded}
    assert len(by_kind) == len(loaded)
    return by_kind


def pods(name: str) -> list[tuple[Resource, dict[str, str]]]:
    """The template of each pod, and the variables that Kubernetes or the operator adds."""
    if name == "kubernetes":
        spec = resources(name)["Job"]["spec"]
        indices = range(spec["completions"])
        return [(spec["template"], {"JOB_COMPLETION_INDEX": str(index)}) for index in indices]
    replicas = resources(name)["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]
    [container] = replicas["Master"]["template"]["spec"]["containers"]
    [port] = container["ports"]
    assert (container["name"], port["name"]) == ("pytorch", "pytorchjob-port")
    address = {"MASTER_ADDR": MASTERS[name], "MASTER_PORT": str(port["containerPort"])}
    kinds = [kind for kind in ("Master", "Worker") for _ in range(replicas[kind]["replicas"])]
    return [
        (replicas[kind]["template"], address | {"RANK": str(rank)})
        for rank, kind in enumerate(kinds)
    ]


MASTERS = {"kubernetes": "train300m-0.train300m", "kubeflow": "train300m-master-0"}
"""What the pod of rank 0 is called on the network."""


def torchrun_of(container: Resource, variables: dict[str, str], folder: Path) -> list[str]:
    """What the container's command gives to torchrun."""
    programs = {
        "torchrun": "{ printf '%s\\0' \"$@\"; printf '\\n\\0'; } >> calls",
        "sleep": 'echo "$1" > slept',
    }
    write_programs(folder, programs)

    def expand(text: str) -> str:
        return re.sub(r"\$\((\w+)\)", lambda name: variables.get(name[1], name[0]), text)

    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    command = [expand(word) for word in container["command"] + container["args"]]
    subprocess.run(command, cwd=folder, env=variables | {"PATH": path}, check=True, timeout=20)
    assert int((folder / "slept").read_text()) >= 30  # for other pods to notice and end
    [call] = records(folder / "calls")
    return call


def test_kubernetes_knows_every_field() -> None:
    """Each has the type it must have, and none is missing."""
    checked = [
        resource
        for name in ("kubernetes", "kubeflow", "files")
        for kind, resource in resources(name).items()
        if kind != "PyTorchJob"
    ]
    head = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}}
    checked += [head | {"template": template} for name in MASTERS for template, _ in pods(name)]
    for resource in checked:
        for version in (OLDEST, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("name", MASTERS)
def test_each_pod_starts_its_torchrun(name: str, tmp_path: Path) -> None:
    templates = pods(name)
    for rank, (template, variables) in enumerate(templates):
        [container] = template["spec"]["containers"]
        read = parsed(torchrun_of(container, variables, tmp_path / str(rank)))
        assert (read.nnodes, read.node_rank) == (str(len(templates)), rank)
        assert read.nproc_per_node == str(container["resources"]["limits"]["nvidia.com/gpu"])
        assert (read.training_script, read.training_script_args) == ("train.py", [CONFIG])
        assert (read.master_addr, read.master_port) == (MASTERS[name], 29500)
        assert read.max_restarts == 0  # pods that are replaced count from 0 again


@pytest.mark.parametrize("name", MASTERS)
def test_each_pod_has_time_to_save_and_room_for_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = load_config(REPOSITORY / CONFIG)
    check_shares(plan, 16)
    assert plan.resume_from == "auto"
    storage = resources("files")["Pod"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    for template, _ in pods(name):
        spec = template["spec"]
        [container] = spec["containers"]
        variables = {entry["name"]: entry["value"] for entry in container["env"]}
        value = variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
        patience = torchruns_patience(monkeypatch, value)
        assert 30 < patience < spec["terminationGracePeriodSeconds"]

        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounted = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert volumes[mounted["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
        for used in (plan.data_path, plan.checkpoint_root, plan.tensorboard_path):
            top = Path(str(used)).parts[0]
            mount = mounted[f"{container['workingDir']}/{top}"]
            assert mount["subPath"] == top
            assert volumes[mount["name"]]["persistentVolumeClaim"]["claimName"] == storage
    claim = resources(name)["PersistentVolumeClaim"]
    assert claim["metadata"]["name"] == storage
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim == resources("kubernetes")["PersistentVolumeClaim"]


def test_pods_of_a_job_meet_and_one_that_fails_for_good_ends_it() -> None:
    found = resources("kubernetes")
    job, service = found["Job"]["spec"], found["Service"]["spec"]
    pod, name = job["template"]["spec"], found["Job"]["metadata"]["name"]
    assert f"{name}-0.{found['Service']['metadata']['name']}" == MASTERS["kubernetes"]
    assert pod["subdomain"] == found["Service"]["metadata"]["name"]
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
    assert service["selector"] == {"batch.kubernetes.io/job-name": name}
    assert [entry["port"] for entry in service["ports"]] == [29500]
    assert (job["completionMode"], job["parallelism"]) == ("Indexed", job["completions"])
    assert pod["restartPolicy"] == "Never"  # the policies below ask for it
    assert (job["maxFailedIndexes"], job["podReplacementPolicy"]) == (0, "Failed")
    assert job["backoffLimitPerIndex"] > 1
    assert [rule["action"] for rule in job["podFailurePolicy"]["rules"]] == ["Ignore"]


def test_the_operator_restarts_the_pods() -> None:
    job = resources("kubeflow")["PyTorchJob"]
    assert (job["apiVersion"], job["metadata"]["name"]) == ("kubeflow.org/v1", "train300m")
    assert job["spec"]["pytorchReplicaSpecs"]["Master"]["replicas"] == 1
    for spec in job["spec"]["pytorchReplicaSpecs"].values():
        assert spec["restartPolicy"] == "OnFailure"
        assert "restartPolicy" not in spec["template"]["spec"]
