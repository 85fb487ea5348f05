"""Who am I among the processes? Every function also answers in a single process, so callers never branch."""

import functools
import os
import signal
import warnings

import torch
import torch.distributed as dist
import torch.distributed.nn as dist_nn
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """True in the one process that prints and writes files."""
    return rank() == 0


def pick_device(gpus) -> torch.device:
    """The device of this process. gpus: ids from `train_gpu` or `test_gpu`; None or empty means CPU.

    Without CUDA the ids are ignored with one warning, so a config written for eight GPUs runs on a laptop.
    """
    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        warnings.warn(f"GPUs {list(gpus)} are configured but CUDA is not available; running on the CPU", stacklevel=2)
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if local_rank >= len(gpus) or gpus[local_rank] >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this machine has no GPU: configured are {list(gpus)}, "
            f"and CUDA sees {torch.cuda.device_count()}; correct train_gpu or test_gpu"
        )
    device = torch.device("cuda", gpus[local_rank])
    torch.cuda.set_device(device)
    return device


def init_process_group(device: torch.device, backend: str = "nccl") -> None:
    """Join the process group of the launcher (torchrun's variables RANK, WORLD_SIZE, ...), if one started us."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group(backend if device.type == "cuda" else "gloo")


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def from_main(value):
    """The main process's `value`, in every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def wrap(network: nn.Module, device: torch.device, sync_bn: bool) -> nn.Module:
    """The network as one of several processes trains it; alone, as it is."""
    if world_size() == 1:
        return network
    if sync_bn:
        convert = nn.SyncBatchNorm.convert_sync_batchnorm if device.type == "cuda" else _convert_cpu_sync_batchnorm
        network = convert(network)
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """nn.SyncBatchNorm works on GPUs alone; this is the same on CPUs: mean and variance over the batches of all processes.

    The all-reduce is differentiable, so autograd finds the gradient through the shared statistics by itself.
    """

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        dims = (0, 2, 3)
        n = all_reduce_sum(torch.tensor(float(x.numel() // x.shape[1]), dtype=x.dtype))
        mean = dist_nn.all_reduce(x.sum(dims)) / n
        centred = x - mean[:, None, None]
        variance = dist_nn.all_reduce(centred.square().sum(dims)) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


def _convert_cpu_sync_batchnorm(module: nn.Module) -> nn.Module:
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.__class__ = CpuSyncBatchNorm  # same parameters and buffers, another forward
    return module


class StopSignal:
    """Remembers SIGTERM and SIGUSR1 (schedulers) and the first Ctrl-C; the program finishes its iteration and saves."""

    def __init__(self):
        self.received = 0
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number, _frame):
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C means: now

    def requested(self) -> bool:
        """True once any process got a signal, in all of them at the same iteration."""
        if world_size() == 1:
            return self.received > 0
        flag = torch.tensor(self.received)
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=_host_group())
        self.received = int(flag)
        return self.received > 0

    def name(self) -> str:
        return signal.Signals(self.received).name


@functools.cache
def _host_group():
    """A group over gloo, which exchanges host memory: asking a GPU would make the host wait for its queue."""
    return dist.new_group(backend="gloo")


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
