"""Distributed helpers that also work in one process, so that callers never branch."""

import atexit
import inspect
import math
import os
import re
import signal
import sys
import time
import uuid
import warnings
import zlib
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from util.common import STOPPING, Mistake, first_line

ALONE = timedelta(hours=1)  # at most: a process fetches weights, counts labels or ends its part of a test, and the others wait
REQUEUE = 75  # EX_TEMPFAIL, the exit status after a signal: schedulers can be told to start a job that ends so again


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """True in the one process that logs and writes files."""
    return rank() == 0


# ---- start ----


def adopt_launcher() -> None:
    """Set torchrun's variables, which torch reads (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_*), from those of mpirun or srun.

    torchrun comes first, since srun may start it, then mpirun, which srun may start as well.
    """
    env = os.environ
    if "RANK" in env:
        return
    if "OMPI_COMM_WORLD_RANK" in env:
        ours, size, local = (env[f"OMPI_COMM_WORLD_{name}"] for name in ("RANK", "SIZE", "LOCAL_RANK"))
        local_size = env["OMPI_COMM_WORLD_LOCAL_SIZE"]
        host = "127.0.0.1" if local_size == size else None
        job = env.get("PMIX_NAMESPACE", "")
    elif "SLURM_STEP_NUM_TASKS" in env:  # set by srun alone; SLURM_PROCID stands in a batch script too, which is one process
        ours, size, local = env["SLURM_PROCID"], env["SLURM_STEP_NUM_TASKS"], env["SLURM_LOCALID"]
        local_size = tasks_per_node(env["SLURM_STEP_TASKS_PER_NODE"])[int(env["SLURM_NODEID"])]
        host = first_host(env["SLURM_STEP_NODELIST"])
        job = f"{env['SLURM_JOB_ID']}.{env['SLURM_STEP_ID']}"
    else:
        return
    if size == "1":
        return
    env.setdefault("MASTER_PORT", str(20000 + zlib.crc32(job.encode()) % 10000))  # another one for every job
    if "MASTER_ADDR" not in env and host is None:
        raise Mistake("mpirun over several machines: state where the first process is, `mpirun -x MASTER_ADDR=HOST ...`")
    env.setdefault("MASTER_ADDR", host or "")
    env.update(RANK=ours, WORLD_SIZE=size, LOCAL_RANK=local, LOCAL_WORLD_SIZE=local_size)


def first_host(nodes: str) -> str:
    """The first of SLURM's list of machines: gpu[03-05,9],login -> gpu03."""
    first = re.match(r"([^,\[]|\[[^\]]*\])+", nodes).group()
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def tasks_per_node(text: str) -> list[str]:
    """SLURM's list of the processes of each machine: 4(x2),1 -> 4, 4, 1."""
    return [count for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))]


def launch(script, argv, gpus, *, machines=1, machine=0, url="") -> int | None:
    """Start `script argv` once for each of `gpus` with torch's own launcher and wait; returns the status to exit with.

    Returns None where there is nothing to start: this process is one of a launcher's, or the only one. With several
    machines the same command starts on each, with its own number `machine`, and the rendezvous is at `url`, tcp://HOST:PORT.
    """
    processes = len(gpus) if gpus and torch.cuda.is_available() else 1
    if "RANK" in os.environ or processes * machines == 1:
        return None
    if processes > 1 and max(gpus) >= torch.cuda.device_count():
        seen = torch.cuda.device_count()
        raise Mistake(f"train_gpu or test_gpu: {list(gpus)}, and CUDA sees {seen} GPU(s); name those that are there")
    where = ["--standalone"]
    if machines > 1:
        found = re.fullmatch(r"tcp://(.+):(\d+)", url)
        if not found:
            raise Mistake(f"dist_url: {url}: expected tcp://HOST:PORT, the address of the first of the {machines} machines")
        address, port = found.groups()
        where = [f"--nnodes={machines}", f"--node-rank={machine}", f"--master-addr={address}", f"--master-port={port}"]
        print(f"Machine {machine} of 0..{machines - 1}: waiting until all of them have met at {address}:{port}", flush=True)
    return torchrun([*where, f"--nproc-per-node={processes}", str(script), *argv])


def torchrun(words) -> int:
    """torch's own launcher with these arguments; returns the status to exit with, which after a signal is that of a training
    that was stopped. It also hands on SIGUSR1 and heeds nohup. `train_dist.sh` runs this module as a program for that."""
    from torch.distributed import run  # here, since most processes start no others
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    def pass_on(number, _frame):  # torch's launcher does so for SIGTERM and SIGINT
        raise SignalException("passed on", signal.Signals(number))

    signal.signal(signal.SIGUSR1, pass_on)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")  # seconds until it kills them; they save after an iteration
    arguments = run.parse_args(words)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # of nohup; it would listen to SIGHUP again, and the processes do not
        arguments.signals_to_handle = "SIGTERM,SIGINT,SIGQUIT"
    try:
        run.run(arguments)
    except (dist.DistNetworkError, dist.DistStoreError, ValueError) as error:
        if isinstance(error, ValueError) and "port number" not in str(error):
            raise
        taken = f"port {arguments.master_port} is in use; give this run another"
        what = taken if "EADDRINUSE" in str(error) else first_line(error)
        print(f"error: {what} (PORT and MASTER_ADDR of train_dist.sh, dist_url)", file=sys.stderr)
        return 1
    except ChildFailedError as failed:
        return failed.get_first_failure()[1].exitcode % 256  # that of a killed process is negative
    except SignalException as stopped:  # the processes got the signal too
        return REQUEUE if stopped.sigval in STOPPING else 128 + stopped.sigval
    return 0


