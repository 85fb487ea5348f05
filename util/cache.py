"""A cache of decoded images and labels: a sample then costs the pixels it uses instead of the decoding of two PNGs.

Each pair of a list is one file in the cache's directory, named by the paths of image and label:
  one line of JSON, padded to a multiple of 64 bytes   format, h, w, label (dtype or null), ids, source
  the label, h x w of its dtype (nothing where the list has no label), then the image, h x w x 3 uint8 RGB.
`ids` are the label's distinct values, `source` is [[size, mtime_ns], ...] of the files it was made from. When a dataset is
made, a file that does not match its source or is shorter than it should be is made again. Files appear whole (written
aside, then renamed): a build that was stopped goes on where it was. One cache serves any number of lists and processes.
"""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

try:
    import fcntl
except ImportError:  # Windows has no such lock: there one process should build the cache before others start
    fcntl = None

FORMAT = 1


def build_cache(directory, data_list, decode, say=print):
    """Bring the cache up to date with `data_list` and return its files, one path (str) for each pair.

    data_list holds (image path, label path or None); decode(index) -> image (H, W, 3) uint8, label (H, W) uint8 or uint16.
    One process builds and the others wait for it. Says through `say` what it is about to write, and raises ValueError if
    the disk has no room for it.
    """
    directory = Path(directory)
    files = [str(directory / _name(pair)) for pair in data_list]
    if all(_is_current(file, pair) for file, pair in zip(files, data_list)):
        return files
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory / "lock"):
        todo = [i for i, (file, pair) in enumerate(zip(files, data_list)) if not _is_current(file, pair)]
        need, free = sum(_bytes_of(*data_list[i]) for i in todo), shutil.disk_usage(directory).free
        if need > free:
            raise ValueError(
                f"cache {directory}: {len(todo)} decoded images need {need / 1e9:.2f} GB, {free / 1e9:.2f} GB are free: "
                f"choose a directory on a larger disk or train without cache"
            )
        if todo:
            say(
                f"cache {directory}: decoding {len(todo)} of {len(files)} images, {need / 1e9:.2f} GB "
                f"({free / 1e9:.2f} GB are free)"
            )
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # OpenCV decodes outside the interpreter's lock
            jobs = [pool.submit(_write, files[i], data_list[i], decode, i) for i in todo]
            try:
                for done, job in enumerate(jobs, 1):
                    job.result()
                    if done * 10 // len(jobs) > (done - 1) * 10 // len(jobs):
                        say(f"cache {directory}: {done}/{len(jobs)}")
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return files


def read_cached(file):
    """(image, label or None, ids): read-only maps of the file, (H, W, 3) uint8 and (H, W), and the label's values."""
    with Path(file).open("rb") as stream:
        head = json.loads(stream.readline())
        label_start = stream.tell()
        data = np.asarray(np.memmap(stream, np.uint8, "r"))
    h, w = head["h"], head["w"]
    image_start = len(data) - h * w * 3
    label = data[label_start:image_start].view(head["label"]).reshape(h, w) if head["label"] else None
    return data[image_start:].reshape(h, w, 3), label, head["ids"]


def _write(file, pair, decode, index):
    source = _source(pair)  # before decoding: a file that changes meanwhile is found stale next time
    image, label = decode(index)
    label = None if pair[1] is None else np.ascontiguousarray(label)
    head = {
        "format": FORMAT,
        "h": image.shape[0],
        "w": image.shape[1],
        "label": None if label is None else str(label.dtype),
        "ids": [] if label is None else np.unique(label).tolist(),
        "source": source,
    }
    text = json.dumps(head)
    aside = Path(f"{file}.tmp")
    with aside.open("wb") as stream:
        stream.write(text.ljust(-(-(len(text) + 1) // 64) * 64 - 1).encode() + b"\n")
        if label is not None:
            stream.write(label)
        stream.write(np.ascontiguousarray(image))
    aside.replace(file)


def _is_current(file, pair):
    """Whether the cached file is whole and made from the pair's files as they are now."""
    try:
        with Path(file).open("rb") as stream:
            head = json.loads(stream.readline())
            size = stream.tell() + head["h"] * head["w"] * (3 + np.dtype(head["label"] or "V0").itemsize)
            whole = os.fstat(stream.fileno()).st_size == size
    except (FileNotFoundError, ValueError):  # none yet, or its header is cut off
        return False
    return whole and head["format"] == FORMAT and head["source"] == _source(pair)


def _name(pair):
    """Both paths count: one list may name an image with a label, another without."""
    text = json.dumps([None if path is None else str(Path(path).absolute()) for path in pair])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest() + ".raw"


def _source(pair):
    stats = [Path(path).stat() for path in pair if path is not None]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]


def _bytes_of(image_path, label_path):
    """Bytes that a pair takes decoded, from the headers of its files."""
    try:
        w, h = Image.open(image_path).size
        deep = label_path is not None and Image.open(label_path).mode.startswith("I")
    except OSError as error:
        raise ValueError(f"{image_path}, {label_path}: not images ({error})") from error
    return h * w * (3 + (0 if label_path is None else 2 if deep else 1)) + 64


@contextmanager
def _lock(path):
    """Hold the lock file; the system lets go of it if the process dies."""
    with path.open("w") as stream:
        if fcntl:
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
