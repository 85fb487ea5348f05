"""Any number of processes does what one does; who a process is, by the variables of its launcher."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import types

import pytest
import torch
from processes import CONFIG, finish, free_port, noted, said, seen, small_training, start
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from tool import train
from util import distributed
from util.checkpoint import load_checkpoint
from util.common import Mistake
from util.config import ROOT
from util.run import State


@pytest.fixture(scope="module")
def options(toy):
    """No dropout, whose numbers each process draws for itself."""
    return small_training(toy, save_freq=2, dropout=0, base_lr=1e-3, head_lr_factor=10)


# BatchNorm over the 1x1 bin of four small crops makes ten times more of a rounding error in every iteration, so the arithmetic
# is compared in double precision (the loss itself is always float32).
DOUBLE = {"dtype": torch.float64}


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    assert finish(start(options, "save_path", folder, "evaluate", False, log=folder / "log", **DOUBLE)) == [0]
    return folder


@pytest.mark.parametrize("world, workers", [(1, 2), (2, 2), (3, 0), (4, 0)])
def test_any_number_of_processes_and_workers_trains_like_one(world, workers, options, alone, tmp_path):
    more = ["save_path", tmp_path, "workers", workers, "evaluate", False]
    processes = start(options, *more, world=world, log=tmp_path / "log", **DOUBLE)
    assert finish(processes) == [0] * world, said(tmp_path / "log")
    assert "FutureWarning" not in said(tmp_path / "log")
    parts = [seen(tmp_path / "log", rank) for rank in range(world)]
    assert [sum(batch, []) for batch in zip(*parts)] == seen(alone / "log")  # the same samples, augmented in the same way
    torch.testing.assert_close(noted(tmp_path), noted(alone), rtol=0, atol=1e-5)
    ours, theirs = (load_checkpoint(path / "train_epoch_2.pth")["state_dict"] for path in (tmp_path, alone))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("loss", [["loss", "ohem", "ohem_min_kept", 500], ["loss", "dice"]], ids=lambda words: words[1])
def test_losses_of_the_whole_batch_train_alike_over_two_processes(loss, options, tmp_path):
    for world in (1, 2):
        more, log = [*loss, "evaluate", False, "save_path", tmp_path / str(world)], tmp_path / f"log{world}"
        assert finish(start(options, *more, world=world, log=log, **DOUBLE)) == [0] * world, said(log)
    torch.testing.assert_close(noted(tmp_path / "1"), noted(tmp_path / "2"), rtol=0, atol=1e-5)
    ours, theirs = (load_checkpoint(tmp_path / f"{world}/train_epoch_2.pth")["state_dict"] for world in (1, 2))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def before_validation(narrow, options, tmp_path_factory):
    """A checkpoint from between the last iteration and a validation, which failed."""
    folder = tmp_path_factory.mktemp("validation")
    (folder / "cut.png").write_bytes(b"\x89PNG")
    (folder / "list.txt").write_text(f"{folder}/cut.png {folder}/cut.png")
    more = ["save_path", folder, "epochs", 1, "val_list", folder / "list.txt", "check_data", False]
    assert train.main(["--config", CONFIG, *options, *map(str, more)]) == 1
    return folder / "train_epoch_0_iter_3.pth"


def test_validation_and_test_score_the_same_to_the_last_digit_over_1_2_and_3_processes(options, before_validation, tmp_path):
    results, losses = [], []
    for world in (1, 2, 3):
        folder, log = tmp_path / str(world), tmp_path / f"log{world}"
        more = ["save_path", folder, "resume", before_validation, "epochs", 1]
        assert finish(start(options, *more, world=world, log=log)) == [0] * world, said(log)
        more = ["model_path", before_validation, "save_folder", folder, "scales", "[0.75, 1.0]", "boundary_iou", True]
        assert finish(start(options, *more, world=world, log=log, program="tool.test")) == [0] * world, said(log)
        *_, validation = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        tested = json.loads((folder / "result.json").read_text())
        assert len(list((folder / "gray").iterdir())) == 5 and tested["protocol"]["images"] == 5
        results.append([validation[f"{name}_val"] for name in ("mIoU", "mAcc", "allAcc")])
        results[-1] += [tested[name] for name in ("mIoU", "mAcc", "allAcc")] + [c["intersection"] for c in tested["classes"]]
        results[-1] += [c["boundary_iou"] for c in tested["classes"]] + [(folder / "images.csv").read_bytes()]
        losses.append(validation["loss_val"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-9)
    assert results[0] == results[1] == results[2] and results[0][0] > 0


# ---- launchers ----


@pytest.fixture
def variables(monkeypatch):
    """os.environ without a launcher's variables; restored afterwards, whatever the code under test sets."""
    launchers = ("SLURM", "OMPI", "PMIX", "MASTER", "RANK", "WORLD", "LOCAL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    monkeypatch.setattr(os, "environ", kept)
    return kept


SLURM = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8"}
SLURM |= {"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_NODEID": "1"}
MPI = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}
MPI |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "665583617"}


