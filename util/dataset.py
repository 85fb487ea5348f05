"""Image lists, the dataset that reads them, and the sampler that deals its samples out.

What a sample looks like depends on (seed, epoch, index in the list) alone, and the order of an epoch on (seed, epoch)
alone: any number of processes and workers sees the same training.
"""

import random
import re
import signal
from pathlib import Path

import cv2
import numpy as np
import torch

from util.cache import build_cache, read_cached
from util.image import read_image, read_label


def read_list(path, data_root, split):
    """Read a list file into [(image path, label path)], the label path None for split `test`.

    A line is `image label`, relative to data_root; `test` needs the image only and ignores a label. Blank lines and lines
    that begin with `#` are skipped. Paths that hold spaces are separated by a TAB, or else where both parts are files. A
    missing or empty list and files that do not exist are errors (FileNotFoundError, ValueError) that say where to look.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"split = {split!r}: expected 'train', 'val' or 'test'")
    if path is None or not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such list file (split {split}): check the list's path in the config")
    root = Path(data_root or "")
    pairs, missing, unlabelled = [], [], []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        image, label = _split_line(line, root, split)
        if split != "test" and label is None:
            unlabelled.append(f"line {number}: {line}")
            continue
        pairs.append((str(root / image), None if split == "test" else str(root / label)))
        missing += [f"line {number}: {name}" for name in pairs[-1] if name is not None and not Path(name).is_file()]
    if unlabelled:
        raise ValueError(
            f"{path}: {len(unlabelled)} lines have no label, split {split} needs `image label` on each line (separated by a "
            f"TAB if paths hold spaces): {_first(unlabelled)}"
        )
    if missing:
        raise FileNotFoundError(
            f"{path}: {len(missing)} of the files it names do not exist under data_root = {data_root}: {_first(missing)}"
        )
    if not pairs:
        raise ValueError(f"{path}: the list is empty (split {split})")
    return pairs


def _split_line(line, root, split):
    """(image, label or None) of one line: at a TAB, else at the space that leaves files on disk, else at the first space."""
    if "\t" in line:
        image, label = (part.strip() for part in line.split("\t", 1))
        return image, label
    splits = [(line[: gap.start()], line[gap.end() :]) for gap in re.finditer(r"\s+", line)]
    if split == "test":
        splits = [(line, None), *reversed(splits)]  # the longest name that is a file
    if len(splits) > 1:  # an ordinary line needs no look at the disk
        for image, label in splits:
            if (root / image).is_file() and (split == "test" or (root / label).is_file()):
                return image, label
    return splits[0] if splits else (line, None)


def _first(lines, count=5):
    return "".join(f"\n  {line}" for line in lines[:count]) + ("\n  ..." if len(lines) > count else "")


class SemData(torch.utils.data.Dataset):
    """The samples of a list: (image, label) as `transform(image, label, rng)` returns them.

    `transform` gets image (H, W, 3) float32 RGB 0..255 (uint8 if it has a true attribute `lazy`), label (H, W) uint8 or
    uint16, and the sample's own random numbers. Split `test` has no labels: they are all zero, uint8. With `classes` given,
    a label id that is neither below it nor `ignore_label` is a ValueError.

    `cache` names a directory for decoded files (util/cache.py): whatever it lacks is decoded now. A lazy transform then reads
    the pixels of its crop only.
    """

    def __init__(
        self,
        split="train",
        data_root=None,
        data_list=None,
        transform=None,
        *,
        classes=None,
        ignore_label=255,
        seed=0,
        cache=None,
    ):
        self.split, self.transform, self.seed = split, transform, seed
        self.classes, self.ignore_label = classes, ignore_label
        self.data_list = read_list(data_list, data_root, split)
        self.cached = build_cache(cache, self.data_list, self._decode) if cache else None

    def __len__(self):
        return len(self.data_list)

    def __getitem__(self, key):
        """Sample `index`, or `(epoch, index)`; an index alone is that of epoch 0."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, label = self.read(index)
        if not getattr(self.transform, "lazy", False):
            image, label = image.astype(np.float32), np.array(label)
        if self.transform is None:
            return image, label
        return self.transform(image, label, sample_rng(self.seed, epoch, index))

    def read(self, index):
        """Image (H, W, 3) uint8 RGB and label (H, W) uint8 or uint16, checked, as in the files; read-only from a cache."""
        if self.cached is None:
            return self._decode(index)
        image, label, ids = read_cached(self.cached[index])
        if label is None:
            return image, np.zeros(image.shape[:2], np.uint8)
        if self.classes is not None and any(i >= self.classes and i != self.ignore_label for i in ids):
            check_ids(label, self.classes, self.ignore_label, self.data_list[index][1])
        return image, label

    def _decode(self, index):
        image_path, label_path = self.data_list[index]
        image = read_image(image_path)
        if label_path is None:
            return image, np.zeros(image.shape[:2], np.uint8)
        label = read_label(label_path)
        if image.shape[:2] != label.shape:
            sizes = [f"{path} is {a.shape[0]} x {a.shape[1]}" for path, a in ((image_path, image), (label_path, label))]
            raise ValueError(f"image and label differ in size (height x width): {sizes[0]}, {sizes[1]}")
        if self.classes is not None:
            check_ids(label, self.classes, self.ignore_label, label_path)
        return image, label


