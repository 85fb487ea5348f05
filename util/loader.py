"""The data of a training: loaders and their worker processes, the check of every file, class weights."""

import math
import multiprocessing
import os
import signal
import sys
import time
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader

from util import distributed
from util.augmentation import build_augmentation
from util.common import Mistake, ahead, first_few
from util.dataset import EpochSampler, SemData, count_pixels, worker_init
from util.image import read_label
from util.log import ProgressBar

FIRST, SLOW_S = 300, 120  # images after which their time is known, and from when on it is said


def build_data(cfg):
    """Training set, augmented, and validation set of whole images (None without `evaluate`). The seed of the run is to be set
    as `seed` of the training set."""
    how = {"classes": cfg.classes, "ignore_label": cfg.ignore_label, "cache": cfg.cache}
    train_data = SemData("train", cfg.data_root, cfg.train_list, build_augmentation(cfg), **how)
    return train_data, SemData("val", cfg.data_root, cfg.val_list, None, **how) if cfg.evaluate else None


def build_loader(cfg, data, seed, device):
    """Batches of this process. The order depends on (seed, epoch) alone, whatever the number of processes and workers."""
    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    sampler = EpochSampler(len(data), cfg.batch_size, seed=seed, **ranks)
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
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size()))  # of this machine
    workers = math.ceil(min(cfg.workers, os.cpu_count() or 1) / processes)
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


def look_at(samples, total, title, say=lambda text: None):
    """Yield (data, *data.look(index)) for every sample (data, index): the pixels of its classes, what is wrong with its files.

    total: how many there are. `say` gets how long it will take, if that is long, and then the progress.
    """
    bar, start, slow = ProgressBar(title, total), time.monotonic(), False
    threads = os.cpu_count() or 1  # OpenCV decodes without holding Python's lock
    try:
        looks = ahead(lambda sample: (sample[0], *sample[0].look(sample[1])), samples, threads, 4 * threads)
        for done, look in enumerate(looks, 1):
            yield look
            bar.show(done)
            if done == FIRST:
                left = (time.monotonic() - start) / done * (total - done)
                if slow := left > SLOW_S:
                    say(f"{title}: about {left / 60:.0f} minutes for {total} images (`check_data 1000`: so many of each list)")
            elif slow and done * 10 // total > (done - 1) * 10 // total:
                say(f"{title}: {done}/{total}")
    finally:
        bar.clear()


def check_data(*datasets, count=True, say=lambda text: None) -> None:
    """Read every image and label before the first step, or, if `count` is a number, so many of each list, evenly spread.

    Mistake with all faults, and if a list that is read as a whole has no labelled pixel. `say` gets the classes without a pixel
    in such a list; the time that it takes, if that is long; and how much of the lists was read, if not all.
    """
    datasets = [data for data in datasets if data is not None]
    counts = [len(data) if count is True else min(count, len(data)) for data in datasets]
    samples = ((data, i * len(data) // n) for data, n in zip(datasets, counts) for i in range(n))
    mine = range(distributed.rank(), sum(counts), distributed.world_size())
    faults, seen = [], set()
    for data, pixels, fault in look_at(islice(samples, mine.start, None, mine.step), len(mine), "Checking the data", say):
        if fault:
            faults.append(fault)
        else:
            seen.update((data.list_path, k) for k in np.flatnonzero(pixels[:-1]).tolist())
    faults, seen = distributed.gather(faults), {*distributed.gather([*seen])}
    if faults:
        listed = first_few(faults, 10, "\n")
        raise Mistake(f"{len(faults)} of {sum(counts)} samples are faulty:\n{listed}")
    for data, n in zip(datasets, counts):
        absent = [k for k in range(data.classes) if (data.list_path, k) not in seen]
        if n == len(data) and len(absent) == data.classes:
            raise Mistake(nothing_labelled(data))
        if n == len(data) and absent:
            say(f"{data.list_path}: no pixel of class {first_few(absent, 20)} (ignore_label is {data.ignore_label})")
        if n < len(data):
            say(f"{data.list_path}: checked {n} of {len(data)} images")


def nothing_labelled(data) -> str:
    """The message for a list without a labelled pixel."""
    return f"{data.list_path}: every pixel of the {len(data)} labels is ignore_label = {data.ignore_label}"


def class_sums(pixels):
    """What an image adds to the sums that `class_weights` needs: its pixels of each class, and all its pixels for each class
    that is in it, (2, K + 1) int64. pixels: as `count_pixels` returns them."""
    return np.stack([pixels, pixels.sum() * (pixels > 0)])


def class_weights(sums):
    """Median frequency balancing, (K,) float64; nan for a class without a pixel (Eigen & Fergus 2015).

    weight = median of all frequencies / frequency of the class; its frequency is its share of the images it is in.
    sums: of `class_sums` over all images, (2, K + 1).
    """
    pixels, inside = sums[:, :-1]
    frequency = np.divide(pixels, inside, out=np.full(len(inside), np.nan), where=inside > 0)
    return np.nanmedian(frequency) / frequency if inside.any() else frequency


def automatic_class_weights(kind, pairs, classes, ignore_label=255):
    """Weights, (K,) list of floats, from the labels of [(image path, label path)]; 1 for absent classes.

    kind: `auto`, median frequency balancing; `sqrt`, its square roots, between that and equal weights.
    """

    def sums(pair):
        return class_sums(count_pixels(read_label(pair[1]), classes, ignore_label))

    threads = os.cpu_count() or 1
    weights = np.nan_to_num(class_weights(sum(ahead(sums, pairs, threads, 4 * threads))), nan=1.0)
    return (np.sqrt(weights) if kind == "sqrt" else weights).tolist()
