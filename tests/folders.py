"""Small data sets on disk, and tool/prepare.py on them."""

import hashlib

import cv2
import numpy as np

from tool import prepare
from util.dataset import read_list
from util.log import report_errors

SIZE = 24, 32


def picture(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def ids(values, size=SIZE):
    """A label map with vertical stripes of these ids."""
    return np.array(values, np.uint8)[np.arange(size[1]) * len(values) // size[1]][None].repeat(size[0], 0)


def put(path, array):
    """Write an image (RGB) or a label map, with the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = array[..., ::-1] if array.ndim == 3 else array
    path.write_bytes(cv2.imencode(path.suffix, array)[1])
    return path


def snapshot(folder):
    """Every path below a folder with the hash of its bytes, and where links point."""
    return {str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.is_dir() or
            hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*"))}  # fmt: skip


def run(*args):
    """The program in this process: its exit status."""
    return report_errors(lambda: prepare.main([str(arg) for arg in args]))


def lines(path):
    return path.read_text().splitlines()


def pairs_of(out):
    """[(image, label)] of the lists to train and to validate on."""
    return [pair for split in ("train", "val") for pair in read_list(out / f"list/{split}.txt", out, split)]
