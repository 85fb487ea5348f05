"""The data of a training: loaders and their worker processes, the check of every file, class weights."""

import math
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader

from util import distributed
from util.augmentation import build_augmentation
from util.common import Mistake, first_few
from util.dataset import EpochSampler, SemData, count_pixels, worker_init
from util.image import read_label
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
    """Single whole images; process r of n reads the images r, r + n, r + 2n, ..."""
    mine = range(distributed.rank(), len(data), distributed.world_size())
    return DataLoader(data, None, sampler=mine, worker_init_fn=worker_init, **worker_settings(cfg))


def worker_settings(cfg) -> dict:
    """Worker processes of this process: `workers` is for the whole machine, and more than it has cores only cost memory."""
    workers = math.ceil(min(cfg.workers, os.cpu_count() or 1) / distributed.local_world_size())
    if not workers:
        return {"num_workers": 0}
    fork = "fork" if sys.platform == "linux" else None  # the forkserver of Python 3.14 hides a worker's death
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


def look_at(samples, title) -> list:
    """`data.look(index)` of every (data, index): the pixels of its classes and what is wrong with its files."""
    bar, found = ProgressBar(title, len(samples)), []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # OpenCV decodes without holding Python's lock
        try:
            for result in pool.map(lambda sample: sample[0].look(sample[1]), samples):
                found.append(result)
                bar.show(len(found))
        finally:
            bar.clear()
            pool.shutdown(cancel_futures=True)
    return found


def check_data(*datasets) -> None:
    """Read every image and label once before the first step. Mistake with all faults, and if a list has no labelled pixel."""
    datasets = [data for data in datasets if data is not None]
    samples = [(data, index) for data in datasets for index in range(len(data))]
    mine = samples[distributed.rank() :: distributed.world_size()]
    found = look_at(mine, "Checking the data")
    faults = distributed.gather([fault for _, fault in found if fault])
    if faults:
        listed = first_few(faults, 10, "\n")
        raise Mistake(f"{len(faults)} of {len(samples)} samples are faulty:\n{listed}")
    labelled = {data.list_path for (data, _), (pixels, _) in zip(mine, found) if pixels[:-1].any()}
    labelled = distributed.gather([*labelled])
    for data in datasets:
        if data.list_path not in labelled:
            raise Mistake(nothing_labelled(data))


def nothing_labelled(data) -> str:
    """The message for a list without a labelled pixel."""
    return f"{data.list_path}: every pixel of the {len(data)} labels is ignore_label = {data.ignore_label}"


def class_weights(pixels):
    """Median frequency balancing, (K,) float64; nan for a class without a pixel (Eigen & Fergus 2015).

    weight = median of all frequencies / frequency of the class; its frequency is its share of the images it is in.
    pixels: for each image the pixels of each class and, last, of void, (K + 1,).
    """
    pixels = np.stack(pixels)
    inside = (pixels.sum(1, keepdims=True) * (pixels > 0)).sum(0)[:-1]
    frequency = np.divide(pixels.sum(0)[:-1], inside, out=np.full(len(inside), np.nan), where=inside > 0)
    return np.nanmedian(frequency) / frequency if inside.any() else frequency


def automatic_class_weights(kind, pairs, classes, ignore_label=255):
    """Weights, (K,) list of floats, from the labels of [(image path, label path)]; 1 for absent classes.

    kind: `auto`, median frequency balancing; `sqrt`, its square roots, between that and equal weights.
    """
    with ThreadPoolExecutor() as pool:
        pixels = list(pool.map(lambda pair: count_pixels(read_label(pair[1]), classes, ignore_label), pairs))
    weights = np.nan_to_num(class_weights(pixels), nan=1.0)
    return (np.sqrt(weights) if kind == "sqrt" else weights).tolist()