def pick_device(gpus) -> torch.device:
    """The device of this process. gpus: ids from `train_gpu` or `test_gpu`; None or empty means CPU, said where CUDA is there.

    Without CUDA the ids are ignored with one warning, so a config written for eight GPUs runs on a laptop.
    """
    if not gpus:
        if torch.cuda.is_available():
            warnings.warn('running on the CPU, since train_gpu or test_gpu is empty; "[0]" is the first GPU', stacklevel=2)
        return torch.device("cpu")
    if not torch.cuda.is_available():
        warnings.warn(f"GPUs {list(gpus)} are configured but CUDA is not available; running on the CPU", stacklevel=2)
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if "SLURM_STEP_ID" in os.environ and torch.cuda.device_count() == 1:
        local_rank = 0  # srun --gpus-per-task=1 shows each process its own GPU alone
    if local_rank >= len(gpus) or gpus[local_rank] >= torch.cuda.device_count():
        raise Mistake(
            f"process {local_rank} of this machine has no GPU: configured are {list(gpus)}, "
            f"and CUDA sees {torch.cuda.device_count()}; correct train_gpu or test_gpu, or start fewer processes"
        )
    device = torch.device("cuda", gpus[local_rank])
    torch.cuda.set_device(device)
    return device


def init_process_group(device: torch.device, backend: str = "nccl") -> None:
    """Join the process group of the launcher (torchrun's variables RANK, WORLD_SIZE, ...), if one started us."""
    size = os.environ.get("WORLD_SIZE", "1")
    try:
        if int(size) < 2 or dist.is_initialized():
            return
        store, rank, world = next(dist.rendezvous("env://"))
    except ValueError as error:  # WORLD_SIZE without the others, or one that is no number
        raise Mistake(f"WORLD_SIZE is {size}: {error}; start with torchrun, or unset WORLD_SIZE") from error
    store = dist.PrefixStore(_name_of_start(store, rank, world), store)
    backend = backend if device.type == "cuda" else "gloo"
    own_gpu = device if backend == "nccl" else None  # else a barrier of NCCL guesses the GPU from the rank
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, device_id=own_gpu, timeout=ALONE)


def _name_of_start(store, rank, world) -> str:
    """A name that the processes of this start share, and those of no earlier start.

    torchrun keeps its store when it replaces processes, with the addresses of the dead ones in it: a process that reads those
    waits for ever. So the main process publishes a new name; each other one registers a new name of its own under it
    (repeatedly, since it may have read the name of a dead main process), and waits for the answer there.
    """
    name = uuid.uuid4().hex
    if rank == 0:
        store.set("start", name)
        for other in [store.get(f"{name}/{r}") for r in range(1, world)]:
            store.set(other.decode(), name)
        return name
    while not store.check([name]):
        store.set(f"{store.get('start').decode()}/{rank}", name)
        time.sleep(0.05)
    return store.get(name).decode()


def make_deterministic() -> None:
    """Kernels that repeat their results bit by bit; where CUDA has none, torch warns with the name of the operation."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


# ---- exchange ----


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def differentiable_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes; its gradient is summed over them as well."""
    return _Sum.apply(tensor) if world_size() > 1 else tensor