def who(variables):
    return [variables.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")]


def test_variables_of_srun_become_those_of_torchrun(variables):
    variables |= SLURM
    distributed.adopt_launcher()
    assert who(variables) == ["5", "8", "1", "4", "gpu07"]
    port = variables["MASTER_PORT"]
    assert 20000 <= int(port) < 30000
    for name in ("RANK", "MASTER_PORT"):
        del variables[name]
    variables["SLURM_STEP_ID"] = "1"  # two trainings on one machine do not meet
    distributed.adopt_launcher()
    assert variables["MASTER_PORT"] != port


def test_variables_of_mpirun_become_those_of_torchrun_also_under_slurm(variables):
    variables |= SLURM | MPI
    distributed.adopt_launcher()
    assert who(variables) == ["2", "4", "2", "4", "127.0.0.1"]


def test_mpirun_over_several_machines_asks_for_the_address_of_the_first(variables):
    variables |= MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    with pytest.raises(ValueError, match="mpirun -x MASTER_ADDR=HOST"):
        distributed.adopt_launcher()
    variables["MASTER_ADDR"] = "gpu07"
    distributed.adopt_launcher()
    assert who(variables) == ["2", "4", "2", "2", "gpu07"]


def test_torchrun_inside_srun_knows_better(variables):
    own = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "here"}
    variables |= SLURM | own
    distributed.adopt_launcher()
    assert who(variables) == list(own.values())


@pytest.mark.parametrize(
    "alone",
    [
        {},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "77"},
        SLURM | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
    ],
    ids=["no launcher", "batch script", "srun of one task", "mpirun of one"],
)
def test_a_single_process_is_left_alone(variables, alone):
    variables |= alone
    distributed.adopt_launcher()
    assert who(variables) == [None] * 5


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("vm", "vm"),
        ("gpu07,gpu09", "gpu07"),
        ("gpu[07-08,12],login", "gpu07"),
        ("rack[2-3]n[1,4]-ib,x", "rack2n1-ib"),
        ("a-b[3]", "a-b3"),
    ],
)
def test_first_host_of_a_slurm_list(nodes, first):
    assert distributed.first_host(nodes) == first


def test_srun_that_fills_the_first_machine_tells_each_its_own_number(variables):
    variables |= SLURM | {"SLURM_STEP_TASKS_PER_NODE": "7,1", "SLURM_PROCID": "7", "SLURM_LOCALID": "0"}
    distributed.adopt_launcher()
    assert who(variables)[2:4] == ["0", "1"]
    assert distributed.tasks_per_node("4(x2),1") == ["4", "4", "1"]


