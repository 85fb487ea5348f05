"""A cache of decoded images and labels: reading a sample then costs the pixels it uses, not the decoding of two files.

Every run that finds pairs of its list missing in the cache's directory decodes them into one more file NAME.cache:
  FORMAT and the number of slots, two uint64; the slots, one for each pair (SLOT); zeros up to a multiple of 4096
  for each pair at its slot's offset: its key; the label, h x w of 0 (no label), 1 or 2 bytes a pixel; the label's distinct
  values in the same dtype; the image, h x w x 3 uint8 RGB.
A pair's key is a digest of both paths, and sizes and times of both files, so where one of these has changed the pair is
missing. Slots are written after their pixels have reached the disk: a file is in order at any moment, and a build that was
stopped continues where it was. No run changes or removes a file of another: one cache serves any number of lists, processes and
machines.
"""

import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

from util.common import Mistake
from util.image import file_errors, image_header

FORMAT = int.from_bytes(b"samples3", "little")
SLOT = np.dtype(
    [("key", "<u8", 2), ("offset", "<i8"), ("h", "<i4"), ("w", "<i4"), ("label", "<i4"), ("ids", "<i4"), ("check", "<u8")]
)
COMMIT_S = 5  # a killed build loses what it decoded in this time


class Cache:
    """The decoded files of a list: `cache[index]` is (image, label or None, ids), read-only maps of a file.

    image (H, W, 3) uint8 RGB, label (H, W) uint8 or uint16, ids the label's distinct values. `missing` are the indices of what
    the cache lacks, one for each key.
    """

    def __init__(self, directory, keys):
        with file_errors(f"cache {directory}: the folder cannot be read"):
            self.files = sorted(map(str, Path(directory).glob("*.cache")))
        slots = [_read_slots(file) for file in self.files]
        of_file = np.repeat(np.arange(len(slots)), [len(part) for part in slots])
        slots = np.concatenate([np.empty(0, SLOT), *slots])
        order = np.argsort(slots["key"][:, 0], kind="stable")
        place = np.searchsorted(slots["key"][order, 0], keys[:, 0])
        found = np.append(order, -1)[place]  # the last slot, or none, for a key that is larger than all
        is_here = (slots["key"][found] == keys).all(1) if len(slots) else np.zeros(len(keys), bool)
        first = np.zeros(len(keys), bool)
        first[np.unique(keys[:, 0], return_index=True)[1]] = True
        self.missing = np.flatnonzero(first & ~is_here).tolist()
        self.slots, self.of_file = slots[found[is_here]], of_file[found[is_here]]  # of the pairs, once nothing is missing

    def __getitem__(self, index):
        slot, file = self.slots[index], self.files[self.of_file[index]]
        offset, h, w, size, ids = (int(slot[name]) for name in ("offset", "h", "w", "label", "ids"))
        with file_errors(file, "; the cache is complete only when a run starts"), Path(file).open("rb") as stream:
            data = np.asarray(np.memmap(stream, np.uint8, "r", offset, int(_bytes(slot))))
        key, data = data[:16], data[16:]
        if key.tobytes() != slot["key"].tobytes():
            raise Mistake(f"{file}: damaged: delete it, and the next run decodes its images again")
        image = data[(h * w + ids) * size :].reshape(h, w, 3)
        if not size:
            return image, None, ()
        label = data[: (h * w + ids) * size].view(f"<u{size}")
        return image, label[: h * w].reshape(h, w), label[h * w :]


def build_cache(directory, data_list, decode, say=print):
    """Bring the cache up to date with `data_list` and return its `Cache`.

    data_list holds (image path, label path or None); decode(index) -> image (H, W, 3) uint8, label (H, W) uint8 or uint16.
    One process builds and the others wait for it. `say` gets the size before the first file is written, and the progress;
    a disk without room for it raises Mistake.
    """
    directory, here = Path(directory), Path.cwd()
    with ThreadPoolExecutor() as pool:  # a network disk answers many questions in the time of one
        blocks = pool.map(lambda i: [_key(pair, here) for pair in data_list[i : i + 4096]], range(0, len(data_list), 4096))
        keys = np.array([*chain.from_iterable(blocks)], "<u8")
    cache = Cache(directory, keys)
    if not cache.missing:
        return cache
    with file_errors(f"cache {directory}: the folder cannot be made"):
        directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory / "lock"):
        missing = Cache(directory, keys).missing
        if missing:
            _build(directory, data_list, keys, missing, decode, say)
    cache = Cache(directory, keys)
    if cache.missing:
        raise Mistake(f"cache {directory}: {len(cache.missing)} images are missing after they were written: is anything else "
                      "writing or deleting files there?")  # fmt: skip
    return cache