def from_main(value):
    """The main process's `value`, in every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def gather(items: list) -> list:
    """The items of all processes in one list, in all of them."""
    if world_size() == 1:
        return items
    lists = [None] * world_size()
    dist.all_gather_object(lists, items)
    return [item for part in lists for item in part]


@contextmanager
def same_errors():
    """A mistake that one process finds, or all of them, ends all: the first process that has one raises it, the others exit.

    Before the processes have met, each machine's first one raises.
    """
    mistake = leaving = None
    try:
        yield
    except Mistake as error:
        mistake = error
    except SystemExit as error:  # of `on_main`
        leaving = error
    ranks = gather([rank()] if mistake else [])
    raises = ranks[:1] == [rank()] if dist.is_initialized() else int(os.environ.get("LOCAL_RANK", 0)) == 0
    if mistake and raises:
        raise mistake
    if mistake and not dist.is_initialized():
        time.sleep(20)  # a launcher ends all processes with the first that ends, and the one with the message may come later
    if ranks or leaving:
        raise leaving or SystemExit(1)


@contextmanager
def first_error():
    """A mistake that processes find each at its own time: the first of them raises it, the others exit."""
    try:
        yield
    except Mistake:
        if dist.is_initialized() and not _is_first():
            raise SystemExit(1) from None
        raise


def _is_first() -> bool:
    try:
        return dist.distributed_c10d._get_default_store().add("first_error", 1) == 1
    except RuntimeError:
        return False  # the process that keeps the store has ended, after its message


def on_main(function):
    """`function()` in the main process while the others wait, None in those; if it fails, all processes exit."""
    result = error = None
    if is_main():
        try:
            result = function()
        except Exception as caught:
            error = caught
    if not from_main(error is None):
        raise error or SystemExit(1)
    return result


def first_on_machine(function):
    """`function()` in all processes: in the first one of each machine while the others wait, then in those, which find what it
    has fetched. If it fails with a Mistake, that is raised once and all processes exit."""
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    with same_errors():
        result = function() if first else None
    with same_errors():
        return result if first else function()


# ---- network ----


def wrap(network: nn.Module, device: torch.device, sync_bn: bool) -> nn.Module:
    """The network as one of several processes trains it; alone, as it is."""
    if world_size() == 1:
        return network
    if sync_bn:
        convert = nn.SyncBatchNorm.convert_sync_batchnorm if device.type == "cuda" else _convert_cpu_sync_batchnorm
        network = convert(network)
    ids = [device] if device.type == "cuda" else None
    known = inspect.signature(DistributedDataParallel).parameters  # torch 2.14 warns of the older name
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(network, device_ids=ids, **{name: False})  # `share_buffers`, where it is needed


def share_buffers(network: nn.Module) -> None:
    """Give every process the main one's buffers. Without sync_bn each has running statistics of its own."""
    if world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


class _Sum(torch.autograd.Function):
    """The sum over all processes; the loss is one over all of them, so the gradients of the sum add up likewise."""

    @staticmethod
    def forward(ctx, x):
        return all_reduce_sum(x.clone())

    @staticmethod
    def backward(ctx, grad):
        return all_reduce_sum(grad.clone())


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """nn.SyncBatchNorm works on GPUs alone; this is the same on CPUs: mean and variance over the batches of all processes."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        dims, dtype = (0, 2, 3), x.dtype
        x = x.to(torch.promote_types(dtype, torch.float32))  # float16 cannot represent the number of pixels
        total = _Sum.apply(torch.cat([x.sum(dims), x.new_tensor([x.numel() / x.shape[1]])]))
        n = total[-1].detach()
        mean = total[:-1] / n
        centred = x - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum(dims)) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(dtype)


def _convert_cpu_sync_batchnorm(module: nn.Module) -> nn.Module:
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.__class__ = CpuSyncBatchNorm  # same parameters and buffers, another forward
    return module


# ---- end ----


class StoppedEarly(BaseException):
    """A signal arrived while there was nothing to save; its name."""


class StopSignal:
    """Remembers SIGTERM and SIGUSR1 (schedulers), SIGHUP (the terminal is gone) and the first Ctrl-C; the program finishes its
    iteration and saves. While `early` the signal raises StoppedEarly instead: what comes before the first iteration can take
    hours."""

    def __init__(self, early=False):
        self.early = early
        self.received, self.time = 0, math.inf  # by this process
        self.agreed = 0  # by all of them
        self.group = None  # over gloo, which exchanges host memory: asking a GPU would make the host wait for its queue
        for number in STOPPING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._remember)

    def _remember(self, number, _frame):
        if number == signal.SIGINT and time.monotonic() - self.time > 1:  # sooner it is the same one, passed on by a launcher
            raise KeyboardInterrupt  # the second Ctrl-C ends the program at once
        self.received, self.time = number, min(self.time, time.monotonic())
        if self.early:
            self.early = False  # once is enough
            raise StoppedEarly(signal.Signals(number).name)

    def requested(self) -> bool:
        """True once any process got a signal, in all of them at the same iteration."""
        flag = torch.tensor(self.received)
        if world_size() > 1:
            self.group = self.group or dist.new_group(backend="gloo", timeout=ALONE)
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.group)
        self.agreed = int(flag)  # not `received`: a signal may have arrived meanwhile
        return self.agreed > 0

    def name(self) -> str:
        return signal.Signals(self.agreed).name


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def exits_at_once():
    """One of several processes leaves with its status here, past the interpreter's own end: a thread of a process group that
    still holds a tensor asks for the interpreter's lock there, and torch aborts the process, whose work is done (seen with gloo
    in torch 2.14: "terminate called without an active exception")."""
    try:
        yield
    except SystemExit as leaving:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            atexit._run_exitfuncs()  # TensorBoard's file is closed there
            for stream in filter(None, (sys.stdout, sys.stderr)):  # None: started with a closed one
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(leaving.code or 0)
        raise


if __name__ == "__main__":
    sys.exit(torchrun(sys.argv[1:]))
