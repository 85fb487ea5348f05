"""What feeds a training: batches of augmented samples, the worker processes that make them, and a look at every file first."""

import math
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader

from util import distributed
from util.augmentation import build_augmentation
from util.check import automatic_class_weights  # noqa: F401
from util.dataset import EpochSampler, SemData, worker_init
from util.log import ProgressBar


def build_data(cfg):
    """Training set, augmented, and validation set of whole images (None without `evaluate`). The seed of the run is to be set
    as `seed` of the training set."""
    how = {"classes": cfg.classes, "ignore_label": cfg.ignore_label, "cache": cfg.cache}
    train_data = SemData("train", cfg.data_root, cfg.train_list, build_augmentation(cfg), **how)
    return train_data, SemData("val", cfg.data_root, cfg.val_list, None, **how) if cfg.evaluate else None


def build_loader(cfg, data, seed, device):
    """Batches of this process. The order depends on (seed, epoch) alone, whatever the number of processes and workers."""
    sampler = EpochSampler(
        len(data), cfg.batch_size, seed=seed, epoch=0, rank=distributed.rank(), world_size=distributed.world_size()
    )
    workers = worker_settings(cfg)
    return DataLoader(
        data,
        batch_sampler=sampler,
        worker_init_fn=worker_init,
        persistent_workers=workers["num_workers"] > 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(seed * 1009 + distributed.rank()),  # for transforms with numbers of their own
        **workers,
    )


def build_val_loader(cfg, data):
    """Single whole images, every n-th of them in each of n processes."""
    mine = range(distributed.rank(), len(data), distributed.world_size())
    return DataLoader(data, None, sampler=mine, worker_init_fn=worker_init, **worker_settings(cfg))


def worker_settings(cfg) -> dict:
    """Worker processes of this process: `workers` is for the whole machine, and more than it has cores only cost memory."""
    workers = math.ceil(min(cfg.workers, os.cpu_count() or 1) / distributed.local_world_size())
    if not workers:
        return {"num_workers": 0}
    fork = "fork" if sys.platform == "linux" else None  # Python 3.14 would put a server between, and a worker's death go unseen
    return {"num_workers": workers, "timeout": cfg.loader_timeout, "multiprocessing_context": fork}


@contextmanager
def end_workers():
    """At the end, kill the loader workers that an error leaves behind: the program would wait for ever for one that hangs."""
    try:
        yield
    finally:
        for child in multiprocessing.active_children():
            if child.daemon:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report their death as another error
                child.kill()


def check_data(*datasets) -> None:
    """Read every image and label once, and report all that is wrong at once: better now than in the middle of the night."""
    samples = [(data, index) for data in datasets if data is not None for index in range(len(data))]
    mine = samples[distributed.rank() :: distributed.world_size()]
    bar = ProgressBar("Checking the data", len(mine))

    def mistake(sample):
        data, index = sample
        try:
            data.read(index)
        except (ValueError, OSError) as error:
            return str(error)
        return None

    mistakes = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # OpenCV decodes without holding Python's lock
        for done, found in enumerate(pool.map(mistake, mine), 1):
            mistakes += [found] if found else []
            bar.show(done)
    bar.clear()
    mistakes = distributed.gather(mistakes)
    if mistakes:
        more = f"\n... and {len(mistakes) - 10} more" if len(mistakes) > 10 else ""
        raise ValueError(f"{len(mistakes)} of {len(samples)} samples are faulty:\n" + "\n".join(mistakes[:10]) + more)
