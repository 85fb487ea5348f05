"""A cache of decoded images and labels: reading a sample then costs the pixels it uses, not the decoding of two files.

Each pair of a list is one file in the cache's directory, named by the paths of image and label:
  one line of JSON, padded to a multiple of 64 bytes   format, h, w, label (dtype or null), ids, source
  the label, h x w of its dtype (nothing where the list has no label), then the image, h x w x 3 uint8 RGB.
`ids` are the label's distinct values, `source` is [[size, mtime_ns], ...] of the files it was made from. When a dataset is
made, a file of another format, from another source or of the wrong length is made again. Files appear whole, so a build that
was stopped continues where it was. One cache serves any number of lists and processes.
"""

import fcntl
import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from util.common import Mistake, write_aside
from util.image import file_errors, image_header, system_words

FORMAT = 2  # 1 held images that were not turned by their EXIF orientation


def build_cache(directory, data_list, decode, say=print):
    """Bring the cache up to date with `data_list` and return its files, one path (str) for each pair.

    data_list holds (image path, label path or None); decode(index) -> image (H, W, 3) uint8, label (H, W) uint8 or uint16.
    One process builds and the others wait for it. `say` gets the size before the first file is written, and the progress;
    a disk without room for it raises Mistake.
    """
    directory = Path(directory)
    files = [str(directory / _name(pair)) for pair in data_list]
    if all(_is_current(file, pair) for file, pair in zip(files, data_list)):
        return files
    with file_errors(f"cache {directory}: the folder cannot be made"):
        directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory / "lock"):
        unique = dict(zip(files, range(len(files))))  # a list may name a pair twice
        todo = [i for file, i in unique.items() if not _is_current(file, data_list[i])]
        need, free = sum(_bytes_of(*data_list[i]) for i in todo), shutil.disk_usage(directory).free
        if need > free:
            raise Mistake(f"cache {directory}: {len(todo)} decoded images need {need / 1e9:.2f} GB, {free / 1e9:.2f} GB are "
                          "free: choose a directory on a larger disk or train without cache")  # fmt: skip
        if todo:
            sizes = f"{need / 1e9:.2f} GB ({free / 1e9:.2f} GB are free)"
            say(f"cache {directory}: decoding {len(todo)} of {len(files)} images, {sizes}")
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # OpenCV decodes outside the interpreter's lock
            for done, _ in enumerate(pool.map(lambda i: _write(files[i], data_list[i], decode, i), todo), 1):
                if done * 10 // len(todo) > (done - 1) * 10 // len(todo):
                    say(f"cache {directory}: {done}/{len(todo)}")
    return files


def read_cached(file):
    """(image, label or None, ids): read-only maps of the file, (H, W, 3) uint8 and (H, W), and the label's values."""
    with file_errors(file, "; the cache is complete only when a run starts"), Path(file).open("rb") as stream:
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
    with write_aside(file) as aside, aside.open("wb") as stream:
        stream.write(text.ljust(-(-(len(text) + 1) // 64) * 64 - 1).encode() + b"\n")
        if label is not None:
            stream.write(label)
        stream.write(np.ascontiguousarray(image))


def _is_current(file, pair):
    """Whether the cached file is whole, of this format, and made from the pair's files as they are now."""
    try:
        with Path(file).open("rb") as stream:
            head = json.loads(stream.readline())
            if not isinstance(head, dict) or head.get("format") != FORMAT or head.get("source") != _source(pair):
                return False
            size = stream.tell() + head["h"] * head["w"] * (3 + np.dtype(head["label"] or "V0").itemsize)
            return os.fstat(stream.fileno()).st_size == size
    except (FileNotFoundError, ValueError):  # none yet, or its header is cut off
        return False
    except OSError as error:
        raise Mistake(f"{file}: {system_words(error)}") from error


def _name(pair):
    """Both paths count: one list may name an image with a label, another without."""
    text = json.dumps([None if path is None else str(Path(path).absolute()) for path in pair])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest() + ".raw"


def _source(pair):
    stats = []
    for path in filter(None, pair):
        with file_errors(path):
            stats.append(Path(path).stat())
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]


def _bytes_of(image_path, label_path):
    """Bytes that a pair takes decoded, from the headers of its files."""
    w, h, _ = image_header(image_path)
    deep = label_path is not None and image_header(label_path)[2].startswith("I")
    return h * w * (3 + (0 if label_path is None else 2 if deep else 1)) + 64


@contextmanager
def _lock(path):
    """Hold the lock file; the operating system releases it if the process dies."""
    with file_errors(path):
        stream = path.open("w", encoding="utf-8")
    with stream:
        with suppress(OSError):  # some file systems of clusters cannot lock; files still appear whole
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
