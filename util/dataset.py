"""The dataset of an image list, and the sampler of the training.

The random numbers of a sample depend only on (seed, epoch, index in the list), the order of an epoch only on (seed, epoch):
any number of processes and workers gets the same samples.
"""

import random
import signal

import cv2
import numpy as np
import torch

from util.cache import build_cache
from util.common import STOPPING, Mistake
from util.image import check_sizes, open_image, pixel_counts, read_image, read_label
from util.lists import read_list
from util.transform import Compose


class SemData(torch.utils.data.Dataset):
    """The samples of a list: (image, label) as `transform(image, label, rng)` returns them.

    `transform` gets image (H, W, 3) float32 RGB 0..255 (uint8 if it has a true attribute `lazy`), label (H, W) uint8 or
    uint16, and random numbers. Split `test` has no labels: they are all zero, uint8. With `classes` given,
    a label id that is neither below it nor `ignore_label` is a Mistake.

    `cache` names a directory for decoded files (util/cache.py); what it lacks is decoded by the constructor. A lazy `Compose`
    then reads the pixels of its crop only, and without a cache it decodes of a PNG no more than leads to them.
    """

    def __init__(self, split="train", data_root=None, data_list=None, transform=None, *,
                 classes=None, ignore_label=255, seed=0, cache=None):  # fmt: skip
        self.split, self.transform, self.seed = split, transform, seed
        self.classes, self.ignore_label = classes, ignore_label
        self.list_path, self.data_list = data_list, read_list(data_list, data_root, split)
        self.cached = build_cache(cache, self.data_list, self._decode) if cache else None

    def __len__(self):
        return len(self.data_list)

    def __getitem__(self, key):
        """Sample `(epoch, index)`, with random numbers of its own; or `index`, with those of Python's `random`, for scripts in
        which a sampler of torch gives the indices: they are others in every epoch."""
        index = key[1] if isinstance(key, tuple) else key
        lazy = getattr(self.transform, "lazy", False)
        image, label = self.read(index, open_image if lazy and isinstance(self.transform, Compose) else read_image)
        if not lazy:
            image, label = image.astype(np.float32), np.array(label)
        if self.transform is None:
            return image, label
        return self.transform(image, label, sample_rng(self.seed, *key) if isinstance(key, tuple) else random)

    def read(self, index, read_image=read_image):
        """Image (H, W, 3) uint8 RGB and label (H, W) uint8 or uint16, checked, as in the files; read-only from a cache."""
        if self.cached is None:
            return self._decode(index, read_image)
        image, label, ids = self.cached[index]
        if label is None:
            return image, np.zeros(image.shape[:2], np.uint8)
        if self.classes is not None and any(i >= self.classes and i != self.ignore_label for i in ids):
            check_ids(label, self.classes, self.ignore_label, self.data_list[index][1])
        return image, label

    def look(self, index):
        """(pixels as `count_pixels` returns them, or None without a label; what is wrong with the files, or "")."""
        try:
            _, label = self.read(index)
        except Mistake as error:
            return None, str(error)
        return None if self.split == "test" else count_pixels(label, self.classes, self.ignore_label), ""

    def _decode(self, index, read_image=read_image):
        image_path, label_path = self.data_list[index]
        image = read_image(image_path)
        if label_path is None:
            return image, np.zeros(image.shape[:2], np.uint8)
        label = read_label(label_path)
        check_sizes(image_path, image, label_path, label)
        if self.classes is not None:
            check_ids(label, self.classes, self.ignore_label, label_path)
        return image, label


def check_ids(label, classes, ignore_label, path):
    """Raise Mistake if a uint8 or uint16 label map holds an id that is neither < classes nor ignore_label."""
    wrong = (label >= classes) & (label != ignore_label)
    if wrong.any():
        raise Mistake(f"{path}: label ids outside 0..{classes - 1} that are not ignore_label = {ignore_label}: "
                      f"{pixel_counts(label[wrong])}: correct the file, `classes` or `ignore_label`")  # fmt: skip


def count_pixels(label, classes, ignore_label):
    """Pixels of each class and, last, of everything else, (K + 1,) int64. label: (H, W) uint8 or uint16."""
    count = np.bincount(label.ravel(), minlength=classes)[:classes]
    if 0 <= ignore_label < classes:
        count[ignore_label] = 0
    return np.append(count, label.size - count.sum())


def sample_rng(seed, epoch, index):
    """The random numbers of one sample. Python hashes a string seed with SHA-512, the same in every process and version."""
    return random.Random(f"{seed},{epoch},{index}")


class EpochSampler:
    """A batch sampler: yields this rank's part of every global batch as a list of (epoch, index) keys for `SemData`.

    The order of an epoch depends on (seed, epoch) only. A global batch of `batch_size` is cut into world_size contiguous
    parts whose sizes differ by one at most (16 over 3 ranks: 6 + 5 + 5); samples that fill no batch are left out.
    """

    def __init__(self, length, batch_size, *, seed, rank=0, world_size=1):
        if batch_size < world_size:
            raise Mistake(f"batch_size = {batch_size} is less than the {world_size} processes: give each at least one")
        if length < batch_size:
            raise Mistake(f"the dataset has {length} samples, less than one batch of batch_size = {batch_size}: "
                          "lower batch_size or add samples")  # fmt: skip
        self.length, self.batch_size, self.seed = length, batch_size, seed
        base, extra = divmod(batch_size, world_size)
        start = rank * base + min(rank, extra)
        self.part = slice(start, start + base + (rank < extra))  # of a global batch
        self.set_epoch(0)

    def set_epoch(self, epoch, start_batch=0, batches=None):
        """Begin at this global batch of an epoch, for a run that is resumed, and end with the epoch's data; or after so many
        `batches`, going on into the next epochs."""
        self.epoch, self.start_batch, self.batches = epoch, start_batch, batches

    def __len__(self):
        """Batches from start_batch on."""
        return max(self.length // self.batch_size - self.start_batch, 0) if self.batches is None else self.batches

    def __iter__(self):
        epoch, batch, left = self.epoch, self.start_batch, len(self)
        while left:
            mixed = random.Random(f"{self.seed},{epoch}").getrandbits(63)  # not a sum: (0, 1) and (1, 0) are two orders
            order = torch.randperm(self.length, generator=torch.Generator().manual_seed(mixed)).numpy()
            stop = min(batch + left, self.length // self.batch_size)
            for begin in range(batch * self.batch_size, stop * self.batch_size, self.batch_size):
                yield [(epoch, index) for index in order[begin : begin + self.batch_size][self.part].tolist()]
            epoch, batch, left = epoch + 1, 0, left - max(stop - batch, 0)


def worker_init(worker_id):
    """One thread a DataLoader worker: OpenCV's pool can deadlock after a fork, and threads of many workers fight for cores."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for number in STOPPING:  # Ctrl-C and schedulers reach the workers too, and the training needs them to finish its iteration
        signal.signal(number, signal.SIG_IGN)
