"""The launchers themselves: whoever starts the processes, the training is the same, and no process is left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import (
    CONFIG,
    children,
    copy_project,
    finish,
    free_port,
    noted,
    said,
    same_tensors,
    small_training,
    start,
    wait_for,
)

from tool import train

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.fixture(scope="module")
def options(toy):
    return small_training(toy, evaluate=False)


@pytest.fixture(scope="module")
def two_processes(options, tmp_path_factory):
    """What two processes do; the same bytes whoever starts them, as long as each has one thread."""
    folder = tmp_path_factory.mktemp("two")
    assert finish(start(options, "save_path", folder, world=2, log=folder / "log")) == [0, 0], said(folder / "log")
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("project")) / "tool/train.py"


@pytest.fixture
def launch(options, program, tmp_path):
    """`launch(*command, folder=..., more=[...])` starts `command train.py ...` from another directory; kills it at the end."""
    running = []

    def launch(*command, folder, more=()):
        words = [*command, program, "--config", CONFIG, *options, "save_path", folder, *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (tmp_path / f"log.{len(running)}").open("w") as log:
            running.append(subprocess.Popen([*map(str, words)], cwd=tmp_path, env=environment, stdout=log, stderr=log))
        return running[-1]

    yield launch
    for process in running:
        process.kill()


def ended(process, seconds=600):
    return process.wait(seconds)


def trained_alike(folder, other):
    return noted(folder) == noted(other) and same_tensors(folder / "train_epoch_2.pth", other / "train_epoch_2.pth")


def test_torch_distributed_launch(launch, two_processes, tmp_path):
    """It gives `--local-rank` to the program, `--local_rank` in older versions; of both tests/test_command.py."""
    process = launch(sys.executable, "-m", "torch.distributed.launch", "--nproc_per_node=2", folder=tmp_path)
    assert ended(process) == 0, said(tmp_path / "log")
    assert trained_alike(tmp_path, two_processes)


@pytest.fixture
def two_machines():
    """[(words before a command, words of its rendezvous)] of two network namespaces that a cable joins: names, addresses and
    interfaces are two machines' for all that matters. Twice this machine where there is no right, or no `ip`, to make them."""
    name, addresses = f"t{os.getpid()}", {"a": "10.99.0.1", "b": "10.99.0.2"}
    commands = [f"ip netns add {name}a", f"ip netns add {name}b"]
    commands += [f"ip link add {name}a netns {name}a type veth peer name {name}b netns {name}b"]
    machines = []
    for end, address in addresses.items():
        inside = f"ip netns exec {name}{end}"
        commands += [f"{inside} ip addr add {address}/24 dev {name}{end}"]
        commands += [f"{inside} ip link set {device} up" for device in (f"{name}{end}", "lo")]
        own = f"--rdzv-conf=is_host={int(end == 'a')} --local-addr={address}"  # both have the host name of this machine
        machines.append((f"{inside} env GLOO_SOCKET_IFNAME={name}{end}", f"--rdzv-endpoint={addresses['a']}:29400 {own}"))
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        machines = [("", f"--rdzv-endpoint=127.0.0.1:{free_port()}")] * 2
    yield machines
    for end in addresses:
        subprocess.run(["sh", "-c", f"ip netns del {name}{end} 2> /dev/null"])


def test_two_agents_of_torchrun_that_meet_by_its_rendezvous(launch, two_processes, two_machines, tmp_path):
    where = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-id=a", "--rdzv-backend=c10d"]
    processes = [launch(*before.split(), *TORCHRUN, *where, *meeting.split(), folder=tmp_path / "model")
                 for before, meeting in two_machines]  # fmt: skip
    assert [ended(process) for process in processes] == [0, 0], said(tmp_path / "log") + said(tmp_path / "log", 1)
    assert trained_alike(tmp_path / "model", two_processes)


@pytest.mark.skipif(not shutil.which("mpirun"), reason="Open MPI is not installed (Debian: openmpi-bin)")
def test_mpirun(launch, two_processes, tmp_path):
    process = launch("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", 2, sys.executable, folder=tmp_path)
    assert ended(process) == 0, said(tmp_path / "log")
    assert trained_alike(tmp_path, two_processes)


def test_variables_of_srun(options, two_processes, tmp_path):
    slurm = {"SLURM_JOB_ID": os.getpid(), "SLURM_STEP_ID": 0, "SLURM_STEP_NUM_TASKS": 2, "SLURM_STEP_TASKS_PER_NODE": 2}
    slurm |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_NODEID": 0}
    processes = []
    for rank in (0, 1):
        variables = {**slurm, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        processes += start(options, "save_path", tmp_path, variables=variables, log=tmp_path / f"log{rank}")
    assert finish(processes) == [0, 0], said(tmp_path / "log0")
    assert trained_alike(tmp_path, two_processes)


def rank_of(agent, rank):
    """The id of a process that torchrun has started."""
    for pid in children(agent.pid):
        if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            return pid
    return None


def test_killed_process_is_replaced_and_the_run_goes_on_from_the_last_checkpoint(launch, two_processes, tmp_path):
    where = ["--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    process = launch(*TORCHRUN, *where, folder=tmp_path / "model", more=["resume", "auto", "save_iters", 1, "workers", 1])
    wait_for((tmp_path / "model/train_epoch_0_iter_1.pth").exists)
    os.kill(rank_of(process, 0), signal.SIGKILL)  # the main one, which writes them
    assert ended(process) == 0, said(tmp_path / "log")
    assert trained_alike(tmp_path / "model", two_processes)
    assert "resumed at iteration" in said(tmp_path / "log")


def test_killed_process_ends_the_others(launch, tmp_path):
    process = launch(*TORCHRUN, "--standalone", "--nproc-per-node=2", folder=tmp_path / "model", more=["epochs", 99])
    wait_for(lambda: "Epoch: [" in said(tmp_path / "log"))
    others = children(process.pid)
    killed = time.monotonic()
    os.kill(rank_of(process, 1), signal.SIGKILL)
    assert ended(process) != 0
    assert time.monotonic() - killed < 120  # torchrun gives them 30 seconds, and nobody waits for an hour
    assert not any(Path(f"/proc/{pid}").exists() for pid in others)


def test_two_machines_by_the_old_keys_and_a_signal_to_one(launch, two_processes, tmp_path):
    """The program that the user started is the launcher itself: it saves and asks to be started again, on both."""
    for stopped in (True, False):
        where = ["world_size", 2, "dist_url", f"tcp://127.0.0.1:{free_port()}", "resume", "auto"]
        processes = [launch(sys.executable, folder=tmp_path / "model", more=[*where, "rank", rank]) for rank in (0, 1)]
        if stopped:
            wait_for(lambda: "Epoch: [1/2][1/3]" in said(tmp_path / "log"))
            processes[0].send_signal(signal.SIGUSR1)
        assert [ended(process) for process in processes] == [train.REQUEUE * stopped] * 2, said(tmp_path / "log")
    assert "Stopped by SIGUSR1" in said(tmp_path / "log")
    assert trained_alike(tmp_path / "model", two_processes)


def test_mistake_in_the_config_is_said_once(options, tmp_path):
    assert finish(start(options, "save_path", tmp_path, "batch_size", 1, world=2, log=tmp_path / "log")) == [1, 1]
    text = said(tmp_path / "log") + said(tmp_path / "log", 1)
    assert text.count("error: ") == 1 and "TRAIN.batch_size: 1 over 2 process(es)" in text