def check_ids(label, classes, ignore_label, path):
    """Raise ValueError if a uint8 or uint16 label map holds an id that is neither < classes nor ignore_label."""
    wrong = (label >= classes) & (label != ignore_label)
    if wrong.any():
        values, counts = np.unique(label[wrong], return_counts=True)
        found = ", ".join(f"{value} ({count} pixels)" for value, count in zip(values[:5], counts[:5]))
        raise ValueError(
            f"{path}: label ids outside 0..{classes - 1} that are not ignore_label = {ignore_label}: {found}"
            f"{', ...' if len(values) > 5 else ''}: correct the file, `classes` or `ignore_label`"
        )


def sample_rng(seed, epoch, index):
    """The random numbers of one sample. Python hashes a string seed with SHA-512, the same in every process and version."""
    return random.Random(f"{seed},{epoch},{index}")


class EpochSampler:
    """A batch sampler: yields this rank's part of every global batch as a list of (epoch, index) keys for `SemData`.

    The order of an epoch depends on (seed, epoch) only. A global batch of `batch_size` is cut into world_size contiguous
    parts whose sizes differ by one at most (16 over 3 ranks: 6 + 5 + 5). drop_last leaves out the samples that fill no
    batch; otherwise they are dealt out once, without duplicates, as a smaller last batch, and a rank whose part of it is
    empty has one batch fewer. The epoch begins at global batch `start_batch`, for a run that is resumed. It ends with the
    data, or, if `set_epoch` states a number of `batches`, after so many, going on into the next epochs (with drop_last).
    """

    def __init__(self, length, batch_size, *, seed, epoch, rank=0, world_size=1, shuffle=True, drop_last=True, start_batch=0):
        if batch_size < world_size:
            raise ValueError(f"batch_size = {batch_size} is less than the {world_size} processes: give each at least one")
        if drop_last and length < batch_size:
            raise ValueError(
                f"the dataset has {length} samples, less than one batch of batch_size = {batch_size}: "
                f"lower batch_size or add samples"
            )
        self.length, self.batch_size, self.seed, self.shuffle, self.drop_last = length, batch_size, seed, shuffle, drop_last
        self.rank, self.world_size = rank, world_size
        self.set_epoch(epoch, start_batch)

    def set_epoch(self, epoch, start_batch=0, batches=None):
        self.epoch, self.start_batch, self.batches = epoch, start_batch, batches

    def _part(self, size):
        """Start and stop of this rank's part of a global batch."""
        base, extra = divmod(size, self.world_size)
        start = self.rank * base + min(self.rank, extra)
        return start, start + base + (self.rank < extra)

    def __len__(self):
        """Batches of this rank from start_batch on."""
        return self._left(self.start_batch) if self.batches is None else self.batches

    def __iter__(self):
        epoch, start_batch, left = self.epoch, self.start_batch, len(self)
        while left:
            batches = min(left, self._left(start_batch))
            yield from self._batches(epoch, start_batch, batches)
            epoch, start_batch, left = epoch + 1, 0, left - batches

    def _left(self, start_batch):
        """Batches of this rank from start_batch to the end of the data."""
        full, rest = divmod(self.length, self.batch_size)
        start, stop = self._part(rest)
        return max(full + (stop > start and not self.drop_last) - start_batch, 0)

    def _batches(self, epoch, start_batch, batches):
        order = range(self.length)
        if self.shuffle:
            mixed = random.Random(f"{self.seed},{epoch}").getrandbits(63)  # not a sum: (0, 1) and (1, 0) are two orders
            order = torch.randperm(self.length, generator=torch.Generator().manual_seed(mixed)).tolist()
        first = start_batch * self.batch_size
        for begin in range(first, first + batches * self.batch_size, self.batch_size):
            batch = order[begin : begin + self.batch_size]
            start, stop = self._part(len(batch))
            yield [(epoch, index) for index in batch[start:stop]]


def worker_init(worker_id):
    """One thread a DataLoader worker: OpenCV's pool can deadlock after a fork, and threads of many workers fight for cores."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # Ctrl-C and schedulers reach the workers too, and the
        signal.signal(number, signal.SIG_IGN)  # training still needs them to finish its iteration