def _build(directory, data_list, keys, missing, decode, say):
    """Decode the missing pairs into a file of their own. It stays if the build is stopped, without the pairs not reached."""
    slots, lock = np.zeros(len(missing), SLOT), threading.Lock()

    def add(row):
        index = missing[row]
        image, label = decode(index)
        parts, slot = [keys[index], image], np.zeros(1, SLOT)
        if data_list[index][1] is not None:
            ids = cv2.calcHist([label], [0], None, [256**label.itemsize], [0, 256**label.itemsize]).ravel().nonzero()[0]
            parts[1:1] = label, ids.astype(label.dtype)
            slot["label"], slot["ids"] = label.itemsize, len(ids)
        slot["key"], (slot["h"], slot["w"]) = keys[index], image.shape[:2]
        with lock:
            slot["offset"] = stream.seek(-(-stream.seek(0, os.SEEK_END) // 64) * 64)
            for part in parts:
                _write(stream, part)
            slot["check"] = _check(slot)
            slots[row] = slot

    def commit():
        with lock:
            ready = slots.copy()
            os.fsync(stream)
            stream.seek(16)
            _write(stream, ready)
            os.fsync(stream)

    file = directory / f"{uuid.uuid4().hex}.cache"
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # OpenCV decodes outside the interpreter's lock
        need, free = sum(pool.map(lambda i: _bytes_of(*data_list[i]), missing)), shutil.disk_usage(directory).free
        if need > free:
            raise Mistake(f"cache {directory}: {len(missing)} decoded images need {need / 1e9:.2f} GB, {free / 1e9:.2f} GB are "
                          "free: choose a directory on a larger disk or train without cache")  # fmt: skip
        if old := sum(1 for _ in directory.glob("*.raw")):
            say(f"cache {directory}: {old} .raw files are of an earlier version and no longer used: delete them")
        sizes = f"{need / 1e9:.2f} GB ({free / 1e9:.2f} GB are free)"
        say(f"cache {directory}: decoding {len(missing)} of {len(data_list)} images, {sizes}")
        with file_errors(file), file.open("xb", buffering=0) as stream:
            try:
                _write(stream, np.array([FORMAT, len(missing)], "<u8"))
                stream.truncate(-(-(16 + slots.nbytes) // 4096) * 4096)
                committed = time.monotonic()
                for done, _ in enumerate(pool.map(add, range(len(missing))), 1):
                    if done * 10 // len(missing) > (done - 1) * 10 // len(missing):
                        say(f"cache {directory}: {done}/{len(missing)}")
                    if time.monotonic() > committed + COMMIT_S:
                        commit()
                        committed = time.monotonic()
            finally:
                pool.shutdown(cancel_futures=True)
                commit() if slots["h"].any() else file.unlink()


def _read_slots(file):
    """The slots of a file that are in order and whose pixels it holds; none of a file that is of another kind."""
    with file_errors(file), Path(file).open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        kind, count = np.frombuffer(stream.read(16).ljust(16, b"\0"), "<u8").tolist()
        if kind != FORMAT or 16 + count * SLOT.itemsize > size:
            return np.empty(0, SLOT)
        slots = np.frombuffer(stream.read(count * SLOT.itemsize), SLOT)
    slots = slots[slots["check"] == _check(slots)]
    return slots[slots["offset"] + _bytes(slots) <= size]


def _check(slots):
    """A number that tells slots from zeros and from damage, (N,) uint64."""
    words = slots.view("<u8").reshape(len(slots), SLOT.itemsize // 8)[:, :-1]
    return (words * np.arange(3, 2 * words.shape[1] + 3, 2, np.uint64)).sum(1) + np.uint64(1)


def _bytes(slots):
    """The bytes of a slot's key, label, ids and image."""
    pixels = slots["h"].astype(np.int64) * slots["w"]
    return 16 + pixels * 3 + (pixels + slots["ids"]) * slots["label"]


def _write(stream, array):
    """All of an array; a write may take a part, as before the disk is full."""
    rest = memoryview(np.ascontiguousarray(array)).cast("B")
    while rest:
        rest = rest[stream.write(rest) :]


def _key(pair, here):
    """128 bits as two integers. Both paths count: one list may name an image with a label, another without."""
    facts = []
    for path in filter(None, pair):
        with file_errors(path):
            stat = Path(path).stat()
        facts.append([path if path.startswith("/") else f"{here}/{path}", stat.st_size, stat.st_mtime_ns])
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _bytes_of(image_path, label_path):
    """Bytes that a pair takes decoded, from the headers of its files."""
    w, h, _ = image_header(image_path)
    deep = label_path is not None and image_header(label_path)[2].startswith("I")
    return h * w * (3 + (0 if label_path is None else 2 if deep else 1)) + 80 + SLOT.itemsize


@contextmanager
def _lock(path):
    """Hold the lock file; the operating system releases it if the process dies."""
    with file_errors(path):
        stream = path.open("w", encoding="utf-8")
    with stream:
        with suppress(OSError):  # some file systems of clusters cannot lock: then each builds a file of its own
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
