"""Who am I among the processes? Every function also answers in a single process, so callers never branch."""

import os
import warnings

import torch
import torch.distributed as dist


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


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