@pytest.fixture
def torchrun(variables, monkeypatch):
    """Calls of torch's launcher, parsed and remembered instead of run."""
    calls, before = [], signal.getsignal(signal.SIGUSR1)
    monkeypatch.setattr("torch.distributed.run.run", calls.append)
    yield calls
    signal.signal(signal.SIGUSR1, before)


def test_port_that_is_taken_or_is_none_is_named(variables, monkeypatch, capsys):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    port = free_port()
    where = ["--nnodes=1", "--master-addr=127.0.0.1", "--master-port"]
    with socket.create_server(("", port)):
        assert distributed.torchrun([*where, str(port), "train.py"]) == 1
    assert f"error: port {port} is in use" in capsys.readouterr().err
    assert distributed.torchrun([*where, "99999", "train.py"]) == 1
    with pytest.raises(ValueError, match="invalid literal"):
        distributed.torchrun(["--nnodes=x", "train.py"])
    assert "99999" in (error := capsys.readouterr().err) and error.startswith("error: ") and "PORT and MASTER_ADDR" in error


def test_several_gpus_start_one_process_each(torchrun, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    with pytest.raises(Mistake, match=r"train_gpu or test_gpu: \[0, 6\], and CUDA sees 6 GPU\(s\); name those that are there"):
        distributed.launch("train.py", [], (0, 6))
    assert distributed.launch("train.py", ["--config", "a b.yaml", "epochs", "3"], (0, 1, 5)) == 0
    (call,) = torchrun
    assert call.nproc_per_node == "3" and call.standalone and call.training_script == "train.py"
    assert call.training_script_args == ["--config", "a b.yaml", "epochs", "3"]
    assert os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "300"


def test_nothing_is_started_for_one_gpu_on_a_cpu_or_inside_a_launcher(torchrun, variables, monkeypatch):
    assert distributed.launch("train.py", [], (0, 1)) is None  # no CUDA here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert distributed.launch("train.py", [], (3,)) is None
    assert distributed.launch("train.py", [], None) is None
    variables["RANK"] = "0"
    assert distributed.launch("train.py", [], (0, 1)) is None
    assert not torchrun


def test_old_keys_for_several_machines_become_the_launchers_and_it_is_said_what_it_waits_for(torchrun, capsys):
    assert distributed.launch("train.py", [], None, machines=2, machine=1, url="tcp://10.0.0.1:6789") == 0
    (call,) = torchrun
    assert (call.nnodes, call.node_rank, call.master_addr, call.master_port) == ("2", 1, "10.0.0.1", 6789)
    assert "Machine 1 of 0..1: waiting until all of them have met at 10.0.0.1:6789" in capsys.readouterr().out
    with pytest.raises(ValueError, match="dist_url: env://: expected tcp://HOST:PORT"):
        distributed.launch("train.py", [], None, machines=2, url="env://")


@pytest.mark.parametrize("size, reason", [("2", "RANK expected"), ("auto", "invalid literal"), ("", "invalid literal")])
def test_a_world_size_of_no_launcher_is_one_message(monkeypatch, size, reason):
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(Mistake, match=f"WORLD_SIZE is {size}: .*{reason}.*start with torchrun, or unset WORLD_SIZE"):
        distributed.init_process_group(torch.device("cpu"))


@pytest.mark.parametrize("ends, status", [(75, 75), (1, 1), (-9, 247)])
def test_status_of_a_failed_process_is_that_of_the_program(torchrun, monkeypatch, ends, status):
    def run(_):
        failure = types.SimpleNamespace(exitcode=ends, timestamp=0, local_rank=0, pid=1, signal_name=lambda: "", message="")
        failed = ChildFailedError.__new__(ChildFailedError)
        failed.failures, failed.name = {0: failure}, "train.py"
        raise failed

    monkeypatch.setattr("torch.distributed.run.run", run)
    assert distributed.launch("train.py", [], None, machines=2, url="tcp://a:1") == status


def test_signal_to_the_launching_process_is_handed_on_and_means_start_again(torchrun, monkeypatch):
    monkeypatch.setattr("torch.distributed.run.run", lambda _: os.kill(os.getpid(), signal.SIGUSR1) or time.sleep(1))
    assert distributed.launch("train.py", [], None, machines=2, url="tcp://a:1") == distributed.REQUEUE


def test_a_signal_that_no_training_saves_at_is_the_status(torchrun, monkeypatch):
    stopped = SignalException("", sigval=signal.SIGQUIT)
    monkeypatch.setattr("torch.distributed.run.run", lambda _: (_ for _ in ()).throw(stopped))
    assert distributed.torchrun(["train.py"]) == 128 + signal.SIGQUIT


def test_gpu_of_a_process_is_the_one_at_its_local_rank(variables, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    variables["LOCAL_RANK"] = "1"
    assert distributed.pick_device((2, 3)) == torch.device("cuda", 3)
    variables["LOCAL_RANK"] = "2"
    with pytest.raises(ValueError, match=r"process 2 of this machine has no GPU: configured are \[2, 3\]"):
        distributed.pick_device((2, 3))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    variables["SLURM_STEP_ID"] = "0"
    assert distributed.pick_device((0, 1, 2)) == torch.device("cuda", 0)  # srun --gpus-per-task=1


# ---- signals and errors ----


@pytest.mark.parametrize(
    "device, backend, expected", [("cuda:3", "nccl", True), ("cuda:3", "gloo", False), ("cpu", "nccl", False)]
)
def test_nccl_is_given_its_gpu_before_the_first_exchange(device, backend, expected, monkeypatch):
    given = {}

    def init_process_group(backend, store, rank, world_size, device_id=None, timeout=None):
        given.update(backend=backend, device_id=device_id, timeout=timeout)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed.dist, "rendezvous", lambda _: iter([(torch.distributed.HashStore(), 0, 1)]))
    monkeypatch.setattr(distributed.dist, "init_process_group", init_process_group)
    distributed.init_process_group(torch.device(device), backend)
    assert given["device_id"] == (torch.device("cuda:3") if expected else None)
    assert given["backend"] == ("gloo" if device == "cpu" else backend) and given["timeout"].total_seconds() == 3600


@pytest.fixture
def stop():
    before = [signal.getsignal(number) for number in distributed.STOPPING]
    yield distributed.StopSignal()
    for number, handler in zip(distributed.STOPPING, before):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", distributed.STOPPING)
def test_first_signal_is_remembered(stop, number):
    assert not stop.requested()
    os.kill(os.getpid(), number)
    assert stop.requested() and stop.name() == number.name


def test_nohup_stays(stop, torchrun, monkeypatch):
    """torch's launcher would listen to SIGHUP again."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    distributed.StopSignal()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert distributed.torchrun(["--nproc-per-node=2", "train.py"]) == 0
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert distributed.torchrun(["--nproc-per-node=2", "train.py"]) == 0
    first, second = (getattr(call, "signals_to_handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT") for call in torchrun)
    assert first == second.replace("SIGHUP,", "")


def test_second_ctrl_c_ends_at_once_but_not_the_copy_that_a_launcher_hands_on(stop):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested()
    stop.time -= 2
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_error_of_all_processes_is_said_by_the_first_of_each_machine(variables, monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)

    def fail():
        with distributed.same_errors():
            raise Mistake("wrong")

    variables["LOCAL_RANK"] = "0"
    with pytest.raises(Mistake):
        fail()
    assert not waited
    variables["LOCAL_RANK"] = "1"
    with pytest.raises(SystemExit, match="1"):
        fail()
    assert waited  # torchrun ends the first one where another ends before it


# ---- seeds ----


def dropped(cfg, rank, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    train.seed_iteration(types.SimpleNamespace(cfg=cfg, state=State(11, seed=7)))
    return torch.rand(5).tolist()


def test_dropout_differs_between_processes_unless_diff_seed_is_off(monkeypatch):
    on, off = types.SimpleNamespace(diff_seed=True), types.SimpleNamespace(diff_seed=False)
    assert dropped(on, 0, monkeypatch) == dropped(off, 0, monkeypatch) == dropped(off, 1, monkeypatch)
    assert dropped(on, 1, monkeypatch) != dropped(on, 0, monkeypatch)


def test_a_gpu_that_no_key_names_is_pointed_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.warns(UserWarning, match=r'running on the CPU, since train_gpu or test_gpu is empty; "\[0\]" is the first GPU'):
        assert distributed.pick_device(None).type == "cpu"


@pytest.mark.parametrize("screen", ["", ">&-", "2>&-"])
@pytest.mark.parametrize("size, ends", [("1", True), ("2", False)])
def test_one_of_several_processes_leaves_past_the_interpreters_end_with_all_it_said(size, ends, screen, tmp_path):
    """There a thread of gloo that still held a tensor aborted a run that was finished and saved, on a busy machine."""
    code = """
import atexit, os, sys
class Last:
    def __del__(self, write=os.write, file=os.open("end", os.O_CREAT | os.O_WRONLY)):
        write(file, b"the interpreter ends")
last = Last()
atexit.register(lambda: open("closed", "w").close())
from util import distributed
with distributed.exits_at_once():
    print("said", end="")
    sys.exit(75)
"""
    command = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} {screen}"
    variables = os.environ | {"WORLD_SIZE": size, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert process.returncode == 75, process.stderr
    assert process.stdout == ("" if screen == ">&-" else "said")
    assert (tmp_path / "closed").exists() and (tmp_path / "end").read_text() == "the interpreter ends" * ends


def test_the_programs_leave_so():
    for program in ("train", "test"):
        text = (ROOT / f"tool/{program}.py").read_text()
        assert text.endswith("with distributed.exits_at_once():\n        sys.exit(main())\n")


def test_deterministic_switches_to_kernels_that_repeat_themselves(variables):
    try:
        distributed.make_deterministic()
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        assert variables["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


# ---- what differs between processes ----


def test_without_sync_bn_all_processes_validate_the_network_that_is_saved(options, tmp_path):
    """The running statistics of each process are its own; those of the main one count."""
    more = ["sync_bn", False, "save_path", tmp_path, "main_metric", "loss", "check_data", False]
    assert finish(start(options, *more, world=2, log=tmp_path / "log")) == [0, 0], said(tmp_path / "log")
    *_, line = [line for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()) if "loss_val" in line]
    last = tmp_path / "train_epoch_2.pth"
    again = ["model_path", last, "save_path", tmp_path, "save_folder", tmp_path / "test", "flip", False]
    assert finish(start(options, *again, log=tmp_path / "log1", program="tool.test")) == [0], said(tmp_path / "log1")
    result = json.loads((tmp_path / "test/result.json").read_text())
    assert [result[name] for name in ("mIoU", "mAcc", "allAcc")] == [line[f"{name}_val"] for name in ("mIoU", "mAcc", "allAcc")]


def test_a_mistake_of_one_process_alone_is_reported_and_ends_all(options, alone, tmp_path):
    variables = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    (tmp_path / "cut.pth").write_bytes(b"PK")
    processes = []
    for rank, weight in enumerate((alone / "train_epoch_2.pth", tmp_path / "cut.pth")):
        own = {**variables, "RANK": rank, "LOCAL_RANK": rank}
        more = ["save_path", tmp_path / "model", "weight", weight]
        processes += start(options, *more, variables=own, log=tmp_path / f"log{rank}")
    assert finish(processes) == [1, 1]
    text = said(tmp_path / "log1")
    assert "cut.pth: not a readable checkpoint" in text and "Traceback" not in text
    assert "error" not in said(tmp_path / "log0")
